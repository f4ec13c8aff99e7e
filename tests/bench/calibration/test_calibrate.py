"""Calibration: a profile of every link and shape, from which a prediction can be made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

from bench.__main__ import main
from bench.calibration import calibrate, host, stopwatch
from bench.hardware import profile_file
from bench.hardware.speeds import Link
from bench.simulator import target
from odysseus.config.run import ModelOptions, RunConfig
from tests.support.paths import RESULTS
from tests.support.ranks import run_ranks


def profile(run: RunConfig, links: tuple[Link, ...] = ()) -> dict[str, Any]:
    """Measure this rank's profile, from short batches."""
    torch.set_num_threads(1)
    with (
        patch.object(stopwatch, "_BATCH_S", 1e-4),
        patch.object(calibrate, "_LONGEST_S", 1e-4),
        patch.object(calibrate, "_TURNS", 1),
        patch.object(host, "_TURNS", 1),
        patch.object(host, "_TOKENS", 64),
        patch.dict(calibrate._TOKENS, cpu=(128, 512)),
    ):
        return asdict(calibrate.measure(run, torch.device("cpu"), links))


@pytest.mark.slow
def test_four_ranks_and_a_prediction_from_them(tmp_path: Path) -> None:
    one, *others = run_ranks(profile, 4, RunConfig(world_size=4), fresh=True)
    assert all(other == one for other in others)  # the slowest rank's, on every rank
    links = one["speeds"]["links"]
    assert one["speeds"]["hooks_s"] > 0
    assert one["speeds"]["silu"]
    assert len(one["speeds"]["skew"]) == 4
    kinds = {link["collective"] for link in links}
    assert kinds == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p"}
    groups = sorted((link["ranks"], link["stride"]) for link in links)
    assert groups == [(2, 1)] * 5 + [(2, 2)] * 5 + [(4, 1)] * 5
    assert all(y > 0 for link in links for _, y in link["points"])
    (attention,) = one["speeds"]["attention"].values()
    ways = {"forward", "backward", "whole_forward", "whole_backward"}
    assert {way for way, points in attention.items() if points} == ways
    file = tmp_path / "this.yml"
    file.write_text(profile_file.as_yaml(one))
    out = tmp_path / "rows.csv"
    flags = f"--dry_run true --hardware {file} --world_size 4 --seq_len 64 --out {out}"
    assert main(["run", *flags.split()]) == 0
    run = RunConfig(dry_run=True, hardware=str(file), world_size=4)
    known = target.clock(run)
    assert known is not None
    assert known.attention == "sdpa"


def with_earlier_links(run: RunConfig) -> dict[str, Any]:
    """Make a profile with links that are not measured now."""
    before = Link(collective="all_reduce", ranks=1, points=((4096.0, 1.0),))
    with patch.object(calibrate, "_links", None):
        return profile(run, (before,))


def test_links_can_be_earlier_ones_and_all_else_is_measured() -> None:
    (one,) = run_ranks(with_earlier_links, 1, RunConfig(), fresh=True)
    assert [link["points"] for link in one["speeds"]["links"]] == [((4096.0, 1.0),)]
    assert one["speeds"]["issue_s"] > 0
    assert one["speeds"]["skew"] == ()  # of one rank


def test_links_must_have_the_same_number_of_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of four ranks is refused for two, and nothing is started."""
    file, out = str(RESULTS / "emulated" / "50mbit-1" / "profile.yml"), str(tmp_path / "out.yml")
    assert main(["calibrate", "--links_of", file, "--world_size", "2", "--out", out]) == 2
    assert "has links of 4 ranks, 1 per node" in capsys.readouterr().err
    assert not Path(out).exists()


def test_links_without_skew_are_of_an_older_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = profile_file.find(str(RESULTS / "emulated" / "50mbit-1" / "profile.yml"))
    assert known.speeds is not None
    file, out = tmp_path / "before.yml", str(tmp_path / "out.yml")
    profile_file.write(replace(known, speeds=replace(known.speeds, skew=())), file)
    with patch("bench.commands.calibrate.ranks_per_node", lambda world: 1):
        flags = ["--links_of", str(file), "--world_size", "4", "--device", "cpu", "--out", out]
        assert main(["calibrate", *flags]) == 2
    assert "and no skew; valid" in capsys.readouterr().err


def test_links_are_of_the_same_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NCCL's links of two GPUs are refused for two gloo ranks on CPU."""
    known = profile_file.find("h100-80g")
    assert known.speeds is not None
    links = (Link(ranks=2, points=((1, 1),)),)
    file = tmp_path / "gpus.yml"
    speeds = replace(known.speeds, links=links)
    profile_file.write(replace(known, gpus_per_node=2, speeds=speeds), file)
    out = str(tmp_path / "out.yml")
    flags = ["--links_of", str(file), "--world_size", "2", "--device", "cpu", "--out", out]
    assert main(["calibrate", *flags]) == 2
    assert "links of 2 ranks, 2 per node, on cuda; valid" in capsys.readouterr().err


