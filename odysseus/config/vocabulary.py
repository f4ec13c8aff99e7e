"""Parts of a model that are cut by vocabulary, row by row, over the sequence axis.

A cut weight sends activations: every rank needs the products of all ranks' rows. A whole weight
sends parameters: ZeRO gathers it and reduces its gradient. Closed forms say which is less. Symbols
as in bench/theory/traffic.py: n ranks of the sequence axis, T tokens of a micro step on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from odysseus.config.architecture import Architecture
from odysseus.config.sizes import part_of

EMBEDDING, HEAD = "embedding", "head"
CHOICES: dict[str, Literal["embedding", "head"] | bool] = {
    "false": False,
    "true": True,
    "embedding": "embedding",
    "head": "head",
}
"""Values of ``vocab_parallel`` but auto, by their text."""
ENGINES = ("fused", "checkpoint")
"""Engines of the tiled loss that compute with some rows of the head."""


@dataclass(frozen=True, kw_only=True)
class VocabularyCut:
    """A cut of a run's vocabulary, and what decides it.

    Attributes:
        asked: The option ``vocab_parallel``.
        architecture: Sizes of the model.
        ranks: Ranks of the axis that cuts weights, n.
        axis: The option that sets them.
        world: All ranks.
        tokens: Tokens of a micro step on one such axis, T.
        replicated: Whether the stream is replicated: then the head's input is already everywhere.
        engine: Engine of the tiled loss; empty without tiles.
        width: Bytes of the compute dtype.
        reduced: Bytes of the dtype in which gradients are reduced.
    """

    asked: Literal["auto", "embedding", "head"] | bool
    architecture: Architecture
    ranks: int
    axis: str
    world: int
    tokens: int
    replicated: bool
    engine: str
    width: int
    reduced: int

    @property
    def parts_cut(self) -> tuple[str, ...]:
        """The parts, :data:`EMBEDDING` and :data:`HEAD`, that are cut.

        ``auto`` cuts a part that can be cut if that sends fewer bytes; tied parts are cut together.
        """
        if self.ranks == 1:
            return ()
        if self.asked != "auto":
            return self._parts_asked
        tied = self.architecture.tie_word_embeddings
        choices = [(EMBEDDING, HEAD)] if tied else [(EMBEDDING,), (HEAD,)]
        able = [parts for parts in choices if not self._problem(parts)]
        return sum((p for p in able if self._bytes_cut(p) < self._bytes_whole()), ())

    def check(self) -> None:
        """Raise ValueError unless the parts that the option names can be cut."""
        if self.ranks > 1 and (problem := self._problem(self._parts_asked)):
            raise ValueError(f"vocab_parallel = {str(self.asked).lower()} {problem}")

    @property
    def _parts_asked(self) -> tuple[str, ...]:
        """The parts that the option names; none for auto."""
        named = {True: (EMBEDDING, HEAD), False: (), "auto": ()}
        return named.get(self.asked, (str(self.asked),))

    def _problem(self, parts: tuple[str, ...]) -> str:
        """Say why these parts cannot be cut; empty if they can."""
        rows = self.architecture.vocab_size
        if parts and rows < self.ranks:
            return (
                f"cuts model.vocab_size = {rows} over {self.axis} = {self.ranks}; "
                f"valid: at most {rows} ranks, or vocab_parallel = false"
            )
        if len(parts) == 1 and self.architecture.tie_word_embeddings:
            return (
                "cuts one of two parts that share a weight, with model.tie_word_embeddings = true; "
                "valid: true, false, auto"
            )
        if HEAD in parts and self.engine not in ("", *ENGINES):
            return (
                f"is not for tiled_loss_engine = {self.engine}, which needs all rows of the head; "
                f"valid: tiled_loss_engine of {', '.join(ENGINES)}, or vocab_parallel = embedding"
            )
        return ""

    def _bytes_cut(self, parts: tuple[str, ...]) -> Fraction:
        """Return the bytes that the first rank sends in a micro step for parts that are cut."""
        rows = len(part_of(self.architecture.vocab_size, self.ranks, 0))
        exchanged = sum(self._exchanged_bytes(part) for part in parts)
        return exchanged + self._zero_bytes(rows, self.world // self.ranks)

    def _bytes_whole(self) -> Fraction:
        """Return the bytes that a rank sends in a micro step for one weight that is not cut."""
        return self._zero_bytes(self.architecture.vocab_size, self.world)

    def _exchanged_bytes(self, part: str) -> Fraction:
        """Return the bytes that a rank sends in a micro step for the tokens of a part that is cut.

        The embedding gathers token ids, and its output is reduce-scattered. The head gathers labels
        and, unless the stream is replicated, its input, whose gradient is reduce-scattered. Three
        numbers per token are summed (arXiv 1909.08053 §3). The checkpoint engine's forward runs
        twice.
        """
        sent = Fraction(self.ranks - 1, self.ranks) * self.tokens
        stream = sent * self.architecture.hidden_size * self.width
        if part == EMBEDDING:
            return 2 * stream + 8 * sent
        forwards = 2 if self.engine == "checkpoint" else 1
        gathered = 0 if self.replicated else (forwards + 1) * stream
        return gathered + 8 * sent + forwards * 2 * sent * 3 * max(4, self.width)

    def _zero_bytes(self, rows: int, ranks: int) -> Fraction:
        """Return the bytes of one gather of this many rows and one reduction of their gradients."""
        padded = -(-rows // ranks) * ranks * self.architecture.hidden_size
        return Fraction(ranks - 1, ranks) * padded * (self.width + self.reduced)
