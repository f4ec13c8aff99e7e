"""Memory savings that a plan may add to a run, in the usual order of their cost in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.config import checks
from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors

SAVINGS: dict[str, Any] = {
    "tiled_loss_compute": True,
    "tiled_mlp_compute": True,
    "activation_checkpointing": True,
    "activation_checkpoint_cpu_offload": True,
    "ulysses_head_chunks": None,
    "optimizer.offload": "cpu",
    "parameter_offload": "cpu",
}
"""Options and their values: nothing in time, a second forward of the MLP, a second forward of the
block, copies that run beside computation, a second exchange of q, k and v, an optimizer on the
host, gathers that begin at the host. Chunks of heads are as many as a rank's heads allow."""


def with_savings(run: RunConfig, names: Sequence[str]) -> RunConfig:
    """Return the run with more of :data:`SAVINGS` on."""
    for name in names:
        value: Any = _most_chunks(run) if name == "ulysses_head_chunks" else SAVINGS[name]
        group, _, option = name.rpartition(".")
        if group:
            run = replace(run, **{group: replace(getattr(run, group), **{option: value})})
        else:
            run = replace(run, **{name: value})
    return run


def to_add(run: RunConfig) -> list[str]:
    """Return the names of the savings that a run lacks and can have."""
    has = {
        "tiled_loss_compute": run.tiles_loss,
        "activation_checkpointing": run.recomputes,
        "optimizer.offload": run.optimizer_on_host,
        "ulysses_head_chunks": run.ulysses_head_chunks > 1 or _most_chunks(run) == 1,
    }
    lacks = [n for n in SAVINGS if not has.get(n) and with_savings(run, [n]) != run]
    return [name for name in lacks if not checks.refusal(with_savings(run, [name]))]


def in_words(run: RunConfig, names: Sequence[str]) -> str:
    """Return savings of a run as a list in words, with their values unless these are true."""
    with_values = {"ulysses_head_chunks": run.ulysses_head_chunks}
    values = {name: with_values.get(name, SAVINGS[name]) for name in names}
    texts = [name if value is True else f"{name} {value}" for name, value in values.items()]
    *first, last = texts or ["nothing added"]
    return f"{', '.join(first)} and {last}" if first else last


def _most_chunks(run: RunConfig) -> int:
    """Return the most chunks that ulysses can compute a rank's heads in; 1 for other methods."""
    if run.method != "ulysses":
        return 1
    counts = reversed(divisors(max(1, run.architecture.num_attention_heads // run.sequence_size)))
    runs = (replace(run, ulysses_head_chunks=count) for count in counts)
    return next((r.ulysses_head_chunks for r in runs if not checks.refusal(r)), 1)
