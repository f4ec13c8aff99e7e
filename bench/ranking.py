"""Which method, parallel sizes and memory tricks are fastest of those that fit, by dry runs.

Time and memory grow with every block alike, so two shallow dry runs and a straight line through
them say what the whole model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench import options, plan, predict
from bench.plan import Need
from methods import METHODS
from odysseus.config import RunConfig

PARTS = ("step_ms_p50", "compute_ms", "exposed_comm_ms", "exposed_offload_ms", "idle_ms")


def ladder(run: RunConfig) -> list[RunConfig]:
    """The run with ever more memory tricks, in the order that they are added in until it fits. Each
    costs time, the later the more: an MLP's forward again, a block's forward again, copies that
    hide, an optimizer on the host."""
    tiled: dict[str, Any] = {"tiled_mlp_compute": True}
    recomputed: dict[str, Any] = {"activation_checkpointing": True}
    offloaded = tiled | {"activation_checkpoint_cpu_offload": True}
    on_host = offloaded | {"optimizer": replace(run.optimizer, offload="cpu")}
    steps = ({}, tiled, recomputed, tiled | recomputed, offloaded, on_host)
    return [replace(run, **tricks) for tricks in steps]


@dataclass(frozen=True)
class Choice:
    """A run that fits, and what it is predicted to take.

    Attributes:
        parts_ms: By the row's column: the step, and what it consists of.
    """

    run: RunConfig
    need: Need
    parts_ms: dict[str, float]

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.run.tokens_per_step / self.parts_ms["step_ms_p50"] * 1e3 / self.run.world_size

    @property
    def tricks(self) -> str:
        """The memory tricks that are on."""
        run = self.run
        on = {
            "checkpoint offload": run.activation_checkpoint_cpu_offload,
            "checkpointing": run.activation_checkpointing
            and not run.activation_checkpoint_cpu_offload,
            "tiled MLP": run.tiled_mlp_compute,
            "optimizer on host": run.optimizer_on_host,
        }
        return ", ".join(name for name, is_on in on.items() if is_on) or "none"


def ranked(runs: Iterable[RunConfig], tell: Callable[[str], None]) -> list[Choice]:
    """Those runs that fit, fastest first, each with the fewest tricks besides those that are on.

    Args:
        tell: Called with a line for everything that was tried.
    """
    found = []
    for run in runs:
        choice = fitting(run)
        name = f"{run.method}, sequence {run.sequence_size}, ring {run.ring_parallel_size}"
        tell(f"{name}: {choice.tricks if choice else 'does not fit'}")
        found += [choice] if choice else []
    return sorted(found, key=lambda choice: -choice.tokens_per_s_per_gpu)


def layouts(base: RunConfig) -> Iterator[RunConfig]:
    """A run by every method at every size of its axes, unless it sets one itself; where the
    sequence axis is 1, methods are one."""
    sizes = [(base.sequence_size, base.ring_parallel_size)]
    if base.sequence_parallel_size == 0 and base.ring_parallel_size == 1:
        divisors = [n for n in range(1, base.world_size + 1) if base.world_size % n == 0]
        sizes = [(s, r) for s in divisors for r in divisors if base.world_size % (s * r) == 0]
    for sequence, ring in sizes:
        for method in METHODS if sequence > 1 else ("ulysses",):
            run = replace(
                plan.by_method(method, base),
                sequence_parallel_size=sequence,
                ring_parallel_size=ring,
            )
            if not options.refusal(run):
                yield run


def fitting(run: RunConfig) -> Choice | None:
    """The run with the fewest tricks that make it fit."""
    first, *between, last = ladder(run)
    if choice := _if_it_fits(first):
        return choice
    # All tricks leave the least on the GPU; if the host is what they lack, fewer may do.
    most = predicted(last)
    if most.need.limit == "GPU":
        return None
    choices = filter(None, map(_if_it_fits, between))
    return next(choices, None if most.need.limit else most)


def _if_it_fits(run: RunConfig) -> Choice | None:
    shallow = _counted(run, _depths(run)[0])
    if plan.need(run, shallow[0]).limit:  # and more blocks take more
        return None
    choice = _at_depth(run, shallow)
    return None if choice.need.limit else choice


def predicted(run: RunConfig) -> Choice:
    """What a run of any depth takes."""
    return _at_depth(run, _counted(run, _depths(run)[0]))


def _depths(run: RunConfig) -> tuple[int, int]:
    """Blocks of the two shallow runs."""
    few, more = (min(run.architecture.num_hidden_layers, n) for n in plan.SHALLOW)
    return few, more


def _at_depth(run: RunConfig, shallow: tuple[int, dict[str, float]]) -> Choice:
    """The whole run, of what the shallower of its two runs takes."""
    layers, (few, more) = run.architecture.num_hidden_layers, _depths(run)
    (need, parts), (deeper, longer) = shallow, _counted(run, more)
    times = (layers - few) / max(1, more - few)

    def at_depth(a: float, b: float) -> float:
        return a + (b - a) * times

    return Choice(
        run,
        plan.need(run, round(at_depth(need, deeper))),
        {part: at_depth(parts[part], longer[part]) for part in PARTS},
    )


def _counted(run: RunConfig, layers: int) -> tuple[int, dict[str, float]]:
    """Memory of the heaviest rank and times of the slowest, of so many blocks."""
    shallow = replace(run, model=replace(run.model, num_hidden_layers=layers))
    counted = predict.count(shallow)
    columns = predict.columns(shallow, counted)
    return counted.peak.bytes, {part: columns[part] for part in PARTS}
