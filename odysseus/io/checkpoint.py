"""Hugging Face checkpoints, loaded and saved: each rank reads only its own shards.

Only safetensors are read: unpickling a checkpoint runs any code that its author put there.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from odysseus.config import hf_config, hf_experts
from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis
from odysseus.parallel.sharding import Piece, huggingface_shapes, initialize

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPARED_ROWS = 4096
_FLOATS = ("BF16", "F16", "F32", "F64")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Files that a saved model copies from the folder that it was loaded from.
_COPIED_FILES = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
FILE_BYTES = 5 * 10**9
"""The largest file, unless one tensor is larger (Transformers' ``max_shard_size``)."""


def check(run: RunConfig) -> None:
    """Raise ValueError unless a run's checkpoint, if any, holds exactly its model's tensors.

    Reads headers; of weights, only a head that is written beside the embedding that it is tied to.
    """
    if run.model.checkpoint:
        Checkpoint(run.model.checkpoint).check(run.architecture)


def load_or_initialize(pieces: Iterable[tuple[Piece, Tensor]], run: RunConfig) -> None:
    """Fill shards with a run's initial weights: from its checkpoint, or else from its seed.

    Args:
        pieces: (piece, view) pairs of :func:`odysseus.parallel.sharding.local_pieces`.
    """
    if run.model.checkpoint:
        Checkpoint(run.model.checkpoint).load(pieces)
    else:
        initialize(pieces, run.seed)


class Checkpoint:
    """The tensors of a folder of safetensors.

    Attributes:
        files: Tensor names, as this project has them, to the files that hold them.
        stored: These names to those in the files.

    Raises:
        ValueError: the folder has no safetensors, or its index is damaged.
    """

    def __init__(self, folder: Path) -> None:
        files = _files(folder)
        self.folder = folder
        self.stored = {hf_experts.usual_name(name): name for name in files}
        self.files = {usual: files[name] for usual, name in self.stored.items()}

    def check(self, architecture: Architecture) -> None:
        """Raise ValueError unless the tensors' names, shapes and dtypes fit the model.

        A model whose head is its embedding may come with a head that equals it.
        """
        shapes = huggingface_shapes(architecture)
        present = {name for name in self.files if not name.endswith("rotary_emb.inv_freq")}
        if architecture.tie_word_embeddings and present >= {_HEAD, _EMBEDDING}:
            if not self._equal(_HEAD, _EMBEDDING):
                raise ValueError(
                    f"{self.folder} has a {_HEAD} that differs from {_EMBEDDING}, but its "
                    "config.json has tie_word_embeddings = true; valid: false, or equal weights"
                )
            present.remove(_HEAD)
        for verb, names in (("misses", shapes.keys() - present), ("has", present - shapes.keys())):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                tied = architecture.tie_word_embeddings and _HEAD in names
                raise ValueError(
                    f"{self.folder} {verb} {min(names)[:100]!r}{more}; valid: the tensors of "
                    f"the model{', whose head is its embedding' if tied else ''}"
                )
        for file, names in _group_by_file((name, self.files[name]) for name in shapes).items():
            with _open(file) as opened:
                for name in names:
                    _check_tensor(file, opened, self.stored[name], shapes[name])

    def _equal(self, one: str, other: str) -> bool:
        """Whether two tensors are the same, bit for bit; some rows of each are in memory."""
        with _open(self.files[one]) as of_one, _open(self.files[other]) as of_other:
            slices = of_one.get_slice(one), of_other.get_slice(other)
            if slices[0].get_shape() != slices[1].get_shape():
                return False
            first_rows = range(0, slices[0].get_shape()[0], _COMPARED_ROWS)
            parts = ([x[i : i + _COMPARED_ROWS] for x in slices] for i in first_rows)
            return all(torch.equal(*(x.view(torch.uint8) for x in part)) for part in parts)

    def load(self, pieces: Iterable[tuple[Piece, Tensor]]) -> None:
        """Fill a rank's shards, reading no more than they hold.

        Args:
            pieces: (piece, view) pairs of :func:`odysseus.parallel.sharding.local_pieces`.
        """
        for piece, view in pieces:
            rows, columns = slice(*piece.rows), slice(*piece.columns)
            at = (rows,) if len(piece.shape) == 1 else (rows, columns)
            # Pages read from a file stay in memory until it is closed, so open it per tensor.
            with _open(self.files[piece.name]) as opened:
                view.copy_(opened.get_slice(self.stored[piece.name])[at])


def save(
    pieces: Iterable[tuple[Piece, Tensor]],
    run: RunConfig,
    world: Axis,
    device: torch.device,
    to: Path,
) -> None:
    """Write the whole model, in the run's compute dtype, with its ``config.json``.

    Call it on every rank; rank 0 writes. The folder appears only when it is complete. Tensors are
    gathered one by one, so each rank holds one whole tensor, and rank 0 one file's tensors more.

    Args:
        pieces: (piece, view) pairs of :func:`odysseus.parallel.sharding.local_pieces`.
        to: A folder that does not exist yet.

    Raises:
        OSError: rank 0 could not write; raised on every rank, after removing the partial folder.
    """
    local: defaultdict[str, list[tuple[Piece, Tensor]]] = defaultdict(list)
    for piece, view in pieces:
        local[piece.name] += [(piece, view)] if piece.owned else []
    shapes, dtype = huggingface_shapes(run.architecture), run.compute_dtype
    files, kind = _split_into_files(shapes, dtype), saved_config(run)["model_type"]
    partial, writer = Path(f"{to}.partial"), _Writer(world.rank == 0)
    writer.write(partial.mkdir)
    for file, names in files.items():
        tensors = {}
        for name in names:
            whole = torch.zeros(shapes[name], dtype=dtype, device=device)
            for piece, view in local[name]:
                piece.of(whole).copy_(view)
            # One rank owns each element; adding zero bytes keeps it, also -0.0 and NaN.
            transfers.all_reduce_plain(whole.view(torch.uint8), world)
            if world.rank == 0:
                tensors[hf_experts.stored_name(name, kind)] = whole.cpu()
        writer.write(lambda t=tensors, f=file: save_file(t, partial / f, metadata={"format": "pt"}))
    stored = {f: [hf_experts.stored_name(n, kind) for n in names] for f, names in files.items()}
    writer.write(lambda: _write_config_and_index(run, stored, partial))
    writer.write(lambda: partial.rename(to))
    error = [writer.error]
    dist.broadcast_object_list(error, group_src=0, group=world.group)
    if error[0]:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(error[0])


class _Writer:
    """Writes on one rank while all ranks proceed together; after an error it writes nothing more.

    Attributes:
        error: The first error's text, at most 200 characters, or "".
    """

    def __init__(self, active: bool) -> None:
        self.active, self.error = active, ""

    def write(self, action: Callable[[], object]) -> None:
        if self.active and not self.error:
            try:
                action()
            except (OSError, SafetensorError) as error:
                self.error = " ".join(str(error).split())[:200]


def _write_config_and_index(run: RunConfig, files: dict[str, list[str]], folder: Path) -> None:
    """Write the index and ``config.json``; copy the tokenizer's files of the source checkpoint."""
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        size = sum((folder / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2))
    source = run.model.checkpoint
    for name in _COPIED_FILES if source else ():
        if source and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    (folder / "config.json").write_text(json.dumps(saved_config(run), indent=2))


def saved_config(run: RunConfig) -> dict[str, Any]:
    """Return the ``config.json`` of the model that a run saves.

    Raises:
        ValueError: Transformers has no model that equals the run's.
    """
    dtype = str(run.compute_dtype).removeprefix("torch.")
    source = run.model.checkpoint
    config = hf_config.read_object(source / "config.json") if source else {}
    if run.model.overrides or not source:
        config = hf_config.with_architecture(config, run.architecture, run.seq_len)
    return config | {"dtype": dtype, "torch_dtype": dtype}


def _split_into_files(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, list[str]]:
    """Return file names and the tensors of each, in order, at most FILE_BYTES per file."""
    groups: list[list[str]] = [[]]
    file_bytes = 0
    for name, shape in shapes.items():
        tensor_bytes = torch.Size(shape).numel() * dtype.itemsize
        if groups[-1] and file_bytes + tensor_bytes > FILE_BYTES:
            groups.append([])
            file_bytes = 0
        groups[-1].append(name)
        file_bytes += tensor_bytes
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, 1)}


