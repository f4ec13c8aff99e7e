"""Shares of the rows that each expert gets in a dry run, where no router decides.

E experts, K experts of a token. A token's experts differ, so that none gets more than 1/K of all
rows.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import accumulate, pairwise
from math import isfinite
from os.path import isfile  # false for a name that is too long; pathlib raises
from pathlib import Path

BALANCED, _ZIPF = "balanced", "zipf"
_MOST_BYTES = 2**20
Shares = tuple[Fraction, ...]
"""Each expert's share of all rows; they add up to 1."""


def shares(load: str, experts: int, per_token: int) -> Shares:
    """Return the shares that a value of `router_load` stands for.

    Args:
        load: balanced, zipf, or a file with a number for each expert: its share, or its rows.
        experts: E.
        per_token: K.

    Raises:
        ValueError: the file cannot be read, or its numbers are not those of E experts.
    """
    if load == BALANCED:
        return (Fraction(1, experts),) * experts
    if load == _ZIPF:
        return _zipf(experts, per_token)
    numbers = _numbers(load)
    if len(numbers) != experts:
        raise ValueError(
            f"router_load = {load} has {len(numbers)} numbers; valid: {experts}, one for each of "
            "model.num_experts"
        )
    total = sum(numbers)
    for expert, number in enumerate(numbers):
        if number * per_token > total:
            raise ValueError(
                f"router_load = {load} gives expert {expert} {float(number / total):.4g} of all "
                f"rows; valid: up to 1/{per_token}, as the {per_token} experts of a token differ"
            )
    return tuple(number / total for number in numbers)


def rows_of(rows: int, shares: Shares) -> list[int]:
    """Return the rows of each expert, whole numbers: of any first few experts together, their share
    of the rows, rounded down."""
    ends = [int(rows * share) for share in accumulate(shares)]
    return [end - start for start, end in pairwise([0, *ends])]


def of_ranks(shares: Shares, ranks: int) -> Shares:
    """Return each rank's share of the rows; all ranks have equally many experts."""
    each = len(shares) // ranks
    return tuple(sum(shares[at : at + each], Fraction()) for at in range(0, len(shares), each))


def rows_of_ranks(rows: int, shares: Shares, ranks: int) -> list[int]:
    """Return the rows of each rank's experts, rounded as :func:`rows_of` does."""
    return rows_of(rows, of_ranks(shares, ranks))


def digest(load: str) -> str:
    """Return the first 12 digits of a file's SHA-256; empty for a name, or without a file."""
    if load in (BALANCED, _ZIPF) or not isfile(load):
        return ""
    return hashlib.sha256(Path(load).read_bytes()).hexdigest()[:12]


def _zipf(experts: int, per_token: int) -> Shares:
    """Return shares in proportion to 1/k, none above 1/K; what is cut off goes to the other experts
    in the same proportion."""
    most, full = Fraction(1, per_token), 0
    while True:
        weights = [Fraction(1, k) for k in range(full + 1, experts + 1)]
        unit = (1 - full * most) / sum(weights)
        if unit * weights[0] <= most:
            return (most,) * full + tuple(unit * weight for weight in weights)
        full += 1


def _numbers(file: str) -> list[Fraction]:
    """Return the numbers of a file, separated by commas, blanks or ends of lines."""
    path, valid = Path(file), "valid: balanced, zipf, or a file of numbers that are not negative"
    if not isfile(file):  # a device may have no end
        raise ValueError(f"router_load = {file} is no file; {valid}")
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"it has {size} bytes, more than {_MOST_BYTES}")
        numbers = [_number(word) for word in path.read_text().replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise ValueError(f"router_load = {file} cannot be read: {error}; {valid}") from None
    if numbers and not any(numbers):
        raise ValueError(f"router_load = {file} has only zeros; {valid}")
    return numbers


def _number(word: str) -> Fraction:
    """Return a number of a file, exactly."""
    rounded = float(word)
    if not isfinite(rounded) or rounded < 0:
        raise ValueError(f"{word!r} is negative or not finite")
    return Fraction(word) if rounded else Fraction()  # the exact one of 1e-999999999 takes ages
