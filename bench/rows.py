"""Rows of results: their columns, their identity, and a CSV file that no kill can corrupt.

To add a row, a complete new file replaces the old one under a lock: readers see one or the other.
pandas reads and writes every value as text, so that no number changes on the way.
"""

from __future__ import annotations

import csv
import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from bench.hardware import profile_file
from bench.meters.memory import KINDS
from bench.meters.traffic import COLLECTIVES, PURPOSES
from bench.simulator import target
from bench.theory import model_sizes
from methods import label_of
from odysseus.config import router_load
from odysseus.config.architecture import ARCHITECTURE_FIELDS
from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from odysseus.io import files
from odysseus.parallel.mesh import pick_device


@dataclass(frozen=True)
class Column:
    """A column of a row: its value for a run, and the options of a run that its text determines.

    Attributes:
        value: A run's value in this column; None leaves it empty.
        options: Dotted names of the options that the column determines; none if it follows from
            other columns.
        texts: The text of each option, from the text of the column.
    """

    value: Callable[[RunConfig], Any]
    options: tuple[str, ...] = ()
    texts: Callable[[str], dict[str, str]] = lambda text: {}


def _column(option: str, value: Callable[[RunConfig], Any] | None = None) -> Column:
    """The column of one option, with the option's own value unless another one is given."""
    return Column(value or attrgetter(option), (option,), lambda text: {option: text})


def _column_if(applies: Callable[[RunConfig], bool], option: str, name: str = "") -> Column:
    """The column of one option, empty for runs to which it does not apply.

    Args:
        name: Attribute of the run with the value, if that is not the option's own.
    """
    value = attrgetter(name or option)
    return _column(option, lambda run: value(run) if applies(run) else None)


def _attention(run: RunConfig) -> str:
    """The attention kernel of a dry run or a CPU; for a GPU, which only its ranks may ask, what was
    asked for."""
    if run.dry_run:
        return target.attention_of(run)
    asked = run.model.attn_implementation
    return "sdpa" if asked == "auto" and _device(run) == "cpu" else asked


def _device(run: RunConfig) -> str:
    """The type of device that is measured, or that a dry run is for."""
    if run.dry_run:
        return "cuda" if target.on_gpu(run) else "cpu"
    return pick_device(run.device).type


def _model_texts(label: str) -> dict[str, str]:
    """The options that a model's label consists of, see :attr:`ModelOptions.label`.

    Raises:
        ValueError: the label changes something that is no size of a model.
    """
    model, _, changed = label.removesuffix(")").partition("(")
    sizes = {name: value for name, _, value in (p.partition("=") for p in changed.split(", ") if p)}
    if others := sizes.keys() - set(ARCHITECTURE_FIELDS):
        raise ValueError(f"{', '.join(sorted(others))} is no size of a model")
    return {"model.name_or_path": model} | {f"model.{name}": sizes[name] for name in sizes}


def _has_ring(run: Parallelism) -> bool:
    return run.token_axes.ring > 1


