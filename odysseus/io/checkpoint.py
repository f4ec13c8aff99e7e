"""Hugging Face checkpoints in and out: each rank reads what it keeps, and safetensors only.

A pickled checkpoint runs whatever code its author has put there, so none is opened.
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

from odysseus.config import hf_config
from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis
from odysseus.parallel.sharding import Piece, huggingface_shapes, initialize

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What a saved model takes along from the folder that it came from.
_COPIED_FILES = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
FILE_BYTES = 5 * 10**9
"""A file takes no more, unless one tensor does (as Transformers' ``max_shard_size``)."""


def check(run: RunConfig) -> None:
    """Raise ValueError unless a run's checkpoint, if it has one, holds the very tensors of its
    model. Reads headers only."""
    if run.model.checkpoint:
        Checkpoint(run.model.checkpoint).check(run.architecture)


def load_or_initialize(pieces: Iterable[tuple[Piece, Tensor]], run: RunConfig) -> None:
    """Give shards the run's first weights: its checkpoint's, or else what its seed decides.

    Args:
        pieces: As :func:`odysseus.parallel.sharding.local_pieces`.
    """
    if run.model.checkpoint:
        Checkpoint(run.model.checkpoint).load(pieces)
    else:
        initialize(pieces, run.seed)


class Checkpoint:
    """The tensors of a folder, by the file that has them.

    Raises:
        ValueError: the folder has no safetensors, or a file that tells where they are is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, _files(folder)

    def check(self, architecture: Architecture) -> None:
        """Raise ValueError unless names, shapes and dtypes are the model's."""
        shapes = huggingface_shapes(architecture)
        found = {name for name in self.files if not name.endswith("rotary_emb.inv_freq")}
        for what, names in (("misses", shapes.keys() - found), ("has", found - shapes.keys())):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                tied = architecture.tie_word_embeddings and "lm_head.weight" in names
                raise ValueError(
                    f"{self.folder} {what} {min(names)[:100]!r}{more}; valid: the tensors of "
                    f"the model{', whose head is its embedding' if tied else ''}"
                )
        for file, names in _group_by_file((name, self.files[name]) for name in shapes).items():
            with _open(file) as opened:
                for name in names:
                    _check_tensor(file, opened, name, shapes[name])

    def load(self, pieces: Iterable[tuple[Piece, Tensor]]) -> None:
        """Fill a rank's shards, reading no more than they hold.

        Args:
            pieces: As :func:`odysseus.parallel.sharding.local_pieces`.
        """
        for piece, view in pieces:
            rows, columns = slice(*piece.rows), slice(*piece.columns)
            at = (rows,) if len(piece.shape) == 1 else (rows, columns)
            # What is read of a file stays in memory until it is closed.
            with _open(self.files[piece.name]) as opened:
                view.copy_(opened.get_slice(piece.name)[at])


def save(
    pieces: Iterable[tuple[Piece, Tensor]],
    run: RunConfig,
    world: Axis,
    device: torch.device,
    to: Path,
) -> None:
    """Write the whole model in the run's compute dtype, with a ``config.json``, as a folder that is
    there once it is whole. Call it on every rank; the first one writes.

    Every tensor is gathered by itself, so that no rank holds more than one beside a file's worth on
    the first.

    Args:
        pieces: As :func:`odysseus.parallel.sharding.local_pieces`.
        to: A folder that is not there yet.

    Raises:
        OSError: the first rank could not write, on every rank; what it wrote is removed.
    """
    local: defaultdict[str, list[tuple[Piece, Tensor]]] = defaultdict(list)
    for piece, view in pieces:
        local[piece.name] += [(piece, view)] if piece.owned else []
    shapes, dtype = huggingface_shapes(run.architecture), run.compute_dtype
    files = _split_into_files(shapes, dtype)
    partial, disk = Path(f"{to}.partial"), _Disk(world.rank == 0)
    disk.do(partial.mkdir)
    for file, names in files.items():
        tensors = {}
        for name in names:
            whole = torch.zeros(shapes[name], dtype=dtype, device=device)
            for piece, view in local[name]:
                piece.of(whole).copy_(view)
            # Every element is on one rank: adding zeros to its bytes keeps it, -0.0 and NaN too.
            transfers.all_reduce_plain(whole.view(torch.uint8), world)
            if world.rank == 0:
                tensors[name] = whole.cpu()
        disk.do(lambda t=tensors, f=file: save_file(t, partial / f, metadata={"format": "pt"}))
    disk.do(lambda: _write_config_and_index(run, files, partial))
    disk.do(lambda: partial.rename(to))
    shared = [disk.error]
    dist.broadcast_object_list(shared, group_src=0, group=world.group)
    if shared[0]:
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(shared[0])


class _Disk:
    """What one rank writes while all go on together: after an error, nothing more."""

    def __init__(self, writes: bool) -> None:
        self.writes, self.error = writes, ""

    def do(self, action: Callable[[], object]) -> None:
        if self.writes and not self.error:
            try:
                action()
            except (OSError, SafetensorError) as error:
                self.error = " ".join(str(error).split())[:200]


def _write_config_and_index(run: RunConfig, files: dict[str, list[str]], folder: Path) -> None:
    """The index and the configuration; what a checkpoint brought along stays beside them."""
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
    """The ``config.json`` of what a run saves.

    Raises:
        ValueError: no model of Transformers is like the run's.
    """
    dtype = str(run.compute_dtype).removeprefix("torch.")
    source = run.model.checkpoint
    given = hf_config.read_object(source / "config.json") if source else {}
    if run.model.overrides or not source:
        given = hf_config.rewritten(given, run.architecture, run.seq_len)
    return given | {"dtype": dtype, "torch_dtype": dtype}


def _split_into_files(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, list[str]]:
    """File names, and the tensors of each, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        of_tensor = torch.Size(shape).numel() * dtype.itemsize
        if groups[-1] and size + of_tensor > FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += of_tensor
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, 1)}


def _files(folder: Path) -> dict[str, Path]:
    """The file of every tensor: the only one's, else as the index says, as Transformers looks."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} has adapter_config.json, an adapter that would be left out; valid: merged "
            "weights"
        )
    if (folder / _SINGLE).is_file():
        with _open(folder / _SINGLE) as opened:
            return dict.fromkeys(opened.keys(), folder / _SINGLE)
    if (folder / _INDEX).is_file():
        given = hf_config.read_object(folder / _INDEX).get("weight_map")
        if not isinstance(given, dict) or not given:
            raise ValueError(f"{folder / _INDEX} has no weight_map; valid: tensor names to files")
        for name in given.values():
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
                raise ValueError(
                    f"{folder / _INDEX} names the file {shortened(name)}; valid: one beside it"
                )
        return {tensor: folder / name for tensor, name in given.items()}
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled:
        raise ValueError(
            f"{folder} has {pickled[0]}, which is pickled and may run any code; valid: {_SINGLE}, "
            "as save_pretrained writes it"
        )
    raise ValueError(f"{folder} has no {_SINGLE}; valid: a Hugging Face checkpoint")


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A file, whose header safetensors has checked against its size."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{file} cannot be read: {why}; valid: whole safetensors") from None


def _group_by_file(items: Iterable[tuple[Any, Path]]) -> dict[Path, list[Any]]:
    found: defaultdict[Path, list[Any]] = defaultdict(list)
    for item, file in items:
        found[file].append(item)
    return found


def _check_tensor(file: Path, opened: Any, name: str, shape: tuple[int, ...]) -> None:
    tensor = opened.get_slice(name)
    if tuple(tensor.get_shape()) != shape:
        raise ValueError(
            f"{file}: {name} is {tensor.get_shape()}, but the model's is {list(shape)}; valid: "
            "tensors as config.json describes them"
        )
    if tensor.get_dtype() not in _FLOATS:
        raise ValueError(f"{file}: {name} is {tensor.get_dtype()}; valid: {', '.join(_FLOATS)}")
