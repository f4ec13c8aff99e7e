"""Collectives of a step as terms, and their sum: the bytes that one rank sends."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from bench.meters.traffic import COLLECTIVES, PURPOSES, bytes_sent


@dataclass(frozen=True)
class Term:
    """`count` collectives of one size on one group, in one optimizer step.

    Attributes:
        size_bytes: Bytes of the whole (gathered) tensor; for all_to_all and p2p, of this rank's.
        ranks: Size of the group.
    """

    collective: str
    purpose: str
    count: int
    size_bytes: int | Fraction
    ranks: int

    @property
    def bytes(self) -> Fraction:
        return self.count * bytes_sent(self.collective, self.size_bytes, self.ranks)


@dataclass(frozen=True)
class Traffic:
    """Traffic of one rank in one optimizer step."""

    terms: tuple[Term, ...]

    def bytes(self, *, collective: str = "", purpose: str = "") -> int:
        """Return the bytes of the matching terms, rounded once."""
        return round(
            sum(
                term.bytes
                for term in self.terms
                if collective in ("", term.collective) and purpose in ("", term.purpose)
            )
        )

    @property
    def total(self) -> int:
        return self.bytes()

    @property
    def columns(self) -> dict[str, int]:
        """The same columns that the traffic meter fills."""
        return (
            {"comm_bytes_total": self.total}
            | {f"comm_bytes_{c}": self.bytes(collective=c) for c in COLLECTIVES}
            | {f"comm_bytes_{p}": self.bytes(purpose=p) for p in PURPOSES}
            | {"comm_calls_total": sum(t.count for t in self.terms)}
        )
