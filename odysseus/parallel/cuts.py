"""The weights that a method cuts, and a rank's place among the ranks that share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BY_EXPERT = -1
"""The dimension of a cut that leaves tensors whole and shares out experts."""


@dataclass(frozen=True)
class Place:
    """A rank's place on the axis that cuts some weights: `rank` of `size`."""

    size: int = 1
    rank: int = 0


@dataclass(frozen=True)
class Cuts:
    """The weights that are cut, and a rank's places on the axes that cut them.

    Attributes:
        dimensions: The dimension along which each weight is cut, by its name in a block
            (:meth:`odysseus.method.Method.cuts`).
        tensor: The place on the axis that cuts tensors.
        experts: The place on the axis that shares out experts.
    """

    dimensions: Mapping[str, int] = field(default_factory=dict)
    tensor: Place = Place()
    experts: Place = Place()

    def place(self, dimension: int) -> Place:
        """The rank's place on the axis that cuts along a dimension."""
        return self.experts if dimension == BY_EXPERT else self.tensor


WHOLE = Cuts()
"""No weight is cut."""
