"""The target of a dry run: a GPU or a CPU, its attention kernel and its clock."""

from __future__ import annotations

from bench.hardware import profile_file
from bench.hardware.speeds import Speeds
from bench.simulator.cost_model import Clock
from odysseus.config.groups import DryRun
from odysseus.config.run import RunConfig

_USUAL = "flash_attention_2"


def on_gpu(run: DryRun) -> bool:
    """Whether a dry run is for a GPU."""
    return bool(run.hardware) and profile_file.find(run.hardware).device == "cuda"


def attention_of(run: RunConfig) -> str:
    """Return the name of the kernel that a dry run computes attention with.

    Nobody knows which kernels will be installed: auto and sdpa on a GPU are the kernel that the
    profile has first, FlashAttention-2 of a built-in one.
    """
    if not on_gpu(run):
        return "sdpa"
    asked = run.model.attn_implementation
    if asked not in ("auto", "sdpa"):
        return asked
    speeds = profile_file.find(run.hardware).speeds
    return usual_attention(speeds) if speeds else _USUAL


def usual_attention(speeds: Speeds) -> str:
    """Return the name of the attention kernel that a profile has first."""
    return next(iter(speeds.attention), _USUAL)


def clock(run: RunConfig) -> Clock | None:
    """Return the clock of the run's profile; None if it has no speeds."""
    profile = profile_file.find(run.hardware) if run.hardware else None
    if profile is None or profile.speeds is None:
        return None
    return Clock(profile.speeds, attention_of(run), profile.ranks_per_node(run.world_size))
