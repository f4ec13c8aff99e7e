"""Odysseus: attention tensor-parallel with sequence parallelism, MLP sequence-parallel with ZeRO-3.

Stream between blocks: a sequence shard. Attention is cut by heads and communicates activations, as
in `tp_sp`. The MLP computes on the shard with whole weights and communicates weights, as in
`ulysses`.
"""

from methods import tp_sp, ulysses
from odysseus.method import ATTENTION_SPLIT, Method

METHOD = Method(
    name="odysseus",
    attention=tp_sp.attention,
    mlp=ulysses.mlp,
    split=ATTENTION_SPLIT,
    experts=True,
    positions=tp_sp.gather_positions,
)
