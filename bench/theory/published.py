"""Published cost tables, and the table that a count of the real collectives gives instead."""

from __future__ import annotations

import pandas as pd

# github.com/feifeibear/Odysseus-Transformer, README, first version.
ODYSSEUS_FIRST = pd.DataFrame(
    [
        ("TP", "2 AllReduce", "4 O(Ld)", "0", "0", "full", "1/N"),
        ("TP-SP", "4 RS + 4 AG", "4 O(Ld)", "0", "0", "1/N", "1/N"),
        ("Ulysses+ZeRO3", "4 All2All", "4 O(Ld)", "AllReduce", "4 O(d2) + 2 O(di)", "1/N", "1/N"),
        ("Odysseus+ZeRO3", "2 RS + 2 AG", "2 O(Ld)", "AllReduce (FFN)", "2 O(di)", "1/N", "1/N"),
    ],
    columns=[
        "method",
        "activations",
        "volume",
        "gradients",
        "volume ",
        "act. mem.",
        "par. mem.",
    ],
)

# The same README in June 2024.
ODYSSEUS_2024 = pd.DataFrame(
    [
        ("TP", "2 AllReduce", "8 O(Ld)", "0", "0"),
        ("TP-SP", "6 RS + 4 AG", "10 O(Ld)", "0", "0"),
        ("Ulysses+ZeRO3", "8 All2All", "8 O(Ld)/N", "RS + 2AG (all)", "4 O(d2) + 3 O(di)"),
        ("Ring+ZeRO3", "P2P", "4 O(Ld)", "RS + 2AG (all)", "4 O(d2) + 3 O(di)"),
        ("Odysseus+ZeRO3", "3 RS + 2 AG", "5 O(Ld)", "RS + 2AG (MLP)", "3 O(di)"),
    ],
    columns=["method", "activations", "volume", "parameters, gradients", "volume "],
)

# Per block, forward and backward, without checkpointing; elements that one rank sends, each
# times (N-1)/N. g = kv heads / query heads, at least N / query heads; MLP with three matrices.
DERIVED = pd.DataFrame(
    [
        ("tp", "4 AllReduce", "8 Ld", "-", "0"),
        ("tp_sp", "6 AG + 4 RS", "10 Ld", "-", "0"),
        ("tp_sp --regather false", "4 AG + 4 RS", "8 Ld", "-", "0"),
        ("ulysses", "4 All2All", "4(1+g) Ld/N", "2AG + RS (all)", "6(1+g) d2 + 9 di"),
        ("odysseus", "3 AG + 2 RS", "5 Ld", "2AG + RS (MLP)", "9 di"),
        ("odysseus --regather false", "2 AG + 2 RS", "4 Ld", "2AG + RS (MLP)", "9 di"),
        (
            "ulysses+tp_sp",
            "4 All2All + 3 AG + 2 RS",
            "4(1+g) Ld/N + 5 Ld",
            "2AG + RS (attention)",
            "6(1+g) d2",
        ),
    ],
    columns=["method", "activations", "volume", "parameters, gradients", "volume "],
)

# As above, for --ring_backend; N ranks of the sequence axis share the kv heads. Gradients of keys
# and values, 2g Ld/N of it, travel in at least fp32.
DERIVED_RING = pd.DataFrame(
    [
        ("native", "3(R-1) P2P", "6g Ld/N"),
        ("allgather", "2 AG + 1 RS", "6g Ld/N"),
    ],
    columns=["ring_backend", "activations", "volume"],
)

FINDINGS = """\
- The two published tables contradict each other: 4, 4, 4, 2 times Ld became 8, 10, 8/N, 5.
- TP: "2 AllReduce" counts one direction and its 8 Ld both; forward and backward make 4.
- TP-SP and Odysseus (2024): reduce-scatters and all-gathers are swapped. A half-block whose
  gathered input is not kept makes 3 all-gathers and 2 reduce-scatters (arXiv 2205.05198, 4.2.2).
- Ulysses moves 1/N of the sequence per rank (the first table forgets the division), and with
  grouped-query attention less: k and v count kv heads, not query heads. q, k and v travel in one
  all-to-all here, so there are 4 per block, not 8, with the same bytes.
- Ring: "4 Ld" is keys and values forward and backward; their gradients come on top (6), in fp32,
  and with grouped-query attention all of it is g times that.
- ZeRO-3 gathers weights twice and scatters gradients once: three passes, 12 d2 + 9 di with as
  many kv heads as query heads, where the 2024 table counts one and the first table also leaves
  out the gate matrix.
- Neither counts what happens outside the blocks (embedding, head, loss, norms), copies of kv
  heads fewer than ranks, or checkpointing, which repeats activation traffic and not ZeRO's.
- "Cheaper than Ulysses when L > i" does not follow: per block Odysseus sends
  (5 - 4(1+g)/N) Ld more activations and 6(1+g) d2 less weights, so it is cheaper only for
  *shorter* sequences, L below 6(1+g) d / (5 - 4(1+g)/N), whatever i is."""
