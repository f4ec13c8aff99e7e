"""Advice, printed before a run starts, on settings that work but could be better."""

from __future__ import annotations

import torch

from bench.runner import host_limit
from bench.runner.allocator import users_settings
from bench.simulator import target
from odysseus.config import advice as of_options
from odysseus.config.groups import Execution
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import node_limit_bytes


def advice(run: RunConfig, device: torch.device) -> list[str]:
    """Advice on the sequence length, CUDA's allocator, host memory and links: one line for each
    that applies."""
    return [
        *of_options.advice(run),
        *_on_allocator(run, device),
        *_on_host_memory(run),
        *_on_links(run),
    ]


def _on_allocator(run: Execution, device: torch.device) -> list[str]:
    settings = users_settings()
    wanted = "expandable_segments:True"
    if device.type != "cuda" or wanted in settings or (run.expandable_segments and not settings):
        return []
    setting = f"PYTORCH_ALLOC_CONF is {settings!r}" if settings else "expandable_segments is false"
    return [f"{setting}; long sequences fragment CUDA memory less with {wanted}"]


def _on_host_memory(run: RunConfig) -> list[str]:
    need, limit = host_limit.node_bytes(run), node_limit_bytes(run)
    if not limit * 3 // 4 < need <= limit:
        return []
    return [
        f"offloading takes {need} of the {limit} bytes of host memory that it may take on this "
        f"node; {host_limit.longest(run)}"
    ]


def _on_links(run: RunConfig) -> list[str]:
    known = target.clock(run)
    most = max((link.ranks for link in known.speeds.links), default=0) if known else 0
    if not 0 < most < run.world_size:
        return []
    return [
        f"{run.hardware} was calibrated on groups of up to {most} ranks; collectives of more are "
        "taken to have the same bandwidth"
    ]
