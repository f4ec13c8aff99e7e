"""What a step of any depth holds at most, by two shallow ones.

Every block takes as much as the one before it, so the most bytes alive while a certain unit runs,
the first block, say, or the last, lie on a straight line over the number of blocks. Which unit has
the most of all may change on the way: the last block's backward has the head's weights beside it,
the first one's the gradients of all the others.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bench.meters.memory import MemoryMeter
from odysseus.config.run import RunConfig

SHALLOW = (3, 4)
"""Blocks of the two shallow runs: the last, the first, and one between that is gathered ahead."""
_NUMBERED = re.compile(r"(.+\.)(\d+)")


def with_blocks(run: RunConfig, layers: int) -> RunConfig:
    """The run of a model with so many blocks."""
    return replace(run, model=replace(run.model, num_hidden_layers=layers))


def peak_by_place(memory: MemoryMeter, layers: int) -> dict[str, int]:
    """The most bytes alive in each unit of a run of so many blocks, of blocks in the first two and
    the last two: what lies between takes something between."""
    found: dict[str, int] = {}
    for unit, peak in memory.peak_by_unit().items():
        numbered = _NUMBERED.fullmatch(unit)
        places = [unit]
        if numbered:
            block = int(numbered[2])
            places = [f"{numbered[1]}{at}" for at in (block, block - layers) if -2 <= at <= 1]
        for place in places:
            found[place] = peak
    return found


def peak_at(layers: int, few: dict[str, int], more: dict[str, int]) -> int:
    """Bytes at the peak of a run of so many blocks.

    Args:
        few: Peaks by place of the shallower run.
        more: Those of the run with one block more; of all its blocks, if there are no others.
    """
    further = max(0, layers - SHALLOW[1])
    return max(peak + (peak - few[place]) * further for place, peak in more.items())