IDENTITY: dict[str, Column] = {
    "method": _column("method", lambda run: label_of(run.method)),
    "model": Column(
        attrgetter("model.label"),
        ("model.name_or_path", *(f"model.{name}" for name in ARCHITECTURE_FIELDS)),
        _model_texts,
    ),
    "model_type": _column("model.type"),
    "attn_implementation": _column("model.attn_implementation", _attention),
    "world_size": _column("world_size"),
    "sequence_parallel_size": _column("sequence_parallel_size", attrgetter("sequence_size")),
    "ring_parallel_size": _column("ring_parallel_size"),
    "data_parallel_size": Column(attrgetter("data_parallel_size")),
    "seq_len": _column("seq_len"),
    "micro_batch_size": _column("micro_batch_size"),
    "gradient_accumulation_steps": _column("gradient_accumulation_steps"),
    "dtype": _column("dtype"),
    "activation_checkpointing": _column("activation_checkpointing", attrgetter("recomputes")),
    "activation_checkpoint_cpu_offload": _column("activation_checkpoint_cpu_offload"),
    "tiled_mlp_compute": _column("tiled_mlp_compute"),
    "tiled_loss_compute": _column("tiled_loss_compute", attrgetter("tiles_loss")),
    "seq_parallel_communication_data_type": _column("seq_parallel_communication_data_type"),
    "reduce_bucket_size": _column_if(lambda r: r.reduce_bucket_size != 0, "reduce_bucket_size"),
    "optimizer": _column("optimizer.type"),
    "optimizer_offload": _column("optimizer.offload", attrgetter("optimizer_offload")),
    "parameter_offload": _column("parameter_offload"),
    "seed": _column("seed"),
    "tiled_loss_engine": _column_if(lambda r: r.tiles_loss, "tiled_loss_engine", "loss_engine"),
    "tiled_loss_bytes": _column_if(lambda run: run.tiles_loss, "tiled_loss_bytes"),
    "host_memory_limit_bytes": _column_if(
        lambda run: run.host_memory_limit_bytes != 0, "host_memory_limit_bytes"
    ),
    "expandable_segments": _column("expandable_segments"),
    "numa_binding": _column_if(lambda run: run.numa_binding != "node", "numa_binding"),
    "compile": _column("compile"),
    "ring_order": _column_if(_has_ring, "ring_order"),
    "ring_backend": _column_if(_has_ring, "ring_backend"),
    "axis_order": _column("axis_order"),
    "regather": _column("regather"),
    "ulysses_all_to_all": _column("ulysses_all_to_all"),
    "vocab_parallel": _column_if(
        lambda run: bool(run.vocabulary_cuts), "vocab_parallel", "vocabulary_text"
    ),
    "tensor_parallel_size": _column_if(
        lambda run: run.tensor_parallel_size > 1, "tensor_parallel_size"
    ),
    "expert_parallel_size": _column_if(
        lambda run: run.parts.mlp == "expert", "expert_parallel_size", "expert_ranks"
    ),
    "router_load": _column_if(lambda run: run.router_load != router_load.BALANCED, "router_load"),
    "router_load_sha256": Column(lambda run: router_load.digest(run.router_load) or None),
    "ulysses_head_chunks": _column_if(lambda r: r.ulysses_head_chunks > 1, "ulysses_head_chunks"),
    "zero_prefetch": _column_if(lambda run: not run.zero_prefetch, "zero_prefetch"),
    "zero_engine": _column_if(lambda run: run.zero_engine != "fsdp2", "zero_engine"),
    "overlap_chunks": _column_if(lambda run: run.overlap_chunks > 1, "overlap_chunks"),
    "reshard_after_forward": _column_if(
        lambda run: not run.reshard_after_forward, "reshard_after_forward"
    ),
    "learning_rate": _column("optimizer.learning_rate"),
    "data_path": _column("data.path"),
    "data_pack": _column_if(lambda run: run.data.pack, "data.pack"),
    "model_implementation": _column_if(
        lambda run: run.model.implementation != "native", "model.implementation"
    ),
}
"""The columns that identify a cell, whether it is measured or predicted, in the order of the file.

A new option that changes numbers needs a column here; rows without the column count as empty.
"""
ENVIRONMENT: dict[str, Column] = {
    "mode": Column(lambda run: "dry_run" if run.dry_run else "measured"),
    "device": Column(_device),
    "hardware": _column_if(lambda run: run.hardware != "", "hardware"),
    "hardware_sha256": Column(
        lambda run: profile_file.digest(run.hardware) or None if run.hardware else None
    ),
}
"""Columns that say where a run is to be measured, or for which hardware it is predicted."""
KEY = (*IDENTITY, "mode", "device")
"""Columns of :func:`key`, apart from a dry run's hardware."""
_PREDICTED_FOR = ("hardware", "hardware_sha256")
"""Also part of a dry run's key. A measured row's hardware says where it was measured."""
PROVENANCE = (
    *("mode", "rank", "backend", "device", "hardware", "hardware_sha256", "allocator_settings"),
    *("attention_kernel", "torch_version", "git_commit", "git_dirty", "utc"),
)
RESULTS = (
    *("wall_s", "steps", "warmup_steps", "rounds", "other_load", "noisy"),
    *("step_ms_p50", "step_ms_p20", "step_ms_p80", "round_ms_low", "round_ms_high"),
    *("step_ms_low", "step_ms_high"),
    *("tokens_per_s", "tokens_per_s_per_gpu"),
    *("compute_ms", "exposed_comm_ms", "exposed_offload_ms", "idle_ms"),
    *("model_tflops_per_gpu", "mfu", "flops_convention", "peak_flops_source"),
    *("attention_flops_max", "attention_flops_mean", "matmul_flops_max", "matmul_flops_mean"),
    *(f"comm_bytes_{name}" for name in ("total", *COLLECTIVES, *PURPOSES)),
    *("comm_calls_total", "theory_comm_bytes_total"),
    *("peak_memory_bytes", *(f"peak_memory_{kind}_bytes" for kind in KINDS)),
    *("peak_reserved_bytes", "peak_activation_bytes", "theory_peak_activation_bytes"),
    *("peak_host_bytes", "theory_peak_host_bytes", "longest_limit", "ladder_toggle"),
    *("loss_first", "loss_last", "grad_norm_first", "grad_norm_last"),
)
COLUMNS = (*IDENTITY, *PROVENANCE, *model_sizes.COLUMNS, "status", "error", *RESULTS)
"""All columns of a row, in the order of the file; docs/columns.md explains each."""
OF_EVERY_ROW = ("method", "status")
"""Columns that every file of rows has, also those of other verbs and of earlier versions."""


