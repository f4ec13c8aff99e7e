"""The counts of a script's step, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from bench.meters.memory import KINDS
from bench.scripted.steps import Counted
from bench.scripted.values import Values
from bench.scripted.world import World
from bench.simulator.cost_model import Clock
from bench.simulator.timeline import simulate

_MIB = 2**20


def numbers(world: World, counted: Counted, values: Values, clock: Clock | None) -> dict[str, Any]:
    """Return the counts of a step.

    Args:
        values: What the script asked for.
        clock: Clock of the hardware profile, to predict the step's time.
    """
    sent: Counter[str] = Counter()
    for call in counted.calls:
        sent[call.collective] += call.bytes_sent  # pyrefly: ignore
    calls = Counter(call.collective for call in counted.calls)
    results: dict[str, Any] = {
        "world": asdict(world),
        "steps": counted.steps,
        "counted": "the whole script" if counted.whole else f"step {counted.steps}",
        "comm_bytes": {name: round(sent[name]) for name in sorted(sent)},
        "comm_calls": dict(sorted(calls.items())),
        "peak_memory_bytes": counted.peak.bytes,
        "peak_memory_by_kind": {kind: counted.peak.by_kind[kind] for kind in KINDS},
        "peak_host_bytes": counted.host.bytes,
        "matmul_flops": counted.matmul_flops,
        "attention_flops": counted.attention_flops,
        "values_asked": dict(values.asked.most_common()),
        "host_waits": dict(values.waits.most_common()),
    }
    if clock is not None:
        simulated = simulate(counted.program, clock)
        results["step_ms"] = simulated.step_s * 1e3
        results["of_step_ms"] = {name: s * 1e3 for name, s in simulated.split_s().items()}
    return results


def in_words(results: dict[str, Any], hardware: str) -> str:
    """Return the counts as lines of text."""
    world, sent, calls = results["world"], results["comm_bytes"], results["comm_calls"]
    lines = [
        f"rank {world['rank']} of {world['size']}, {world['ranks_per_node']} per node, on a "
        f"{'GPU' if world['gpu'] else 'CPU'}; optimizer steps: {results['steps']}; counted: "
        f"{results['counted']}",
        f"sent: {sum(sent.values()) / _MIB:.2f} MiB",
        *(f"  {sent[name] / _MIB:10.2f} MiB in {calls[name]:6} x {name}" for name in sent),
        f"peak memory: {results['peak_memory_bytes'] / _MIB:.1f} MiB",
        *(
            f"  {size / _MIB:10.1f} MiB {kind}"
            for kind, size in results["peak_memory_by_kind"].items()
            if size
        ),
    ]
    if results["peak_host_bytes"]:
        lines.append(f"peak of host memory: {results['peak_host_bytes'] / _MIB:.1f} MiB")
    lines.append(
        f"computed: {results['matmul_flops'] / 1e12:.3f} TFLOP in matmuls, "
        f"{results['attention_flops'] / 1e12:.3f} in attention"
    )
    if "step_ms" in results:
        parts = ", ".join(f"{name} {ms:.1f}" for name, ms in results["of_step_ms"].items())
        lines.append(f"predicted on {hardware}: {results['step_ms']:.1f} ms per step ({parts})")
    for key, what in (
        ("values_asked", "values that the script asked for, which a dry run does not have:"),
        ("host_waits", "waits of the host for the GPU, beside those for values:"),
    ):
        listed = [f"  {count:6} x {where}" for where, count in results[key].items()]
        lines += [what, *listed] if listed else []
    return "\n".join(lines)
