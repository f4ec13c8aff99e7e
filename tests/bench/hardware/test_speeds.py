"""Speeds: curves, and profiles from files."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import rows
from bench.__main__ import main
from bench.hardware import profile_file, profiles
from bench.hardware.speeds import Link, Points, bandwidth, curve
from bench.simulator.cost_model import Clock
from bench.simulator.program import Op
from tests.support.paths import RESULTS


def test_a_curve_between_and_beyond_its_points() -> None:
    points = ((10.0, 2.0), (1000.0, 8.0))
    assert curve(points, 100) == pytest.approx(4)
    assert curve(points, 10) == 2
    assert curve(points, 10**6) == 8
    assert curve(points, 1) == pytest.approx(0.2)  # below, a rate falls with the size


def test_a_message_takes_a_latency_and_its_bytes() -> None:
    """Both ends are measured, at 1 ms and 1 µs per byte; every size between them follows the same
    law."""
    points = tuple((x, x / (1e-3 + 1e-6 * x)) for x in (1e3, 8e3))
    for size in (1e3, 2e3, 5e3, 8e3):
        assert size / bandwidth(points, size) == pytest.approx(1e-3 + 1e-6 * size)
    assert bandwidth(points, 1e6) == points[-1][1]
    assert bandwidth(points, 10) == pytest.approx(10 / 2e-3)  # below, as long as the first


def test_a_collective_has_the_link_of_the_most_alike_group() -> None:
    """The same collective has priority, then the same number of ranks, then the same distance."""
    links = [
        Link(nodes=2, points=((1, 1),)),
        Link(collective="p2p", ranks=4, nodes=4, stride=1, points=((1, 2),)),
        Link(collective="p2p", ranks=2, nodes=2, stride=1, points=((1, 4),)),
        Link(collective="p2p", ranks=2, nodes=2, stride=2, points=((1, 8),)),
    ]
    speeds = replace(profiles.PROFILES["h100-80g"].speeds, links=tuple(links))
    clock = Clock(speeds, "flash_attention_2", ranks_per_node=1)

    def seconds(kind: str, *ranks: int) -> float:
        return clock.seconds(Op(kind, kind, "", (), 0, 8, (8,), ranks, "", ""))

    assert seconds("p2p", 0, 1) == 8 / 4
    assert seconds("p2p", 1, 3) == 8 / 8
    assert seconds("p2p", 0, 1, 2, 3) == 8 / 2
    assert seconds("all_gather", 0, 2) == 8


def test_silu_has_its_own_rate_if_it_was_measured() -> None:
    def seconds(name: str, **rates: Points) -> float:
        known = replace(profiles.PROFILES["h100-80g"].speeds, memory=((1, 8),), **rates)
        op = Op(name, "elementwise", "", (), 0, 16)
        return Clock(known, "flash_attention_2", ranks_per_node=1).seconds(op)

    for name in ("aten::silu", "aten::silu_backward.grad_input"):
        assert seconds(name, silu=((1, 2),)) == 8
        assert seconds(name) == 2
    assert seconds("aten::add.Tensor", silu=((1, 2),)) == 2


@pytest.mark.parametrize(("mib", "bus_gb_per_s"), [(16, 71.80), (256, 283.23), (16384, 376.71)])
def test_an_all_reduce_over_nodes_is_priced_as_a_ring(mib: int, bus_gb_per_s: float) -> None:
    """Each network card of 32 ranks on four nodes sends 4/31 of the bus bandwidth, not 3/31."""
    sent = 2 * 31 / 32 * mib * 2**20
    ranks = tuple(range(32))
    op = Op("", "all_reduce", "", (), 0, sent, (mib * 2**20,), ranks, "", "")
    clock = Clock(profiles.PROFILES["h100-80g"].speeds, "flash_attention_2", ranks_per_node=8)
    assert sent / clock.seconds(op) == pytest.approx(bus_gb_per_s * 1e9 * 24 / 31)


def test_a_profile_is_the_same_from_a_file(tmp_path: Path) -> None:
    for name, profile in profiles.PROFILES.items():
        file = tmp_path / f"{name}.yml"
        profile_file.write(profile, file)
        assert profile_file.find(str(file)) == profile
    speeds = replace(profiles.PROFILES["h100-80g"].speeds, silu=((1, 2),), skew=((0.5, 0.1),))
    uneven = replace(profiles.PROFILES["h100-80g"], speeds=speeds)
    profile_file.write(uneven, file)
    assert profile_file.find(str(file)) == uneven


@pytest.mark.parametrize("key", ["gpus_per_node", "gpus_a_node"])
def test_ranks_per_node_have_an_old_key_and_a_new_one(key: str, tmp_path: Path) -> None:
    """Files written with the key of earlier versions are still read."""
    profile = replace(profiles.PROFILES["h100-80g"], gpus_per_node=4)
    file = tmp_path / "node.yml"
    profile_file.write(profile, file)
    text = file.read_text()
    assert "\ngpus_per_node: 4\n" in text
    file.write_text(text.replace("gpus_per_node", key))
    assert profile_file.find(str(file)) == profile


def test_a_shipped_profile_has_the_old_key_and_its_recorded_sha256() -> None:
    """Rows name a file by its SHA-256, so the shipped files keep the key that they had."""
    file = RESULTS / "emulated" / "50mbit-1" / "profile.yml"
    assert "gpus_a_node: 1" in file.read_text()
    assert profile_file.find(str(file)).gpus_per_node == 1
    recorded = rows.read(file.with_name("predicted.csv"))["hardware_sha256"]
    assert set(recorded) == {profile_file.digest(str(file))}


@pytest.mark.parametrize(
    "speeds",
    [
        {"issue_s": -1},
        {"issue_s": float("nan")},
        {"hooks_s": -1},
        {"matmul": []},
        {"matmul": [[1, 1, 5]]},
        {"memory": []},
        {"memory": [[2, 1], [1, 1]]},
        {"silu": [[2, 1], [1, 1]]},
        {"skew": [[1, -1]]},
        {"attention": {}},
        {"attention": {"sdpa": {"forward": [], "backward": [[1, 1]]}}},
        {"links": [{"points": []}]},
        {"links": [{"collective": "gossip", "points": [[1, 1]]}]},
        {"links": [{"stride": -1, "points": [[1, 1]]}]},
        {"links": [{"ranks": 2.5, "points": [[1, 1]]}]},
        {"links": [{"nodes": "two", "points": [[1, 1]]}]},
        {"attention": {"sdpa": {"forward": [[1, 1]], "backward": [[1, 1]], "whole_foward": []}}},
        {"multiprocessors": -3},
    ],
)
def test_profiles_without_speeds(speeds: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "node.yml"
    given = asdict(profiles.PROFILES["h100-80g"])
    given["speeds"] |= speeds
    file.write_text(profile_file.as_yaml(given))
    with pytest.raises(ValueError, match="speeds: "):
        profile_file.find(str(file))


def test_a_world_that_a_profile_has_no_links_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.yml"
    given = asdict(profiles.PROFILES["h100-80g"])
    given["speeds"]["network_bytes_per_s"] = ()
    file.write_text(profile_file.as_yaml(given))
    flags = f"--dry_run true --dtype bf16 --seq_len 4096 --hardware {file} --world_size 16"
    flags += " --sequence_parallel_size 8"
    assert main(["run", *flags.split()]) == 2
    assert "no links for world_size = 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("  issue_s: 3.0e-05", "missing"),
        ("device: cuda", "device is 'abacus'"),
        ("    - 16384.0\n    - 704", "speeds"),
    ],
)
def test_a_profile_with_bad_speeds(change: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "node.yml"
    profile_file.write(profiles.PROFILES["h100-80g"], file)
    text = file.read_text()
    assert change in text
    file.write_text(text.replace(change, "device: abacus" if "device" in change else ""))
    with pytest.raises(ValueError, match=expected):
        profile_file.find(str(file))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("multiprocessors=16", "collective_multiprocessors must be less than multiprocessors"),
        ("multiprocessors=1.5", "valid: a whole number"),
    ],
)
def test_a_collective_leaves_multiprocessors(label: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        profile_file.find(f"h100-80g({label})")


def test_a_profile_is_of_one_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.yml"
    profile_file.write(replace(profiles.PROFILES["h100-80g"], device="cpu", dtype="fp32"), file)
    flags = f"--dry_run true --model.attn_implementation sdpa --hardware {file} --dtype bf16"
    assert main(["run", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was calibrated in fp32, not in dtype = bf16; valid: dtype = fp32" in line
