"""Rank methods, parallel sizes and memory tricks that fit by predicted speed, with dry runs.

Every block adds the same time and memory, so two shallow dry runs predict the whole model
(`bench/simulator/shallow.py`), unless the host holds it up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from bench.config import checks
from bench.planner.longest import by_method
from bench.planner.savings import with_savings
from bench.pool import Here, as_done
from bench.simulator import dry_run, fit, predict, shallow, target
from bench.simulator.program import Op
from bench.theory import memory as theory_memory
from methods import METHODS, label_of
from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors

_HOST_BOUND = 0.7
"""Share of a step, spent by the host on issuing it, from which on all blocks are counted."""
PARTS = ("step_ms_p50", "compute_ms", "exposed_comm_ms", "exposed_offload_ms", "idle_ms")


def ladder(run: RunConfig) -> list[RunConfig]:
    """Return the run with more and more memory tricks, in the order in which they are tried until
    it fits; those that its method refuses are left out.

    Each costs time, later ones more: a second forward of the MLP, a second forward of the block,
    copies that run beside computation, an optimizer on the host.
    """
    tiled, recomputed = ("tiled_mlp_compute",), ("activation_checkpointing",)
    offloaded = (*tiled, "activation_checkpoint_cpu_offload")
    on_host = (*offloaded, "optimizer.offload")
    steps = ((), tiled, recomputed, tiled + recomputed, offloaded, on_host)
    if checks.refusal(with_savings(run, tiled)):
        steps = [tuple(name for name in names if name not in tiled) for names in steps]
    return [with_savings(run, names) for names in dict.fromkeys(steps)]


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


def ranked(
    runs: Iterable[RunConfig], report: Callable[[str], None], executor: Executor | None = None
) -> list[Choice]:
    """The runs that fit, fastest first, each with the fewest further tricks that make it fit.

    Args:
        report: Called with one line for each run that is tried, as soon as it is known.
        executor: Where the runs are tried; by default in this process.
    """
    tried = [*runs]
    choices: dict[int, Choice] = {}
    for number, choice in as_done(executor or Here(), fitting, tried):
        fastest = max((one.tokens_per_s_per_gpu for one in choices.values()), default=0.0)
        report(in_words(tried[number], choice, fastest))
        if choice:
            choices[number] = choice
    return fastest_first([choices[number] for number in sorted(choices)])


def fastest_first(choices: list[Choice]) -> list[Choice]:
    """Sort choices by speed; the first of equally fast ones stays first."""
    return sorted(choices, key=lambda choice: -choice.tokens_per_s_per_gpu)


def in_words(run: RunConfig, choice: Choice | None, fastest: float) -> str:
    """Return the outcome of a run in one line.

    Args:
        fastest: Tokens per second and GPU of the fastest before; 0 if there is none.
    """
    name = f"{label_of(run.method)}, sequence {run.sequence_size}, ring {run.ring_parallel_size}"
    if run.tensor_parallel_size > 1:
        name += f", tensor {run.tensor_parallel_size}"
    if not choice:
        return f"{name}: does not fit"
    speed = choice.tokens_per_s_per_gpu
    best = ", the best so far" if speed > fastest else ""
    return f"{name}: {choice.tricks}, {speed:.0f} tokens/s/GPU{best}"


def layouts(base: RunConfig, methods: Sequence[str] = tuple(METHODS)) -> Iterator[RunConfig]:
    """Yield the run with every method at every size of the axes, or at the sizes that it sets. A
    tensor axis is tried only beside a sequence axis of several ranks; alone it is tp_sp. With a
    sequence axis of 1 all methods are the same, and only one is tried, unless experts are shared
    out over other ranks."""
    first = sorted(methods, key=lambda name: name != "ulysses")
    given = base.tensor_parallel_size
    sizes = [(given, base.sequence_size, base.ring_parallel_size)]
    if base.sequence_parallel_size == 0 and base.ring_parallel_size == 1:
        among = divisors(base.world_size)
        sizes = [
            (t, s, r)
            for t, s, r in product(among if given == 1 else [given], among, among)
            if base.world_size % (t * s * r) == 0 and (s > 1 or t == given)
        ]
    for tensor, sequence, ring in sizes:
        runs = (
            replace(
                by_method(method, base),
                tensor_parallel_size=tensor,
                sequence_parallel_size=sequence,
                ring_parallel_size=ring,
            )
            for method in (methods if sequence > 1 else first)
        )
        able = [run for run in runs if not checks.refusal(run)]
        if sequence == 1:
            alone = [run for run in able if run.expert_ranks == 1]
            shared_out = [run for run in able if run.expert_ranks > 1]
            able = alone[:1] + shared_out[:1]
        yield from able


def fitting(run: RunConfig) -> Choice | None:
    """The run with the fewest tricks that make it fit."""
    first, *between, last = ladder(run)
    if choice := _if_it_fits(first):
        return choice
    # All tricks together need the least GPU memory; if the host is full, fewer tricks may fit.
    if _least_need(last).limit == "GPU":
        return None
    most = _counted(last, _depths(last)[0])
    if most.need.limit == "GPU":
        return None
    choices = filter(None, map(_if_it_fits, between))
    return next(choices, None) or _if_all_fits(last, most)


def _least_need(run: RunConfig) -> fit.Need:
    """Bound a run's need from below by closed forms, without a dry run."""
    return fit.need(run, theory_memory.least_peak_bytes(run))