def test_memory_is_measured_with_other_operands_each_time() -> None:
    """Operands of the largest sums, of 32 MiB, are used again after 64 MiB of other operands."""
    seen: list[int] = []

    def add(a: torch.Tensor, b: torch.Tensor) -> None:
        seen.extend((a.data_ptr(), b.data_ptr()))

    def seconds(action: Callable[[], object], device: torch.device) -> float:
        for _ in range(8):
            action()
        return 1.0

    with patch.object(calibrate, "seconds", seconds):
        points = calibrate._memory(add, 2, torch.device("cpu"))
    distinct_operands = [len(set(seen[i : i + 16])) for i in range(0, len(seen), 16)]
    assert distinct_operands == [16] * 6 + [8]
    assert points[0] == (3 * 2**12, 3 * 2**12)
    with patch.object(calibrate, "seconds", lambda *_: 0.5):
        assert calibrate._memory(add, 1, torch.device("cpu"))[0] == (2 * 2**12, 4 * 2**12)


def test_a_matmul_is_measured_with_another_operand_each_time() -> None:
    """A step's operands are new too: weights or a saved activation, which no cache still holds."""
    seen: dict[tuple[int, ...], set[int]] = defaultdict(set)

    def seconds(action: Callable[[], object], device: torch.device) -> float:
        for _ in range(8):
            action()
        return 1.0

    def mm(a: torch.Tensor, b: torch.Tensor) -> None:
        seen[*a.shape, *b.shape].add(b.data_ptr())

    with patch.object(torch, "mm", mm), patch.object(calibrate, "seconds", seconds):
        rates = list(calibrate._matmuls(torch.device("cpu"), torch.float32))
    assert rates[0] == (64, 64, 64, 2 * 64**3)
    assert len(seen) == len(rates) == 20
    assert {len(operands) for operands in seen.values()} == {8}


def test_attention_is_measured_with_other_operands_each_time() -> None:
    """64 MiB of operands and outputs; queries are 128 KiB at 128 tokens, 8 MiB at 8,192."""
    seen: list[int] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append(q.data_ptr())
        return q + k.sum() + v.sum()

    def seconds(action: Callable[[], object], device: torch.device) -> float:
        seen.clear()
        for _ in range(9):
            action()
        if seen:  # backward calls no attend
            different.append(len(set(seen)))
        return 1.0

    different: list[int] = []
    kernels = Mock(attend=attend, blocks=None)
    with (
        patch.object(calibrate, "choose_kernels", lambda *_: kernels),
        patch.object(calibrate, "seconds", seconds),
    ):
        ((name, attention),) = calibrate._attentions(RunConfig(), torch.device("cpu"))
    assert name == "sdpa"
    assert len(attention.forward) == len(attention.backward) == 6
    assert different == [9, 9, 9, 8, 4, 2]


@pytest.mark.parametrize(
    ("chosen", "measured"),
    [
        ("cudnn", ["cudnn", "flash_attention_2"]),
        ("flash_attention_3", ["flash_attention_3", "flash_attention_2"]),
        ("flash_attention_2", ["flash_attention_2"]),
    ],
)
def test_a_gpus_profile_has_the_kernel_of_auto_first(chosen: str, measured: list[str]) -> None:
    """FlashAttention-2, which recipes ask for, comes after it."""
    asked: list[str] = []

    def attention(run: RunConfig, device: torch.device) -> None:
        asked.append(run.model.attn_implementation)

    with (
        patch.object(calibrate, "attention_kernel", lambda *_: chosen),
        patch.object(calibrate, "_attention", attention),
    ):
        found = dict(calibrate._attentions(RunConfig(dtype="bf16"), torch.device("cuda")))
    assert [*found] == measured
    assert asked == ["auto", "flash_attention_2"][: len(measured)]


