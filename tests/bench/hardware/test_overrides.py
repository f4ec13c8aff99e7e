"""Profiles with overridden fields: their labels, and what a number stands for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.hardware import overrides, profile_file
from bench.hardware.profiles import PROFILES
from bench.hardware.speeds import Attention, Link, bandwidth, curve

H100 = PROFILES["h100-80g"]
assert H100.speeds is not None


@pytest.mark.parametrize(
    ("changed", "label"),
    [
        ({}, "h100-80g"),
        ({"network_bytes_per_s": "12.5e9"}, "h100-80g(network_bytes_per_s=1.25e+10)"),
        ({"network_bytes_per_s": 12500000000}, "h100-80g(network_bytes_per_s=1.25e+10)"),
        (
            {"issue_s": 1e-5, "memory_bytes": 6e9},
            "h100-80g(memory_bytes=6000000000, issue_s=1e-05)",
        ),
        ({"issue_s": 0.1 + 0.2}, "h100-80g(issue_s=0.30000000000000004)"),
        ({"device": "cpu", "dtype": "fp32"}, "h100-80g(device=cpu, dtype=fp32)"),
        ({"hooks_s": 0, "multiprocessors": "0"}, "h100-80g(hooks_s=0, multiprocessors=0)"),
    ],
)
def test_a_label_has_one_spelling_and_is_read_back(changed: dict[str, object], label: str) -> None:
    assert overrides.join("h100-80g", changed) == label
    name, texts = overrides.split(label)
    assert name == "h100-80g"
    assert overrides.join(name, texts) == label
    assert profile_file.find(label) == overrides.applied(H100, changed)


@pytest.mark.parametrize(
    "name", ["a GPU", "Intel(R) Xeon(R) CPU @ 2.60GHz (2 cores)", "my (1).yml", "()", "h20(x)", ""]
)
def test_a_name_with_brackets_is_no_label(name: str) -> None:
    assert overrides.split(name) == (name, {})
    labelled = overrides.join(name, {"issue_s": 1e-5})
    assert overrides.split(labelled) == (name, {"issue_s": "1e-05"})


def test_a_field_of_the_node_or_of_its_speeds_is_replaced() -> None:
    found = profile_file.find("h100-80g(memory_bytes=68719476736, issue_s=1e-5)")
    assert H100.speeds is not None
    assert found == replace(H100, memory_bytes=2**36, speeds=replace(H100.speeds, issue_s=1e-5))
    assert profile_file.find("b200-180g(memory_bytes=68719476736)").usable_bytes < 2**36


def test_a_number_in_place_of_a_curve_is_a_constant() -> None:
    changed = {"memory": 2e12, "network_bytes_per_s": 1e9, "matmul": 3e14, "attention": 1e14}
    speeds = overrides.applied(H100, changed | {"links": 5e10, "silu": 1e12}).speeds
    assert speeds is not None
    for x in (1, 1e6, 1e12):
        assert curve(speeds.memory, x) == 2e12
        assert curve(speeds.silu, x) == 1e12
        assert bandwidth(speeds.network_bytes_per_s, x) == 1e9
        assert bandwidth(speeds.links[0].points, x) == 5e10
    assert [row[3] for row in speeds.matmul] == [3e14]
    assert speeds.links == (Link(points=((1.0, 5e10),)),)
    kernel = Attention(forward=((1.0, 1e14),), backward=((1.0, 1e14),))
    assert speeds.attention == {"flash_attention_2": kernel, "flash_attention_3": kernel}


def test_links_between_nodes_stay() -> None:
    assert H100.speeds is not None
    between = Link(nodes=2, points=((1.0, 7.0),))
    known = replace(H100, speeds=replace(H100.speeds, links=(*H100.speeds.links, between)))
    changed = overrides.applied(known, {"links": 5e10}).speeds
    assert changed is not None
    assert changed.links == (Link(points=((1.0, 5e10),)), between)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("h100-80g(speed=1)", "hardware.speed is no field of a hardware profile; valid: memory_b"),
        ("h100-80g(speeds=1)", "hardware.speeds is no field"),
        ("h100-80g(memory_bytes=-1)", "hardware.memory_bytes = '-1'; valid: a whole number from 0"),
        ("h100-80g(memory_bytes=1.5)", "hardware.memory_bytes = '1.5'; valid: a whole number"),
        ("h100-80g(memory_bytes=1e19)", "hardware.memory_bytes = '1e19'; valid: a whole number"),
        ("h100-80g(issue_s=0)", "hardware.issue_s = '0'; valid: a finite number, above 0"),
        ("h100-80g(hooks_s=-1)", "hardware.hooks_s = '-1'; valid: a finite number, 0 or more"),
        ("h100-80g(memory=nan)", "hardware.memory = 'nan'; valid: a finite number, above 0"),
        ("h100-80g(memory=inf)", "hardware.memory = 'inf'; valid: a finite number"),
        ("h100-80g(memory=True)", "hardware.memory = 'True'; valid: a finite number"),
        ("h100-80g(device=tpu)", "hardware.device = 'tpu'; valid: cuda, cpu"),
        ("h100-80g(dtype=fp8)", "hardware.dtype = 'fp8'; valid: '', fp32, bf16, fp64"),
        ("h100-80g(memory_bytes=5)", "memory_bytes is 5; valid: more than the 3254779904"),
        ("h100-80g(gpus_per_node=0)", "gpus_per_node is 0; valid: 1 and more"),
        ("b300(issue_s=1)", "hardware.issue_s changes speeds, and the profile has none"),
        ("h900(issue_s=1)", "hardware is 'h900'; valid: a100-80g"),
        ("/nowhere.yml(issue_s=1)", "hardware is '/nowhere.yml': there is no such file"),
    ],
)
def test_bad_overrides(label: str, reason: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011, compared below
        profile_file.find(label)
    assert reason in str(refused.value)
    assert "valid: " in str(refused.value)


def test_a_file_has_its_digest_and_overridden_fields(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    profile_file.write(H100, file)
    assert profile_file.find(f"{file}(gpus_per_node=4)") == replace(H100, gpus_per_node=4)
    assert profile_file.digest(f"{file}(gpus_per_node=4)") == profile_file.digest(str(file))
    assert profile_file.digest("h100-80g(gpus_per_node=4)") == ""


def test_a_profile_is_found_again_by_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {**PROFILES, "mine.yml": H100}
    for name in ("h100-80g", "mine.yml", f"{tmp_path}/mine.yml", f"{tmp_path}/./mine.yml"):
        found = overrides.among(f"{name}(gpus_per_node=4)", known)
        assert found == replace(H100, gpus_per_node=4)
    label = "mine.yml(gpus_per_node=4)"
    assert overrides.among(label, {label: H100}) is H100
    for name in ("other.yml(gpus_per_node=4)", "a GPU", "", "h100-80g(speed=1)", "h100-80g(x=)"):
        assert overrides.among(name, known) is None
