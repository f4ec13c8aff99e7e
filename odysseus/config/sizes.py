"""Check that ranks, heads and tokens divide among the axes; errors name the nearest valid sizes."""

from __future__ import annotations

from math import prod


def check_ring(world: int, ring: int) -> None:
    """Raise ValueError unless the ring axis divides the world."""
    if world % ring:
        raise ValueError(
            f"ring_parallel_size = {ring} does not divide world_size = {world}; "
            f"valid: {divisors(world)}"
        )


def check_tensor(ranks: int, tensor: int) -> None:
    """Raise ValueError unless the tensor axis divides the ranks of a ring rank."""
    if ranks % tensor:
        raise ValueError(
            f"tensor_parallel_size = {tensor} does not divide world_size / ring_parallel_size = "
            f"{ranks}; valid: {divisors(ranks)}"
        )


def check_experts(world: int, ranks: int) -> None:
    """Raise ValueError unless the ranks that share out experts divide the world."""
    if ranks and world % ranks:
        raise ValueError(
            f"expert_parallel_size = {ranks} does not divide world_size = {world}; "
            f"valid: {divisors(world)}"
        )


def check_sequence(
    world: int,
    others: dict[str, int],
    sequence: int,
    heads: int,
    kv_heads: int,
    uneven: bool,
) -> None:
    """Raise ValueError unless the sequence axis divides its ranks and has its share of heads.

    Args:
        others: Sizes of the other axes that split a sample, by the names of their options.
        heads: Query heads that the axis shares out, as are the kv heads.
        uneven: Whether ranks may have unequal shares of the heads; else the axis must divide the
            query heads, and divide the kv heads or be a multiple of them.
    """
    ranks = world // prod(others.values())
    places = divisors(ranks)
    valid = [n for n in places if n <= heads and (uneven or divides(heads, kv_heads, n))]
    if ranks % sequence:
        beside = "".join(f" / {name} = {size}" for name, size in others.items() if size > 1)
        raise ValueError(
            f"sequence_parallel_size = {sequence} does not divide world_size = {world}{beside}; "
            f"valid: {valid}"
        )
    tensor = others.get("tensor_parallel_size", 1)
    beside_heads = " / tensor_parallel_size" if tensor > 1 else ""
    if sequence > heads:
        raise ValueError(
            f"sequence_parallel_size = {sequence} is more than "
            f"model.num_attention_heads{beside_heads} = {heads}; "
            f"valid: {valid}; ring_parallel_size splits a sample over more"
        )
    if sequence not in valid:
        raise ValueError(
            f"sequence_parallel_size = {sequence} does not fit "
            f"model.num_attention_heads{beside_heads} = {heads} "
            f"with model.num_key_value_heads{beside_heads} = {kv_heads}; valid: {valid}"
            + ("; method = ulysses also takes others" if tensor == 1 else "")
        )


def divides(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether every rank gets as many query heads and as many kv heads as any other."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def shares(heads: int, kv_heads: int, ranks: int) -> list[tuple[range, range]]:
    """Return each rank's query heads, and the kv heads that they need.

    With at least one kv head per rank, kv heads are shared out, each with all its query heads. With
    fewer, query heads are shared out, and a kv head goes to every rank that needs it. No rank has
    more query heads than the first.

    Raises:
        ValueError: there are fewer query heads than ranks.
    """
    if heads < ranks:
        raise ValueError(
            f"{heads} query heads cannot be shared by {ranks} ranks of the sequence axis; valid: "
            "at most as many ranks as query heads"
        )
    group = heads // kv_heads
    by_rank = []
    for rank in range(ranks):
        if kv_heads >= ranks:
            kv = part_of(kv_heads, ranks, rank)
            by_rank.append((range(kv.start * group, kv.stop * group), kv))
        else:
            q = part_of(heads, ranks, rank)
            by_rank.append((q, range(q.start // group, (q.stop - 1) // group + 1)))
    return by_rank


def attended(queries: range, kv: range, group: int) -> list[int]:
    """Return the places in `kv` of the heads that attention gets for a rank's query heads.

    Kernels share kv heads evenly: each head once if all serve as many query heads, else one for
    every query head.

    Args:
        group: Query heads that share a kv head in the whole model.
    """
    needed = [head // group - kv.start for head in queries]
    evenly = needed == sorted([*range(len(kv))] * (len(queries) // len(kv)))
    return [*range(len(kv))] if evenly else needed


def part_of(count: int, ranks: int, rank: int) -> range:
    """This rank's part of `count` things; parts differ by at most one, and the first has most."""
    return range(-(-count * rank // ranks), -(-count * (rank + 1) // ranks))


def check_multiple(seq_len: int, unit: int, product: str) -> None:
    """Raise ValueError unless `seq_len` is a multiple of `unit`.

    Args:
        product: Factors of `unit` as text, for the message.
    """
    if seq_len % unit:
        raise ValueError(
            f"seq_len = {seq_len} does not divide by {product} = {unit}; "
            f"nearest valid: {nearest_multiples(seq_len, unit)}"
        )


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def nearest_multiples(number: int, unit: int) -> str:
    """Return the positive multiples of `unit` below and above a number, as text: "8 or 12"."""
    below = number // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def chunks_of(order: str, ring: int) -> int:
    """Return the number of chunks of a sequence: 2 per ring rank in zigzag order, else 1."""
    return 2 * ring if order == "zigzag" and ring > 1 else ring
