"""Tiles of matmuls and of attention on a GPU's multiprocessors, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.hardware.profiles import PROFILES
from bench.hardware.speeds import Attention
from bench.simulator.cost_model import Clock
from bench.simulator.program import Op
from bench.simulator.tiles import Tiling, attention_share, matmul_s

PLAIN = Tiling(small_rate=0.5, fill=0, whole_rounds=1)


def test_a_matmul_that_fills_the_gpu_has_its_rate() -> None:
    """Four multiprocessors, four tiles of 256 x 128."""
    flops = 2 * 512 * 256 * 1000
    assert matmul_s(512, 256, 1000, 1e9, 4, PLAIN) == pytest.approx(flops / 1e9)
    filling = replace(PLAIN, fill=100)
    assert matmul_s(512, 256, 1000, 1e9, 4, filling) == pytest.approx(1.1 * flops / 1e9)


def test_the_last_round_takes_as_long_as_a_whole_one() -> None:
    """Five tiles on four multiprocessors take two rounds; partly won back, 1.25 to 2 rounds."""
    round_s = 2 * 256 * 128 * 1000 * 4 / 1e9
    small_are_slow = replace(PLAIN, small_rate=0.1)
    assert matmul_s(5 * 256, 128, 1000, 1e9, 4, small_are_slow) == pytest.approx(2 * round_s)
    won_back = replace(small_are_slow, whole_rounds=0.2)
    seconds = matmul_s(5 * 256, 128, 1000, 1e9, 4, won_back)
    assert seconds == pytest.approx((0.8 * 1.25 + 0.2 * 2) * round_s)


def test_a_small_matmul_takes_small_tiles() -> None:
    """One tile of 256 x 128 leaves three of four multiprocessors idle; four of 64 x 128 do not."""
    large_s = 2 * 256 * 128 * 1000 * 4 / 1e9
    assert matmul_s(256, 128, 1000, 1e9, 4, PLAIN) == pytest.approx(large_s / 4 / 0.5)


def test_few_heads_wait_for_the_longest_rows() -> None:
    assert attention_share(1024, 4096, True, 128, 132) == pytest.approx(1, abs=0.01)
    # One head, 8 blocks of 1 to 8 units of work on 8 multiprocessors: 4.5 on average, 8 the last.
    assert attention_share(1, 1024, True, 128, 8) == pytest.approx(4.5 / (8 + 4))
    assert attention_share(8, 1024, False, 128, 8) == pytest.approx(8 / 8.5)
    assert attention_share(1, 1024, True, 0, 8) == attention_share(1, 1024, True, 128, 0) == 1


def test_a_clock_asks_for_the_tiles_of_its_gpu() -> None:
    h100 = PROFILES["h100-80g"].speeds
    assert h100
    kernel = Attention(forward=((1, 1e12),), backward=((1, 2e12),), rows_forward=128)
    clock = Clock(replace(h100, attention={"flash_attention_2": kernel}), "flash_attention_2", 8)
    sizes = (4, 4096, 4096, 128, 1)
    forward = Op("", "attention_forward", "a", (), flops=10**12, sizes=sizes)
    share = attention_share(4, 4096, True, 128, 132)
    assert clock.seconds(forward) == pytest.approx(1 / share)
    assert clock.seconds(forward._replace(kind="attention_backward")) == pytest.approx(0.5)
    matmul = Op("", "matmul", "a", (), flops=2 * 4096**3, sizes=(4096, 4096, 4096))
    expected = matmul_s(4096, 4096, 4096, h100.matmul[0][3], 132)
    assert clock.seconds(matmul) == pytest.approx(expected)
