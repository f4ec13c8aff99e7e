"""Every number of a built-in profile says what it rests on."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bench.hardware.profiles import PROFILES
from bench.hardware.sources import KINDS, SOURCES, source


@pytest.mark.parametrize("name", PROFILES)
def test_every_number_has_a_source(name: str) -> None:
    values = asdict(PROFILES[name])
    values |= values.pop("speeds") or {}
    numbers = {f for f, v in values.items() if v not in (0, (), "") and f != "device"}
    assert SOURCES[name].keys() == numbers
    assert [f for f in numbers if not source(name, f).startswith(KINDS)] == []
    assert [f for f in numbers if "\n" in source(name, f)] == []


def test_what_is_not_known_has_no_source() -> None:
    assert SOURCES.keys() == PROFILES.keys()
    assert source("mine.yml", "memory_bytes") == source("h100-80g", "skew") == ""


def test_what_is_scaled_from_a_measured_profile_says_so() -> None:
    for name, other in (("h20", "h100-80g"), ("h800-80g", "h100-80g"), ("a800-80g", "a100-80g")):
        assert source(name, "attention").startswith(f"assumed: as {other}")
        assert source(name, "links").startswith(f"assumed: as {other}")
        assert source(other, "attention").startswith("measured: ")
