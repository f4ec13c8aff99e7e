"""Rows of results: their columns, their identity, and a CSV that no kill can tear.

A file is replaced whole, under a lock, by one with the new row: readers see the old file or the
new one. pandas reads and writes it, as text, so that no number changes on the way through.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.hardware import profile_file
from bench.meters.memory import KINDS
from bench.meters.traffic import COLLECTIVES, PURPOSES
from bench.simulator import target
from odysseus.config.run import RunConfig
from odysseus.model.attention import choose_attention
from odysseus.parallel.mesh import pick_device

IDENTITY = (
    *("method", "model", "model_type", "attn_implementation"),
    *("world_size", "sequence_parallel_size", "ring_parallel_size", "data_parallel_size"),
    *("seq_len", "micro_batch_size", "gradient_accumulation_steps", "dtype"),
    *("activation_checkpointing", "activation_checkpoint_cpu_offload"),
    *("tiled_mlp_compute", "tiled_loss_compute"),
    *("seq_parallel_communication_data_type", "reduce_bucket_size"),
    *("optimizer", "optimizer_offload", "parameter_offload", "seed"),
    *("tiled_loss_engine", "tiled_loss_bytes", "host_memory_limit_bytes"),
    *("expandable_segments", "compile"),
    *("ring_order", "ring_backend", "axis_order"),
    *("regather", "ulysses_all_to_all", "ulysses_head_chunks", "zero_prefetch", "zero_engine"),
    *("overlap_chunks", "reshard_after_forward"),
    *("learning_rate", "data_path", "data_pack", "model_implementation"),
)
"""What makes a cell the cell it is, whoever measures or predicts it."""
_KEY = (*IDENTITY, "mode", "device")

COLUMNS = (
    *IDENTITY,
    *["mode", "rank", "backend", "device", "hardware", "hardware_sha256", "allocator_settings"],
    *["torch_version", "git_commit", "git_dirty", "utc"],
    *["status", "error", "wall_s"],
    *["step_ms_p50", "step_ms_p20", "step_ms_p80", "tokens_per_s", "tokens_per_s_per_gpu"],
    *["compute_ms", "exposed_comm_ms", "exposed_offload_ms", "idle_ms"],
    *["model_tflops_per_gpu", "mfu", "flops_convention", "peak_flops_source"],
    *["attention_flops_max", "attention_flops_mean", "matmul_flops_max", "matmul_flops_mean"],
    *(f"comm_bytes_{name}" for name in ("total", *COLLECTIVES, *PURPOSES)),
    *["comm_calls_total", "theory_comm_bytes_total"],
    *("peak_memory_bytes", *(f"peak_memory_{kind}_bytes" for kind in KINDS)),
    *["peak_reserved_bytes", "peak_activation_bytes", "theory_peak_activation_bytes"],
    *["peak_host_bytes", "theory_peak_host_bytes", "longest_limit"],
    *["loss_first", "loss_last", "grad_norm_first", "grad_norm_last"],
)


def identity(run: RunConfig) -> dict[str, Any]:
    """What makes this cell the cell it is."""
    device, attention = pick_device(run.device), run.model.attn_implementation
    if run.dry_run:
        attention = target.attention_of(run)
    with contextlib.suppress(ValueError):  # an impossible kernel keeps its name
        attention = choose_attention(attention, device, run.compute_dtype)[0]
    return {
        "method": run.method,
        "model": run.model.label,
        "model_type": run.model.type,
        "attn_implementation": attention,
        "world_size": run.world_size,
        "sequence_parallel_size": run.sequence_size,
        "ring_parallel_size": run.ring_parallel_size,
        "data_parallel_size": run.data_parallel_size,
        "seq_len": run.seq_len,
        "micro_batch_size": run.micro_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
        "dtype": run.dtype,
        "activation_checkpointing": run.recomputes,
        "activation_checkpoint_cpu_offload": run.activation_checkpoint_cpu_offload,
        "tiled_mlp_compute": run.tiled_mlp_compute,
        "tiled_loss_compute": run.tiles_loss,
        "seq_parallel_communication_data_type": run.seq_parallel_communication_data_type,
        "reduce_bucket_size": run.reduce_bucket_size or None,
        "optimizer": run.optimizer.type,
        "optimizer_offload": "cpu" if run.optimizer_on_host else "none",
        "parameter_offload": run.parameter_offload,
        "seed": run.seed,
        "tiled_loss_engine": run.loss_engine if run.tiles_loss else None,
        "tiled_loss_bytes": run.tiled_loss_bytes if run.tiles_loss else None,
        "host_memory_limit_bytes": run.host_memory_limit_bytes or None,
        "expandable_segments": run.expandable_segments,
        "compile": run.compile,
        "ring_order": run.ring_order if run.ring_parallel_size > 1 else None,
        "ring_backend": run.ring_backend if run.ring_parallel_size > 1 else None,
        "axis_order": run.axis_order,
        "regather": run.regather,
        "ulysses_all_to_all": run.ulysses_all_to_all,
        "ulysses_head_chunks": run.ulysses_head_chunks if run.ulysses_head_chunks > 1 else None,
        "zero_prefetch": None if run.zero_prefetch else False,
        "zero_engine": None if run.zero_engine == "fsdp2" else run.zero_engine,
        "overlap_chunks": run.overlap_chunks if run.overlap_chunks > 1 else None,
        "reshard_after_forward": None if run.reshard_after_forward else False,
        "learning_rate": run.optimizer.learning_rate,
        "data_path": run.data.path,
        "data_pack": run.data.pack or None,
        "model_implementation": None if run.model.implementation == "native" else "transformers",
        "mode": "dry_run" if run.dry_run else "measured",
        "device": ("cuda" if target.on_gpu(run) else "cpu") if run.dry_run else device.type,
        "hardware": run.hardware or None,
        **({"hardware_sha256": profile_file.digest(run.hardware) or None} if run.hardware else {}),
    }


def provenance() -> dict[str, Any]:
    """Where and when a row was made: versions, commit, time."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    # An installed package has no commit, but may lie inside another project's repository.
    is_clone = _output([*git, "rev-parse", "--show-toplevel"]) == str(root)
    commit = _output([*git, "rev-parse", "HEAD"]) if is_clone else ""
    code = ["--untracked-files=no", "--", ":/", ":(top,exclude)results"]
    changes = _output([*git, "status", "--porcelain", *code])
    return {
        "torch_version": torch.__version__,
        "git_commit": commit,
        "git_dirty": bool(changes) if commit else None,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def key(row: Mapping[Any, Any], more: Sequence[str] = ()) -> tuple[str, ...]:
    """A row's identity as text, the same before and after a trip through a file.

    Args:
        more: Columns that are part of it too.
    """
    # A measured row says on what it was measured, a dry run's for what it was asked.
    asked = ("hardware", "hardware_sha256") if row.get("mode") == "dry_run" else ()
    return tuple(_text(row.get(column)) for column in (*more, *_KEY, *asked))


def read(path: Path) -> pd.DataFrame:
    """All rows of a file as text, missing values empty; no file, no rows."""
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def keys(path: Path, only_ok: bool = False, more: Sequence[str] = ()) -> set[tuple[str, ...]]:
    """The identities, as :func:`key`, of all rows of a file, or of those whose status is ok."""
    found = read(path).to_dict("records")
    return {key(row, more) for row in found if row["status"] == "ok" or not only_ok}


def append(path: Path, row: dict[str, Any], columns: Sequence[str] = COLUMNS) -> None:
    """Add one row to a file, whole or not at all, whoever else is adding.

    Raises:
        ValueError: the row has a column that is not among those given.
    """
    unknown = row.keys() - set(columns)
    if unknown:
        raise ValueError(f"unknown columns: {sorted(unknown)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        added = pd.DataFrame([{column: _text(row.get(column)) for column in columns}])
        before = [read(path)] if path.exists() else []
        whole = pd.concat([*before, added], ignore_index=True).fillna("")
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        whole.to_csv(draft, index=False)
        draft.replace(path)


def check_writable(path: Path, needed: Sequence[str] = ("method", "status")) -> None:
    """Raise ValueError unless rows can be added to this file, which has such columns if it is there
    already."""
    check_folder(path)
    if path.exists() and (missing := set(needed) - set(read(path).columns)):
        raise ValueError(
            f"out is {str(path)!r}, a CSV without the columns {sorted(missing)}; "
            "valid: a new file, or one that this program wrote"
        )


def check_folder(path: Path) -> None:
    """Raise ValueError unless this file can be written; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(path).open("a"):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"out is {str(path)!r}: {reason}; valid: a file you may write") from None


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _output(command: list[str]) -> str:
    """The output of a command; empty where it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