def _if_it_fits(run: RunConfig) -> Choice | None:
    if _least_need(run).limit:
        return None
    return _if_all_fits(run, _counted(run, _depths(run)[0]))


def _if_all_fits(run: RunConfig, few: _Shallow) -> Choice | None:
    """The run with all blocks, if it fits; more blocks need more than few."""
    if few.need.limit:
        return None
    more = _counted(run, _depths(run)[1])
    need = fit.need(run, shallow.peak_at(run.architecture.num_hidden_layers, few.peaks, more.peaks))
    return None if need.limit else _choice(run, few, more)


def predicted(run: RunConfig) -> Choice:
    """Memory and time of a run of any depth, predicted from two shallow runs."""
    few, more = (_counted(run, blocks) for blocks in _depths(run))
    return _choice(run, few, more)


@dataclass(frozen=True)
class _Shallow:
    """Result of a shallow run.

    Attributes:
        run: The shallow run.
        counted: Its count.
        need: What all blocks need at least: the host memory of all, the GPU memory of these.
        peaks: Peak bytes of the heaviest rank, by unit of the model.
    """

    run: RunConfig
    counted: dry_run.Counted
    need: fit.Need
    peaks: dict[str, int]

    @cached_property
    def parts_ms(self) -> dict[str, float]:
        """Milliseconds of the slowest rank, by column of a row."""
        simulated = predict.timeline(self.run, self.counted)
        assert simulated is not None, "the profile has speeds"
        return predict.times_ms(simulated)

    @cached_property
    def host_ms(self) -> float:
        """Milliseconds for which the host of the counted rank issues operations, if nothing else
        holds it up."""
        clock = target.clock(self.run)
        assert clock is not None, "the profile has speeds"
        ops = (op for op in self.counted.program if isinstance(op, Op))
        return 1e3 * sum(map(clock.host_s, ops))


def _depths(run: RunConfig) -> tuple[int, int]:
    """The numbers of blocks of the two shallow runs."""
    few, more = (min(run.architecture.num_hidden_layers, n) for n in shallow.SHALLOW)
    return few, more


def _choice(run: RunConfig, few: _Shallow, more: _Shallow) -> Choice:
    """The run with all blocks, predicted from the shallower run and a second, deeper one."""
    layers = run.architecture.num_hidden_layers
    further = max(0, layers - shallow.SHALLOW[1])
    parts_ms = {
        part: more.parts_ms[part] + (more.parts_ms[part] - few.parts_ms[part]) * further
        for part in PARTS
    }
    # In a shallow run the host may stay ahead of the device from beginning to end.
    host_ms = more.host_ms + (more.host_ms - few.host_ms) * further
    if further and host_ms > _HOST_BOUND * parts_ms["step_ms_p50"]:
        parts_ms = _counted(run, layers).parts_ms
    need = fit.need(run, shallow.peak_at(layers, few.peaks, more.peaks))
    return Choice(run, need, parts_ms)


def _counted(run: RunConfig, layers: int) -> _Shallow:
    few = shallow.with_blocks(run, layers)
    counted = predict.count(few, only_memory=True)
    peaks = shallow.peak_by_unit(counted.memory, layers)
    return _Shallow(few, counted, fit.need(run, max(peaks.values())), peaks)
