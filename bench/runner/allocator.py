"""Settings of PyTorch's CUDA allocators."""

from __future__ import annotations

import os

from odysseus.config.run import RunConfig

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def configure_allocator(run: RunConfig) -> str:
    """Tell PyTorch's CUDA allocators what a run wants, unless the user has told them something;
    the settings in force. Call it before anything touches CUDA.

    Page-locked memory would be rounded up to powers of two, up to twice what offloading counts.
    """
    wanted = ["expandable_segments:True"] * run.expandable_segments
    wanted += ["pinned_max_round_threshold_mb:1"] * run.offloads
    if wanted and not allocator_settings():
        os.environ[_ALLOCATOR[1]] = ",".join(wanted)
    return allocator_settings()


def allocator_settings() -> str:
    """What the environment tells PyTorch's allocator: CUDA's own variable goes first."""
    return next((os.environ[name] for name in _ALLOCATOR if name in os.environ), "")
