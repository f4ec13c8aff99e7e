"""Rank methods, parallel sizes and memory tricks that fit by predicted speed, with dry runs.

Every block adds the same time and memory, so two shallow dry runs predict the whole model
(`bench/simulator/shallow.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench.config import checks
from bench.planner import longest
from bench.simulator import fit, predict, shallow
from methods import label_of
from odysseus.config.run import RunConfig

PARTS = ("step_ms_p50", "compute_ms", "exposed_comm_ms", "exposed_offload_ms", "idle_ms")


def ladder(run: RunConfig) -> list[RunConfig]:
    """Return the run with more and more memory tricks, in the order in which they are tried until
    it fits.

    Each costs time, later ones more: a second forward of the MLP, a second forward of the block,
    copies that run beside computation, an optimizer on the host.
    """
    tiled: dict[str, Any] = {"tiled_mlp_compute": True}
    recomputed: dict[str, Any] = {"activation_checkpointing": True}
    offloaded = tiled | {"activation_checkpoint_cpu_offload": True}
    on_host = offloaded | {"optimizer": replace(run.optimizer, offload="cpu")}
    steps = ({}, tiled, recomputed, tiled | recomputed, offloaded, on_host)
    return [replace(run, **tricks) for tricks in steps]


@dataclass(frozen=True)
class Choice:
    """A run that fits, with its predicted memory and time.

    Attributes:
        need: Memory on the GPU and on the host.
        parts_ms: Milliseconds by column of a row, see PARTS: the step and its parts.
    """

    run: RunConfig
    need: fit.Need
    parts_ms: dict[str, float]

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.run.tokens_per_step / self.parts_ms["step_ms_p50"] * 1e3 / self.run.world_size

    @property
    def tricks(self) -> str:
        """The names of the memory tricks that are on."""
        run = self.run
        on = {
            "checkpoint offload": run.activation_checkpoint_cpu_offload,
            "checkpointing": run.activation_checkpointing
            and not run.activation_checkpoint_cpu_offload,
            "tiled MLP": run.tiled_mlp_compute,
            "optimizer on host": run.optimizer_on_host,
        }
        return ", ".join(name for name, is_on in on.items() if is_on) or "none"


def ranked(runs: Iterable[RunConfig], report: Callable[[str], None]) -> list[Choice]:
    """The runs that fit, fastest first, each with the fewest further tricks that make it fit.

    Args:
        report: Called with one line for each run that is tried.
    """
    choices = []
    for run in runs:
        choice = fitting(run)
        name = (
            f"{label_of(run.method)}, sequence {run.sequence_size}, ring {run.ring_parallel_size}"
        )
        report(f"{name}: {choice.tricks if choice else 'does not fit'}")
        choices += [choice] if choice else []
    return sorted(choices, key=lambda choice: -choice.tokens_per_s_per_gpu)


def layouts(base: RunConfig) -> Iterator[RunConfig]:
    """Yield the run with every method at every size of the axes, or at the sizes that it sets. With
    a sequence axis of 1 all methods are the same, and only one is tried."""
    sizes = [(base.sequence_size, base.ring_parallel_size)]
    if base.sequence_parallel_size == 0 and base.ring_parallel_size == 1:
        divisors = [n for n in range(1, base.world_size + 1) if base.world_size % n == 0]
        sizes = [(s, r) for s in divisors for r in divisors if base.world_size % (s * r) == 0]
    for sequence, ring in sizes:
        for method in longest.planned_methods(base) if sequence > 1 else ("ulysses",):
            run = replace(
                longest.by_method(method, base),
                sequence_parallel_size=sequence,
                ring_parallel_size=ring,
            )
            if not checks.refusal(run):
                yield run


def fitting(run: RunConfig) -> Choice | None:
    """The run with the fewest tricks that make it fit."""
    first, *between, last = ladder(run)
    if choice := _if_it_fits(first):
        return choice
    # All tricks together need the least GPU memory; if the host is full, fewer tricks may fit.
    most = predicted(last)
    if most.need.limit == "GPU":
        return None
    choices = filter(None, map(_if_it_fits, between))
    return next(choices, None if most.need.limit else most)


def _if_it_fits(run: RunConfig) -> Choice | None:
    few = _counted(run, _depths(run)[0])
    if fit.need(run, max(few.peaks.values())).limit:  # more blocks need more
        return None
    choice = _at_depth(run, few)
    return None if choice.need.limit else choice


def predicted(run: RunConfig) -> Choice:
    """Memory and time of a run of any depth, predicted from two shallow runs."""
    return _at_depth(run, _counted(run, _depths(run)[0]))


@dataclass(frozen=True)
class _Shallow:
    """Result of a shallow run.

    Attributes:
        peaks: Peak bytes of the heaviest rank, by unit of the model.
        parts_ms: Milliseconds of the slowest rank, by column of a row.
    """

    peaks: dict[str, int]
    parts_ms: dict[str, float]


def _depths(run: RunConfig) -> tuple[int, int]:
    """The numbers of blocks of the two shallow runs."""
    few, more = (min(run.architecture.num_hidden_layers, n) for n in shallow.SHALLOW)
    return few, more


def _at_depth(run: RunConfig, few: _Shallow) -> Choice:
    """The run with all blocks, predicted from the shallower run and a second, deeper one."""
    layers, more = run.architecture.num_hidden_layers, _counted(run, _depths(run)[1])
    further = max(0, layers - shallow.SHALLOW[1])
    return Choice(
        run,
        fit.need(run, shallow.peak_at(layers, few.peaks, more.peaks)),
        {
            part: more.parts_ms[part] + (more.parts_ms[part] - few.parts_ms[part]) * further
            for part in PARTS
        },
    )


def _counted(run: RunConfig, layers: int) -> _Shallow:
    few = shallow.with_blocks(run, layers)
    counted = predict.count(few)
    columns = predict.columns(few, counted)
    peaks = shallow.peak_by_unit(counted.memory, layers)
    return _Shallow(peaks, {part: columns[part] for part in PARTS})
