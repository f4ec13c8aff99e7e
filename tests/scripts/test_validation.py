"""The runs behind docs/validation.md: memory of other projects' code, and the fit of matmuls."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from bench.simulator.tiles import Tiling, matmul_s
from scripts.validation import matmuls, odysseus, untied


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


def test_the_fit_finds_the_constants_of_matmuls_that_were_made_with_them(tmp_path: Path) -> None:
    """The files have the formats of SimuMax and of Vidur."""
    tiling, cores, rate = Tiling(small_rate=0.7, fill=60, whole_rounds=0.35), 108, 2e14
    shapes = [*product((1024, 1536, 4096), (1280, 6144), (512, 2048, 9216))]

    def seconds(m: int, n: int, k: int) -> float:
        return matmul_s(m, n, k, rate, cores, tiling)

    efficiencies = {
        f"b=1, m={m}, k={k}, n={n}, layout=TN": 2 * m * n * k / seconds(m, n, k) / 4e14
        for m, n, k in shapes
    }
    known = {"tflops": 400, "accurate_efficient_factor": efficiencies}
    simumax = tmp_path / "gpu.json"
    simumax.write_text(json.dumps({"accelerator": {"op": {"matmul": known}}}))
    widths = {"n_embd": 1024, "n_expanded_embd": 4096, "n_head": 8, "n_kv_head": 4}
    projections = {
        **{"attn_pre_proj": (1024, 1024), "attn_post_proj": (1024, 512)},
        **{"mlp_up_proj": (4096, 1024), "mlp_down_proj": (1024, 2048)},
    }
    lines = [
        widths
        | {"use_gated_mlp": True, "num_tokens": tokens, "num_tensor_parallel_workers": 2}
        | {f"time_stats.{p}.median": seconds(tokens, *s) * 1e3 for p, s in projections.items()}
        for tokens in (4096, 5120, 8192)
    ]
    vidur = tmp_path / "mlp.csv"
    pd.DataFrame(lines).to_csv(vidur, index=False)
    measured = [*matmuls.simumax(simumax), *matmuls.vidur(vidur)]
    assert len(measured) == len(shapes) + 12
    ours, judged = matmuls.halves(measured)
    assert not {(one.columns, one.inner) for one in ours} & {(o.columns, o.inner) for o in judged}
    assert matmuls.fit({"a100-80g": ours}) == tiling
    assert matmuls.rate(ours, cores, tiling) == pytest.approx(rate)
    found = matmuls.errors(judged, rate, cores, tiling)
    assert found == pytest.approx([0] * len(judged), abs=1e-9)
    matmuls.main([f"a100-80g={simumax},{vidur}"])
