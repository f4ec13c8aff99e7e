"""Names of methods as pairs of an attention and an MLP.

A pair is written ``ATTENTION+MLP``. Five pairs have names of their own.
"""

from __future__ import annotations

from typing import NamedTuple

ATTENTIONS = ("tp", "tp_sp", "ulysses", "local", "tsp")
MLPS = ("tp", "tp_sp", "zero", "tsp", "expert")
OWN = "own"
"""The option that leaves a method its own attention or MLP."""


class Parts(NamedTuple):
    """Names of a method's attention and MLP; both empty for a peer or a file."""

    attention: str
    mlp: str


NAMED = {
    "tp": Parts("tp", "tp"),
    "tp_sp": Parts("tp_sp", "tp_sp"),
    "ulysses": Parts("ulysses", "zero"),
    "odysseus": Parts("tp_sp", "zero"),
    "tsp": Parts("tsp", "tsp"),
}
"""The methods with names of their own, and their pairs."""


def parts_of(method: str) -> Parts:
    """Return a method's attention and MLP; both empty for a peer or a file."""
    attention, _, mlp = method.partition("+")
    is_pair = attention in ATTENTIONS and mlp in MLPS
    return NAMED.get(method, Parts(attention, mlp) if is_pair else Parts("", ""))


def name_of(attention: str, mlp: str) -> str:
    """Return the method that consists of an attention and an MLP."""
    named = {pair: name for name, pair in NAMED.items()}
    return named.get(Parts(attention, mlp), f"{attention}+{mlp}")


def with_parts(method: str, attention: str, mlp: str) -> str:
    """Return the method with an attention and an MLP, where these are not :data:`OWN`.

    Raises:
        ValueError: only one is replaced, and the method does not consist of parts.
    """
    own = parts_of(method)
    if attention == mlp == OWN and not own.attention:
        return method
    if OWN in (attention, mlp) and not own.attention:
        given = f"mlp = {mlp}" if attention == OWN else f"attention = {attention}"
        raise ValueError(
            f"{given} cannot replace that of method = {method}; valid: one of {', '.join(NAMED)}, "
            "or both parts"
        )
    return name_of(own.attention if attention == OWN else attention, own.mlp if mlp == OWN else mlp)


def spread_pairs(experts: bool) -> list[str]:
    """Return the pairs of :func:`every_pair` that spread a block over ranks: all without local.

    Args:
        experts: Whether the model has experts: MLP tsp is not for these, and MLP expert only.
    """
    unfit = "tsp" if experts else "expert"
    return [name for name in every_pair() if "local" not in name and parts_of(name).mlp != unfit]


def every_pair() -> list[str]:
    """Return all methods that are pairs, those with names of their own first."""
    pairs = [name_of(attention, mlp) for attention in ATTENTIONS for mlp in MLPS]
    return sorted(pairs, key=lambda name: [*NAMED, name].index(name))
