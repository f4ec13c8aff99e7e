"""The heads of a rank, and the bytes of Ulysses' exchanges of tokens for heads."""

from __future__ import annotations

from odysseus.config.run import RunConfig
from odysseus.config.sizes import attended


def tokens(run: RunConfig) -> int:
    """Return the tokens per micro step of one rank of the ring axis."""
    return run.micro_batch_size * run.ring_seq_len


def exchanges(run: RunConfig) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return (bytes of a rank's tensor, calls) of one forward: of q, k and v, and of the output.

    Jacobs et al. (arXiv 2309.14509 §3.2), with grouped-query attention; kv heads fewer than ranks
    are sent once to every rank that needs them.
    """
    a, n = run.architecture, run.sequence_size
    token = tokens(run) // n * a.head_dim * run.compute_dtype.itemsize
    queries, kv_heads = run.shared_heads
    keys = max(kv_heads, n)
    if run.ulysses_all_to_all == "yunchang":
        return [(token * queries, 1), (token * keys, 2)], (token * queries, 1)
    if run.ulysses_head_chunks > 1:
        chunks, of_kv = run.ulysses_head_chunks, kv_chunks(run)
        q = token * queries // chunks, chunks
        return [(token * 2 * keys // of_kv, of_kv), q], q
    return [(token * (queries + 2 * keys), 1)], (token * queries, 1)


def uneven_exchanges(run: RunConfig, at: int) -> tuple[list[int], list[int]]:
    """Return the bytes that a rank sends in forward and in backward, of q, k and v and of the
    output, where each rank has its own share of the heads."""
    a, n = run.architecture, run.sequence_size
    token = tokens(run) // n * a.head_dim * run.compute_dtype.itemsize
    packed = [token * (len(q) + 2 * len(kv)) for q, kv in run.head_shares]
    outputs = [token * len(q) for q, _ in run.head_shares]
    to_others = [sum(sizes) - sizes[at] for sizes in (packed, outputs)]
    own = [(n - 1) * sizes[at] for sizes in (packed, outputs)]
    return [to_others[0], own[1]], [own[0], to_others[1]]


def kv_heads(run: RunConfig, at: int) -> int:
    """Return the kv heads that a rank's attention gets."""
    a = run.architecture
    if run.heads_divide:
        return max(1, run.shared_heads[1] // run.sequence_size)
    q, kv = run.head_shares[at]
    return len(attended(q, kv, a.num_attention_heads // a.num_key_value_heads))


def kv_chunks(run: RunConfig) -> int:
    """Return the chunks of a rank's kv heads; each serves equally many chunks of query heads."""
    local = max(1, run.shared_heads[1] // run.sequence_size)
    return min(run.ulysses_head_chunks, local)
