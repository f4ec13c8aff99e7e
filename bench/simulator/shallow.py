"""The peak of a model of any depth, from dry runs of two shallow ones.

Every block takes as much memory as the one before it. So the most bytes alive while one unit runs
(the first block, for example, or the last) grow linearly with the number of blocks. The unit with
the highest peak may change with depth: the head's weights are alive during the last block's
backward, the gradients of all other blocks during the first block's.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bench.meters.memory import MemoryMeter
from odysseus.config.run import RunConfig

SHALLOW = (3, 4)
"""Blocks of the two shallow runs: the first, the last, and between them one that is prefetched."""
_NUMBERED = re.compile(r"(.+\.)(\d+)")


def with_blocks(run: RunConfig, layers: int) -> RunConfig:
    """Return the run with a model of this number of blocks."""
    return replace(run, model=replace(run.model, num_hidden_layers=layers))


def peak_by_unit(memory: MemoryMeter, layers: int) -> dict[str, int]:
    """Return the most bytes alive in each ZeRO unit of a run of this number of blocks.

    Blocks are named from both ends: the first two as 0 and 1, the last two as -2 and -1. Peaks of
    the blocks between them lie between those, and are left out.
    """
    peaks: dict[str, int] = {}
    for unit, peak in memory.peak_by_unit().items():
        numbered = _NUMBERED.fullmatch(unit)
        names = [unit]
        if numbered:
            block = int(numbered[2])
            names = [f"{numbered[1]}{at}" for at in (block, block - layers) if -2 <= at <= 1]
        for name in names:
            peaks[name] = peak
    return peaks


def peak_at(layers: int, few: dict[str, int], more: dict[str, int]) -> int:
    """Return bytes at the peak of a run of this number of blocks.

    Args:
        few: Peaks by unit of the shallower run.
        more: Peaks by unit of the run with one block more, which is the whole model if that has no
            more blocks.
    """
    further = max(0, layers - SHALLOW[1])
    return max(peak + (peak - few[unit]) * further for unit, peak in more.items())
