"""Check that ranks, heads and tokens divide among the axes; errors name the nearest valid sizes."""

from __future__ import annotations


def check_ring(world: int, ring: int) -> None:
    """Raise ValueError unless the ring axis divides the world."""
    if world % ring:
        raise ValueError(
            f"ring_parallel_size = {ring} does not divide world_size = {world}; "
            f"valid: {divisors(world)}"
        )


def check_sequence(world: int, ring: int, sequence: int, heads: int, kv_heads: int) -> None:
    """Raise ValueError unless the sequence axis divides world / ring and the query heads.

    The axis must also divide the kv heads, or be a multiple of them.
    """
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
