"""A node of four small GPUs, and a run that is planned for it in a moment."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import yaml

from bench.hardware import profiles
from odysseus.config.run import ModelOptions, RunConfig

SMALL = profiles.Hardware(
    memory_bytes=48 * 2**20,
    context_bytes=2**20,
    nccl_bytes=2**20,
    workspace_bytes=2**20,
    gpus_per_node=4,
    host_memory_bytes=2**30,
)
MODEL = ModelOptions(num_hidden_layers=7, head_dim=32)


def write_profile(folder: Path) -> str:
    """Write the node's profile into a folder, as a user would; return the file's name."""
    file = folder / "node.yml"
    file.write_text(yaml.safe_dump(asdict(SMALL)))
    return str(file)


def planned_run(hardware: str) -> RunConfig:
    """Return the run on four ranks of a profile."""
    return RunConfig(model=MODEL, world_size=4, dtype="bf16", dry_run=True, hardware=hardware)
