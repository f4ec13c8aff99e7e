"""Shares of the rows that each expert gets in a dry run, where no router decides.

E experts, K experts of a token. A token's experts differ, so that none gets more than 1/K of all
rows.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise
from math import isfinite
from pathlib import Path

BALANCED = "balanced"
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
    if load == "zipf":
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


def rows_of_ranks(rows: int, shares: Shares, ranks: int) -> list[int]:
    """Return the rows of each rank's experts, of which all ranks have equally many."""
    of_experts, each = rows_of(rows, shares), len(shares) // ranks
    return [sum(of_experts[at : at + each]) for at in range(0, len(shares), each)]


def _zipf(experts: int, per_token: int) -> Shares:
    """The k-th expert gets a k-th of what the first would; the first ones that would get more than
    every token's row get just these."""
    most, full = Fraction(1, per_token), 0
    while True:
        weights = [Fraction(1, k) for k in range(full + 1, experts + 1)]
        unit = (1 - full * most) / sum(weights)
        if unit * weights[0] <= most:
            return (most,) * full + tuple(unit * weight for weight in weights)
        full += 1


def _numbers(file: str) -> list[Fraction]:
    """Return the numbers of a file, separated by commas, blanks or ends of lines."""
    valid = "valid: balanced, zipf, or a file of numbers that are not negative"
    try:
        found = [float(word) for word in Path(file).read_text().replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise ValueError(f"router_load = {file} cannot be read: {error}; {valid}") from None
    if not all(isfinite(number) and number >= 0 for number in found) or not any(found):
        raise ValueError(f"router_load = {file} has other numbers, or only zeros; {valid}")
    return [Fraction(number) for number in found]