def _files(folder: Path) -> dict[str, Path]:
    """Map every tensor to its file: the single file or, without it, the index's entry.

    Transformers looks for them in the same order.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} has adapter_config.json, an adapter that would be left out; valid: merged "
            "weights"
        )
    if (folder / _SINGLE).is_file():
        with _open(folder / _SINGLE) as opened:
            return dict.fromkeys(opened.keys(), folder / _SINGLE)
    if (folder / _INDEX).is_file():
        weight_map = hf_config.read_object(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / _INDEX} has no weight_map; valid: tensor names to files")
        for name in weight_map.values():
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
                raise ValueError(
                    f"{folder / _INDEX} names the file {shortened(name)}; valid: one beside it"
                )
        return {tensor: folder / name for tensor, name in weight_map.items()}
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled:
        raise ValueError(
            f"{folder} has {pickled[0]}, which is pickled and may run any code; valid: {_SINGLE}, "
            "as save_pretrained writes it"
        )
    raise ValueError(f"{folder} has no {_SINGLE}; valid: a Hugging Face checkpoint")


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """Open a safetensors file; the library checks its header against the file's size."""
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is no regular file")  # to open a pipe would wait for its writer
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{file} cannot be read: {why}; valid: whole safetensors") from None


def _group_by_file(items: Iterable[tuple[Any, Path]]) -> dict[Path, list[Any]]:
    groups: defaultdict[Path, list[Any]] = defaultdict(list)
    for item, file in items:
        groups[file].append(item)
    return groups


def _check_tensor(file: Path, opened: Any, name: str, shape: tuple[int, ...]) -> None:
    tensor = opened.get_slice(name)
    if tuple(tensor.get_shape()) != shape:
        raise ValueError(
            f"{file}: {name} is {tensor.get_shape()}, but the model's is {list(shape)}; valid: "
            "tensors as config.json describes them"
        )
    if tensor.get_dtype() not in _FLOATS:
        raise ValueError(f"{file}: {name} is {tensor.get_dtype()}; valid: {', '.join(_FLOATS)}")
