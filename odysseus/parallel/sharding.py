"""The map from every parameter on every rank to its part of a Hugging Face tensor.

One map serves initialisation, gradient norms, checkpoints and tests. It is plain arithmetic on
names and sizes, so a rank can compute it for any other rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from odysseus.config.architecture import Architecture
from odysseus.config.sizes import part_of
from odysseus.parallel.cuts import BY_EXPERT, WHOLE, Cuts

PACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_ROWS_PER_DRAW = 256
_MOST_THREADS = 16


@dataclass(frozen=True)
class Piece:
    """A rectangle of one Hugging Face tensor.

    Attributes:
        name: The tensor's name.
        shape: The whole tensor's shape.
        rows: Its rows [start, stop) that this piece holds.
        columns: Its columns [start, stop); of a vector, [0, 1).
        owned: Whether this rank counts the piece; of several copies, one rank's is owned.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]
    owned: bool = True

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0]

    def of(self, whole: Tensor) -> Tensor:
        """A view of the piece's rectangle of the whole tensor."""
        rows = whole[slice(*self.rows)]
        return rows if rows.dim() == 1 else rows[:, slice(*self.columns)]


@cache
def huggingface_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor of the model, by its Hugging Face name (with experts, that
    of Qwen3-MoE); not to be changed."""
    a, hidden = architecture, architecture.hidden_size
    queries, keys = a.query_width, a.key_value_width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocab_size, hidden)}
    for layer in range(a.num_hidden_layers):
        block = f"model.layers.{layer}."
        for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{block}self_attn.{name}.weight"] = (width, hidden)
            if a.attention_bias:
                shapes[f"{block}self_attn.{name}.bias"] = (width,)
        shapes[f"{block}self_attn.o_proj.weight"] = (hidden, queries)
        if a.attention_output_bias:
            shapes[f"{block}self_attn.o_proj.bias"] = (hidden,)
        if a.use_qk_norm:
            shapes[f"{block}self_attn.q_norm.weight"] = (a.head_dim,)
            shapes[f"{block}self_attn.k_norm.weight"] = (a.head_dim,)
        for mlp, inner in _mlp_widths(a).items():
            for name, shape in (
                ("gate_proj", (inner, hidden)),
                ("up_proj", (inner, hidden)),
                ("down_proj", (hidden, inner)),
            ):
                shapes[f"{block}{mlp}.{name}.weight"] = shape
                if a.mlp_bias:
                    shapes[f"{block}{mlp}.{name}.bias"] = shape[:1]
        if a.num_experts:
            shapes[f"{block}mlp.gate.weight"] = (a.num_experts, hidden)
        shapes[f"{block}input_layernorm.weight"] = (hidden,)
        shapes[f"{block}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not a.tie_word_embeddings:
        shapes["lm_head.weight"] = (a.vocab_size, hidden)
    return shapes


def _mlp_widths(a: Architecture) -> dict[str, int]:
    """The width of each MLP of a block, by its name in the block."""
    widths = {f"mlp.experts.{expert}": a.intermediate_size for expert in range(a.num_experts)}
    if a.shared_expert_intermediate_size:
        widths["mlp.shared_experts"] = a.shared_expert_intermediate_size
    return widths or {"mlp": a.intermediate_size}


def tensors_of(parameter: str, experts: int = 1) -> list[str]:
    """The Hugging Face tensors that a parameter of this project's model packs, top row first.

    Args:
        experts: Number of experts, whose weights are one parameter.
    """
    stem, _, kind = parameter.rpartition(".")
    parent, _, leaf = stem.rpartition(".")
    paths = [f"{parent}." if parent else ""]
    if parent.endswith(".experts"):
        paths = [f"{parent}.{expert}." for expert in range(experts)]
    return [f"{path}{part}.{kind}" for path in paths for part in PACKED.get(leaf, (leaf,))]


def cut_dimension(tensor: str, split: Mapping[str, int]) -> int | None:
    """The dimension along which a method cuts a Hugging Face tensor; None if it does not.

    Every rank has the whole bias of a weight that is cut along dimension 1 (row-parallel): it is
    added once, after the sum.
    """
    stem, _, kind = tensor.rpartition(".")
    names = [name for name in stem.split(".") if not name.isdigit()]
    dimension = split.get(".".join(names[-2:]))
    return None if dimension == 1 and kind == "bias" else dimension


def cut_of(parameter: str, split: Mapping[str, int]) -> int | None:
    """The dimension along which a method cuts a parameter, by its name in this project's model, or
    one of the tensors that it packs; None if it does not."""
    cuts = (cut_dimension(tensor, split) for tensor in tensors_of(parameter))
    return next((cut for cut in cuts if cut is not None), None)


def pieces(parameter: str, architecture: Architecture, cuts: Cuts = WHOLE) -> list[Piece]:
    """The pieces that one rank's parameter consists of before ZeRO, top row to bottom row.

    Args:
        parameter: The parameter's name in this project's model, e.g.
            ``model.layers.0.self_attn.qkv_proj.weight``.
    """
    shapes, tensors = (
        huggingface_shapes(architecture),
        tensors_of(parameter, architecture.num_experts),
    )
    if cut_of(parameter, cuts.dimensions) == BY_EXPERT:
        own = part_of(len(tensors), cuts.experts.size, cuts.experts.rank)
        tensors = tensors[own.start : own.stop]
    return [_piece(name, shapes[name], architecture, cuts) for name in tensors]


def _piece(name: str, shape: tuple[int, ...], architecture: Architecture, cuts: Cuts) -> Piece:
    """The piece of a Hugging Face tensor that a rank holds some of."""
    cut, (size, rank) = cut_dimension(name, cuts.dimensions), (cuts.tensor.size, cuts.tensor.rank)
    ranges = [(0, length) for length in (*shape, 1)][:2]
    if cut is None or cut == BY_EXPERT:
        return Piece(name, shape, ranges[0], ranges[1])
    is_key_value = name.split(".")[-2] in ("k_proj", "v_proj")
    copies = max(1, size // architecture.num_key_value_heads) if is_key_value else 1
    own = part_of(shape[cut], size // copies, rank // copies)
    ranges[cut] = (own.start, own.stop)
    return Piece(name, shape, ranges[0], ranges[1], owned=rank % copies == 0)


def local_pieces(
    model: nn.Module, architecture: Architecture, cuts: Cuts = WHOLE
) -> Iterator[tuple[Piece, Tensor]]:
    """Yield every piece that this rank's ZeRO shards hold.

    Yields:
        (piece, view): `view` is the part of the shard that holds the piece; it shares memory with
            the parameter.
    """
    for name, parameter in model.named_parameters():
        yield from cut_rows(parameter, pieces(name, architecture, cuts))


def cut_rows(
    tensor: Tensor, pieces: list[Piece], rows: Tensor | None = None
) -> Iterator[tuple[Piece, Tensor]]:
    """Yield the pieces of a parameter, or of its gradient, that its local rows hold.

    Args:
        rows: What to view in place of the local rows: their master weights or gradients.

    Yields:
        (piece, view of its rows).
    """
    local, first = local_shard(tensor)
    local = local if rows is None else rows
    last = first + local.shape[0] if local.numel() else first
    top = 0
    for piece in pieces:
        start, stop = max(top, first), min(top + piece.height, last)
        if start < stop:
            of_whole = (piece.rows[0] + start - top, piece.rows[0] + stop - top)
            held = Piece(piece.name, piece.shape, of_whole, piece.columns, piece.owned)
            yield held, local[start - first : stop - first]
        top += piece.height


def local_shard(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows of a tensor that this rank's ZeRO shard holds, and the index of the first one.

    FSDP2 gives each rank ceil(rows / ranks) rows, and the last ranks fewer or none.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    mesh = tensor.device_mesh
    chunk = -(-tensor.shape[0] // mesh.size())
    return tensor.to_local().detach(), chunk * mesh.get_local_rank()


@torch.no_grad()
def initialize(held: Iterable[tuple[Piece, Tensor]], seed: int) -> None:
    """Fill this rank's shards with the initial weights of a seed.

    Norms are 1, biases 0, everything else normal with standard deviation 0.02 (Llama's
    ``initializer_range``). Values are drawn on the CPU in blocks of rows, each from its own
    generator. So a rank draws only the rows it keeps, every sharding gives the same model, and
    threads may draw beside each other: as many as PyTorch has here, at most :data:`_MOST_THREADS`.
    """
    blocks: list[tuple[Piece, Tensor, int]] = []
    for piece, view in held:
        if len(piece.shape) == 1:
            view.fill_(0.0 if piece.name.endswith(".bias") else 1.0)
            continue
        start, stop = piece.rows
        of_piece = range(start // _ROWS_PER_DRAW, -(-stop // _ROWS_PER_DRAW))
        blocks += [(piece, view, block) for block in of_piece]
    number = torch.get_num_threads()
    torch.set_num_threads(1)  # not as many again for each thread
    try:
        with ThreadPoolExecutor(min(number, _MOST_THREADS)) as threads:
            list(threads.map(partial(_fill_block, seed), blocks))  # raises what a thread raised
    finally:
        torch.set_num_threads(number)


@torch.no_grad()  # each thread has a mode of its own
def _fill_block(seed: int, of: tuple[Piece, Tensor, int]) -> None:
    """Draw one block of rows, and copy what the view has of it."""
    piece, view, block = of
    (start, stop), first = piece.rows, block * _ROWS_PER_DRAW
    drawn = _draw(seed, piece, block)[:, slice(*piece.columns)]
    low, high = max(start, first), min(stop, first + len(drawn))
    view[low - start : high - start] = drawn[low - first : high - first]


def _draw(seed: int, piece: Piece, block: int) -> Tensor:
    height = min(_ROWS_PER_DRAW, piece.shape[0] - block * _ROWS_PER_DRAW)
    digest = hashlib.sha256(f"{seed}/{piece.name}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(height, piece.shape[1], generator=generator).mul_(0.02)
