"""Predict published step times by dry runs, for the table in docs/validation.md.

python -m scripts.validation.times    2 minutes
"""

from __future__ import annotations

from dataclasses import replace

from bench.hardware.profiles import PROFILES
from bench.hardware.speeds import Points
from bench.simulator import predict, target
from bench.simulator.cost_model import Clock
from bench.simulator.program import TO_DEVICE, TO_HOST
from bench.simulator.timeline import Timeline, simulate
from odysseus.config.run import ModelOptions, OptimizerOptions, RunConfig
from scripts.validation.longest import ALL_TRICKS, ALST

ODYSSEUS = RunConfig(
    model=ModelOptions(name_or_path="llama2-7b"),
    world_size=8,
    seq_len=32768,
    dtype="bf16",
    dry_run=True,
    hardware="a100-80g",
    tiled_loss_compute=False,
)
ONE_GPU = replace(ALL_TRICKS, world_size=1, parameter_offload="cpu")
FA3 = ModelOptions(name_or_path="llama3-8b", attn_implementation="flash_attention_3")
STEPS = {
    "Odysseus repository, 32K, Odysseus": (replace(ODYSSEUS, method="odysseus"), 14.99 / 7),
    "Odysseus repository, 32K, TP-SP": (replace(ODYSSEUS, method="tp_sp"), 15.2 / 7),
    "Odysseus repository, 32K, Ulysses": (replace(ODYSSEUS, method="ulysses"), 13.76 / 7),
    "ALST, 8 GPUs, 1.1M": (replace(ALST, seq_len=1_100_000), 9 * 60 + 24),
    "ALST, 8 GPUs, 3.8M": (replace(ALL_TRICKS, seq_len=3_800_000), 6455),
    "ALST, 1 GPU, 500K": (replace(ONE_GPU, seq_len=500_000), 1010),
    "Untied Ulysses' Ulysses, 8 GPUs, 1M, FlashAttention-3": (
        replace(ALL_TRICKS, seq_len=2**20, model=FA3, optimizer=OptimizerOptions()),
        2**20 / 8 / 475,
    ),
}
"""A run and the seconds of one step that were published for it."""


def copied_in_turn_s(run: RunConfig, found: Timeline) -> float:
    """Seconds of a step that, like ALST's own code, copies block inputs while nothing else runs
    (``.cpu()`` and ``.to(device)`` in its CheckpointFunctionWithCPUOffload)."""
    size = run.local_tokens * run.architecture.hidden_size * run.compute_dtype.itemsize
    copies = [s for s in found.spans if s.op.kind in (TO_HOST, TO_DEVICE) and s.op.bytes == size]
    return found.step_s + sum(span.end_s - span.start_s for span in copies)


def as_on_h100(clock: Clock) -> Clock:
    """Clock with FlashAttention at the share of peak FLOP/s that it reaches on H100, on any GPU."""
    h100 = PROFILES["h100-80g"].speeds
    assert h100 is not None
    share = clock.speeds.peak_flops_per_s / h100.peak_flops_per_s

    def scaled(points: Points) -> Points:
        return tuple((keys, share * rate) for keys, rate in points)

    attention = {
        name: replace(of, forward=scaled(of.forward), backward=scaled(of.backward))
        for name, of in h100.attention.items()
    }
    return replace(clock, speeds=replace(clock.speeds, attention=attention))


def main() -> None:
    for name, (run, published) in STEPS.items():
        counted, clock = predict.count(run), target.clock(run)
        found = predict.timeline(run, counted)
        assert found, "these profiles have speeds"
        assert clock
        split = {part: f"{seconds:.2f}" for part, seconds in found.split_s().items()}
        error = found.step_s / published - 1
        print(f"{name}: {published:.2f} s published, {found.step_s:.2f} ({error:+.1%}), {split}")
        if run.hardware != "h100-80g":
            as_there = simulate(counted.program, as_on_h100(clock)).step_s
            print(f"  attention as on H100: {as_there:.2f} s ({as_there / published - 1:+.1%})")
        if name.startswith("ALST"):
            in_turn = copied_in_turn_s(run, found)
            print(f"  copies not hidden: {in_turn:.2f} ({in_turn / published - 1:+.2%})")


if __name__ == "__main__":
    main()
