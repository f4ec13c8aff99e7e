"""The target of a dry run: a GPU or a CPU, its attention kernel and its clock."""

from __future__ import annotations

from bench.hardware import profile_file
from bench.simulator.cost_model import Clock
from odysseus.config.groups import DryRun
from odysseus.config.run import RunConfig


def on_gpu(run: DryRun) -> bool:
    """Whether a dry run is for a GPU."""
    return bool(run.hardware) and profile_file.find(run.hardware).device == "cuda"


def attention_of(run: RunConfig) -> str:
    """Return the name of the kernel that a dry run computes attention with."""
    if not on_gpu(run):
        return "sdpa"
    asked = run.model.attn_implementation
    return "flash_attention_2" if asked in ("auto", "sdpa") else asked


def clock(run: RunConfig) -> Clock | None:
    """Return the clock of the run's profile; None if it has no speeds."""
    profile = profile_file.find(run.hardware) if run.hardware else None
    if profile is None or profile.speeds is None:
        return None
    return Clock(profile.speeds, attention_of(run), profile.ranks_per_node(run.world_size))
