"""Settings of PyTorch's allocators of GPU memory and page-locked host memory."""

from __future__ import annotations

import os

import torch

from odysseus.config.run import RunConfig

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def configure_allocator(run: RunConfig) -> str:
    """Set up PyTorch's CUDA allocators for a run, unless the user has. Return the settings in
    force. Call it before anything uses CUDA.

    Without it, page-locked memory is rounded up to powers of two, up to twice what offloading
    counts. An environment variable would come too late: a forked rank has imported PyTorch.
    """
    wanted = ["expandable_segments:True"] * run.expandable_segments
    wanted += ["pinned_max_round_threshold_mb:1"] * run.offloads
    if wanted and not users_settings():
        torch._C._accelerator_setAllocatorSettings(",".join(wanted))
    return settings_in_force()


def users_settings() -> str:
    """The allocator settings in the environment; the variable with CUDA in its name has
    priority."""
    return next((os.environ[name] for name in _ALLOCATOR if name in os.environ), "")


def settings_in_force() -> str:
    """The settings that PyTorch's allocators go by in this process."""
    return torch._C._accelerator_getAllocatorSettings()