@pytest.mark.parametrize(("ranks", "heads"), [(1, (8, 4, 4)), (4, (2, 1, 1)), (8, (2, 1, 1))])
def test_attention_is_measured_with_a_ranks_heads(ranks: int, heads: tuple[int, ...]) -> None:
    model = ModelOptions(num_attention_heads=8, num_key_value_heads=4)
    qkv = calibrate._qkv(RunConfig(model=model, world_size=ranks), 16, torch.device("cpu"))
    assert tuple(x.shape[2] for x in qkv) == heads


class Computing:
    """Matmuls of 10 µs per row, and collectives of 1 ms plus 1 µs per row computed before."""

    def __init__(self) -> None:
        self.rows, self.taken_s = 0, 0.0
        self.operands: list[int] = []

    def mm(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.rows = len(a)
        self.taken_s += 1e-5 * self.rows

    def collective(self, x: torch.Tensor, group: object) -> None:
        self.taken_s += 1e-3 + 1e-6 * self.rows
        self.operands.append(x.data_ptr())

    def seconds(self, action: Callable[[], object]) -> float:
        self.taken_s = 0
        action()
        return self.taken_s


def link_after_known_computing(_: RunConfig) -> tuple[list[float], list[int]]:
    """Return the seconds of collectives, and the number of operands that those of one size used."""
    known, operands = Computing(), []

    def extra(more: Callable[[], object], less: Callable[[], object], _: object) -> float:
        known.operands.clear()
        found = [known.seconds(more) - known.seconds(less) for _ in range(8)]
        operands.append(len(set(known.operands)))
        return found[-1]

    with (
        patch.object(torch, "mm", known.mm),
        patch.object(calibrate, "seconds", lambda action, device: 0.0),
        patch.object(calibrate, "extra_s", extra),
        patch.dict(calibrate._COLLECTIVES, all_reduce=known.collective),
    ):
        group = torch.distributed.group.WORLD
        assert group is not None
        points = calibrate._points("all_reduce", group, torch.device("cpu"))
    return [size / rate for size, rate in points], operands  # two ranks send as much as there is


def test_links_are_measured_after_little_computing_with_other_operands() -> None:
    one, other = run_ranks(link_after_known_computing, 2, RunConfig(world_size=2), fresh=True)
    assert one == other
    assert one[0] == pytest.approx([1.064e-3] * 7)
    assert one[1] == [8] * 6 + [4]


def skew_after_known_computing(_: RunConfig) -> list[tuple[float, float]]:
    """Measure skew on a machine that is sometimes three times slower."""
    known = Computing()

    def in_turn(
        actions: list[Callable[[], object]], calls: int, rows: int, device: torch.device
    ) -> Iterator[list[float]]:
        for turn in range(rows):
            yield [known.seconds(action) * (1 if turn % 3 else 3) for action in actions]

    with (
        patch.object(torch, "mm", known.mm),
        patch.object(calibrate, "in_turn", in_turn),
        patch.dict(calibrate._COLLECTIVES, dict.fromkeys(calibrate._COLLECTIVES, known.collective)),
    ):
        return list(calibrate._skew(torch.device("cpu")))


def test_skew_is_the_extra_time_of_a_collective_after_more_computing() -> None:
    (found,) = run_ranks(skew_after_known_computing, 1, RunConfig(), fresh=True)
    for (computed_s, longer_s), rows in zip(found, (128, 256, 512, 1536), strict=True):
        assert computed_s == pytest.approx(1e-5 * rows)
        assert longer_s == pytest.approx(1e-6 * (rows - 64))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--out profile.csv", "ending in .yml"),
        ("--dry_run true", "nothing to measure"),
        ("--out /proc/version/profile.yml", "cannot be written"),
        ("--links_of none.yml", "links_of is 'none.yml': there is no such file"),
        (
            "--links_of a100-80g --world_size 2",
            "links of 0 ranks, 8 per node, on cuda; valid: a file",
        ),
    ],
)
def test_bad_input(flags: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
