"""Memory of other projects' code, counted on tensors without values."""

from __future__ import annotations

import pytest

from bench.hardware.profiles import PROFILES
from bench.simulator import target
from scripts.validation import odysseus, times, untied


@pytest.mark.parametrize(("by_heads", "units"), [(False, 15.6), (True, 10.3)])
def test_untied_ulysses_holds_a_known_number_of_streams(
    by_heads: bool, units: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations in units of one rank's stream; tensors outside one block are freed before the
    next block runs."""
    monkeypatch.setattr(untied, "LAYERS", 3)
    activations = untied.peak(by_heads).by_kind["activations"]
    assert activations / untied.STREAM == pytest.approx(units, abs=0.05)


@pytest.mark.parametrize("method", ["TP-SP", "Odysseus"])
def test_the_odysseus_repository_holds_what_it_published(method: str) -> None:
    """31.43 GiB of either at 32K tokens, after forward."""
    assert sum(odysseus.held(method).values()) / 2**30 == pytest.approx(31.43, rel=0.01)


def test_one_efficiency_of_attention_on_any_gpu() -> None:
    """35 % of A100's 312 TFLOP/s, which is H100's share."""
    clock = target.clock(times.ODYSSEUS)
    assert clock is not None
    attention = times.as_on_h100(clock).speeds.attention["flash_attention_2"]
    assert attention.forward[-1][1] == pytest.approx(0.35 * 312e12)
    assert attention.backward[-1][1] == pytest.approx(0.35 * 312e12)
    h100 = target.clock(times.ALST)
    assert h100 is not None
    assert times.as_on_h100(h100).speeds == PROFILES["h100-80g"].speeds
