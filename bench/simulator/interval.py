"""The interval of a predicted step, from the errors of predictions of published steps.

The errors differ most by two things that a run says of itself: the nodes that its ranks fill, as
networks of many nodes are slower than their curves, and the tokens that a rank computes at a time,
as with few of them the host holds up the GPU.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from bench.hardware import overrides
from bench.hardware.profiles import PROFILES
from odysseus.config.run import RunConfig

GPUS_PER_NODE = 8
NODES = (1, 4, 16)
"""The most nodes of each kind; the last kind has more."""
TOKENS = (2048, 8192)
"""The least tokens of a rank in a micro step of each kind after the first, which has fewer."""
FACTORS = {
    (0, 0): (0.84, 1.79),
    (0, 1): (0.82, 1.30),
    (0, 2): (1.01, 1.16),
    (1, 0): (1.47, 2.86),
    (1, 1): (1.00, 1.25),
    (1, 2): (0.99, 1.54),
    (2, 0): (1.46, 4.67),
    (2, 1): (1.06, 1.68),
    (2, 2): (1.11, 1.91),
    (3, 0): (1.60, 10.20),
    (3, 1): (1.16, 5.64),
}
"""Published by predicted step, by :func:`kind`: the quantiles 10 % and 90 % of the rows of
results/validation.csv."""


def kind(nodes: int, tokens: float) -> tuple[int, int]:
    """Return the kind of a run on this many nodes, with this many tokens of a rank in a micro step:
    the places of both among :data:`NODES` and :data:`TOKENS`."""
    return bisect_left(NODES, nodes), bisect_right(TOKENS, tokens)


def columns(run: RunConfig, step_ms: float) -> dict[str, float]:
    """Return the columns of a predicted step's interval, in ms: the prediction times the factors of
    the run's kind. Empty for profiles in files, of which nothing is published.

    Where a kind has no published step, that of the next fewer tokens counts.
    """
    if overrides.split(run.hardware)[0] not in PROFILES:
        return {}
    nodes = -(-run.world_size // GPUS_PER_NODE)
    of_nodes, wanted = kind(nodes, run.seq_len * run.micro_batch_size / run.shards)
    of_tokens = max(t for n, t in FACTORS if n == of_nodes and t <= wanted)
    low, high = FACTORS[of_nodes, of_tokens]
    return {"step_ms_low": low * step_ms, "step_ms_high": high * step_ms}
