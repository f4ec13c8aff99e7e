"""Tiles: how well the tiles of a kernel's output fill a GPU's multiprocessors.

A multiprocessor computes one tile at a time, so a kernel whose tiles are not a multiple of the
multiprocessors leaves some of them idle in its last round (NVIDIA, Matrix Multiplication Background
User's Guide, "Tile Quantization" and "Wave Quantization").

The constants of matmuls were fitted to open measurements of single matmuls on three GPUs, half of
the shapes for the fit and half to judge it: scripts/validation/matmuls.py, docs/validation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil

_LARGE = (256, 128), (128, 256)
_SMALL = (128, 128), (256, 64), (64, 256), (128, 64), (64, 128)
"""Rows and columns of the tiles that a library chooses from."""


@dataclass(frozen=True)
class Tiling:
    """The cost of a matmul's tiles.

    Args:
        small_rate: Rate of small tiles as a share of the large ones'.
        fill: Elements of the inner size that a tile could compute in the time that it takes to fill
            its pipeline and to store its result.
        whole_rounds: Share of the idle part of the last round that is lost; the rest is won back
            by cutting the inner size of the last tiles.
    """

    small_rate: float
    fill: float
    whole_rounds: float


FITTED = Tiling(small_rate=0.8, fill=90, whole_rounds=0.2)


@cache
def matmul_s(
    rows: int,
    columns: int,
    inner: int,
    flops_per_s: float,
    multiprocessors: int,
    tiling: Tiling = FITTED,
) -> float:
    """Return the seconds of a matmul on a GPU, with the tiles that take the least time.

    Args:
        flops_per_s: Rate of a matmul whose tiles fill the GPU, with a long inner size.
        multiprocessors: Number of the GPU's multiprocessors.
    """

    def seconds(height: int, width: int, share: float) -> float:
        rounds = ceil(rows / height) * ceil(columns / width) / multiprocessors
        lost = tiling.whole_rounds
        taken = (1 - lost) * max(rounds, 1) + lost * ceil(rounds)
        work = 2 * height * width * multiprocessors * (inner + tiling.fill)
        return taken * work / (flops_per_s * share)

    large = min(seconds(*tile, 1.0) for tile in _LARGE)
    return min(large, *(seconds(*tile, tiling.small_rate) for tile in _SMALL))


@cache
def attention_share(
    heads: int, tokens: int, causal: bool, rows: int, multiprocessors: int
) -> float:
    """Return the rate of attention as a share of its rate with many heads.

    A block of threads computes some rows of one head. Under a causal mask one of a head's blocks
    computes all its columns, and takes longest: with few heads the GPU waits for it, and half as
    long again until its multiprocessors are full and until they are empty. The form was found on
    causal attention at 4,096 tokens on B200 with 4 to 128 heads (SimuMax): rates divided by
    this share are within 11 % of their mean in 26 forwards, and within 21 % in 18 backwards of
    heads of 128 elements.

    Args:
        heads: Heads of all samples.
        tokens: Rows of one head: queries in forward, keys in backward.
        rows: Rows of one block of threads; 0 if the share is 1 always.
        multiprocessors: Number of the GPU's multiprocessors; 0 likewise.
    """
    if not rows or not multiprocessors:
        return 1.0
    blocks = ceil(tokens / rows)
    longest = blocks if causal else 1
    mean = heads * (blocks * (blocks + 1) / 2 if causal else blocks) / multiprocessors
    return mean / (max(mean, longest) + longest / 2)
