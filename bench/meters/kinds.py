"""Kinds of communication, named as in the columns of a row. This module does not import torch."""

from __future__ import annotations

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p")
PURPOSES = ("activation", "parameter", "gradient", "edge")
