"""How ranks, heads and tokens divide among the axes, and what would when they do not."""

from __future__ import annotations


def check_axes(world: int, ring: int, sequence: int, heads: int, kv_heads: int) -> None:
    """Raise ValueError unless the axes divide the world, and the heads the sequence axis."""
    if world % ring:
        raise ValueError(
            f"ring_parallel_size = {ring} does not divide world_size = {world}; "
            f"valid: {divisors(world)}"
        )
    fitting = [n for n in divisors(heads) if kv_heads % n == 0 or n % kv_heads == 0]
    valid = [n for n in fitting if world // ring % n == 0]
    if world // ring % sequence:
        beside = f" / ring_parallel_size = {ring}" if ring > 1 else ""
        raise ValueError(
            f"sequence_parallel_size = {sequence} does not divide world_size = {world}{beside}; "
            f"valid: {valid}"
        )
    if sequence > heads:
        raise ValueError(
            f"sequence_parallel_size = {sequence} is more than "
            f"model.num_attention_heads = {heads}; "
            f"valid: {valid}; ring_parallel_size splits a sample over more"
        )
    if sequence not in valid:
        raise ValueError(
            f"sequence_parallel_size = {sequence} does not fit model.num_attention_heads = {heads} "
            f"with model.num_key_value_heads = {kv_heads}; valid: {valid}"
        )


def check_multiple(seq_len: int, unit: int, product: str) -> None:
    """Raise ValueError unless a sample divides by what `product` says in words."""
    if seq_len % unit:
        raise ValueError(
            f"seq_len = {seq_len} does not divide by {product} = {unit}; "
            f"nearest valid: {nearest_multiples(seq_len, unit)}"
        )


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def nearest_multiples(number: int, of: int) -> str:
    """The positive multiples on either side of a number that is none, as in "8 or 12"."""
    below = number // of * of
    return f"{below} or {below + of}" if below else f"{of}"


def chunks_of(order: str, ring: int) -> int:
    """Chunks that the sequence is cut into for the places."""
    return 2 * ring if order == "zigzag" and ring > 1 else ring
