"""``python -m bench verify``: check that a method trains like the reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench import rows
from bench.config import checks, grid
from bench.config.launched import launched_world_size
from bench.report import draw_matplotlib
from bench.report.charts import verify as verify_chart
from bench.runner import verify
from methods import label_of
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint, files


def main(parsed: Any) -> int:
    """Compare a run with its reference; return 0 if they agree, 1 if they differ or one fails.

    Raises:
        ValueError: the run cannot be started.
    """
    run, out = grid.run_config(parsed), Path(parsed.out)
    if run.dry_run:
        raise ValueError("dry_run = true has no losses to compare; valid: false")
    if parsed.reference not in verify.REFERENCES:
        raise ValueError(
            f"reference is {parsed.reference!r}; valid: {', '.join(verify.REFERENCES)}"
        )
    checks.check(run)
    _check_experts(run, parsed.reference)
    if parsed.reference == "transformers":
        checkpoint.saved_config(run)  # raises if Transformers has no such model
    checks.check_gpus(run, None)
    if launched_world_size() is not None:
        raise ValueError("verify starts its own workers; run it without torchrun or srun")
    rows.check_writable(out, verify.COLUMNS, verify.NEEDED)
    draw_matplotlib.check_beside(out)
    try:
        verdict = verify.verify(run, reference=parsed.reference)
    except RuntimeError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1
    name = title(run, parsed.reference)
    print(f"{name}\n{judgement(verdict)}", flush=True)
    steps = verdict.steps.to_csv(index=False)
    try:
        files.write(out, steps)
    except OSError as error:
        raise files.not_saved(out, steps, error) from None
    draw_matplotlib.save(
        draw_matplotlib.draw(verify_chart.overlay(verdict.steps, name)), out.with_suffix("")
    )
    return 0 if verdict.passed else 1


def _check_experts(run: RunConfig, reference: str) -> None:
    """Raise ValueError unless reference and candidate have one loss, which a model with experts
    may not have."""
    experts, balance = run.architecture.num_experts, run.architecture.router_aux_loss_coef
    if balance:
        raise ValueError(
            f"model.router_aux_loss_coef = {balance} balances each micro step, and the reference "
            "has other samples in one; valid: 0"
        )
    if experts and reference == "transformers":
        raise ValueError(
            f"reference = transformers does not support model.num_experts = {experts}, of which "
            "its weights are packed; valid: native"
        )


def title(run: RunConfig, reference: str = "native") -> str:
    """Return a title that names both runs of the comparison."""
    n, accumulated = run.sequence_size, verify.candidate_of(run).gradient_accumulation_steps
    ring = f" x ring {run.ring_parallel_size}" if run.ring_parallel_size > 1 else ""
    tensor = f" x TP {run.tensor_parallel_size}" if run.tensor_parallel_size > 1 else ""
    method = label_of(run.method)
    of_reference = f"DP {run.world_size} x SP 1 x GAS {run.gradient_accumulation_steps}"
    if reference == "transformers":
        of_reference = "plain Transformers in one process"
    axes = f"DP {run.data_parallel_size}{ring} x SP {n}{tensor}"
    return (
        f"{method}, {axes} x GAS {accumulated}, against {of_reference}: "
        f"{run.model.label}, {run.seq_len} tokens, {run.dtype}"
    )


def judgement(verdict: verify.Verdict) -> str:
    """Return the verdict in one line: the largest differences, the tolerance and its reason."""
    largest = ", ".join(f"{name} {value:.2e}" for name, value in verdict.largest.items())
    word = "agree" if verdict.passed else "DIFFER"
    return (
        f"{word} over {len(verdict.steps)} steps; largest relative difference: {largest}; "
        f"tolerance {verdict.tolerance:g} ({verdict.why})"
    )