def identity(run: RunConfig) -> dict[str, Any]:
    """The columns of a row that its run determines, before anything is measured or counted."""
    return {name: column.value(run) for name, column in (IDENTITY | ENVIRONMENT).items()}


def key(row: Mapping[Any, Any], more: Sequence[str] = ()) -> tuple[str, ...]:
    """The row's identity as text, the same before it is written to a file and after it is read.

    Args:
        more: Further columns that are part of the identity.
    """
    predicted_for = _PREDICTED_FOR if row.get("mode") == "dry_run" else ()
    return tuple(_text(row.get(column)) for column in (*more, *KEY, *predicted_for))


def read(path: Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """All rows of a file as text, missing values empty; no rows if there is no file or no text.

    Args:
        needed: The columns that the file must have.

    Raises:
        ValueError: the file is no CSV, or lacks a column.
    """
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # all that pandas raises for a damaged file
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no CSV of rows: {reason}") from None
    if missing := sorted({*needed} - {*table.columns}):
        raise ValueError(f"{path} is no CSV of rows: it is without the columns {missing}")
    return table


def keys(
    path: Path, only_ok: bool = False, more: Sequence[str] = (), after: int = 0
) -> set[tuple[str, ...]]:
    """The keys, see :func:`key`, of a file's rows but the first `after`; of all, or of those ok."""
    records = read(path, OF_EVERY_ROW)[after:].to_dict("records")
    return {key(row, more) for row in records if row["status"] == "ok" or not only_ok}


def append(path: Path, row: dict[str, Any], columns: Sequence[str] = COLUMNS) -> None:
    """Add one row to a file completely or not at all, also while other processes add rows.

    Raises:
        ValueError: the row has a column that is not in `columns`.
        NotSaved: the file cannot be written, or is no longer a file of rows; the row is kept.
    """
    unknown = row.keys() - set(columns)
    if unknown:
        raise ValueError(f"unknown columns: {sorted(unknown)}")
    texts = {column: _text(row.get(column)) for column in columns}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(path).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            needed = [column for column in OF_EVERY_ROW if column in columns]
            earlier = [read(path, needed)] if path.exists() else []
            both: list[pd.DataFrame] = [*earlier, pd.DataFrame([texts])]
            table = pd.concat(both, ignore_index=True).fillna("")
            with files.replacing(path) as draft:
                table.to_csv(draft, index=False)
    except (OSError, ValueError) as error:
        known = {name: text for name, text in texts.items() if text}
        raise files.not_saved(path, json.dumps(known), error) from None


def check_writable(
    path: Path,
    columns: Sequence[str] = COLUMNS,
    needed: Sequence[str] = OF_EVERY_ROW,
    option: str = "out",
) -> None:
    """Raise ValueError unless rows can be added to this file, see
    :func:`odysseus.io.files.check_output`.

    Args:
        columns: The columns that such a file may have.
        needed: The columns that it must have.
        option: Name of the option that names the file.
    """

    def foreign(path: Path) -> str:
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header: list[str] = next(csv.reader(file), [])
        except (UnicodeDecodeError, csv.Error):
            return "it is no text file"
        if missing := sorted(set(needed) - set(header)):
            return f"it is a file without the columns {missing}"
        if others := sorted(set(header) - set(columns)):
            return f"it has columns of another program: {others[:5]}"
        read(path)
        return ""

    valid = "a new file, or a CSV that this command wrote, in a folder you may write to"
    files.check_output(option, path, valid, foreign)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _text(value: Any) -> str:
    return "" if value is None else str(value)
