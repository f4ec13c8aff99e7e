"""Twenty steps in fp32 and bf16: every method stays with the single process, and learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods import METHODS
from odysseus.config.run import RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer, euclidean_norm
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL

RUN = RunConfig(model=MODEL, seq_len=64, micro_batch_size=2)
STEPS = 20


def losses(runs: list[RunConfig]) -> list[list[tuple[float, float]]]:
    """(loss, gradient norm) of every step of every run."""
    found = []
    for run in runs:
        mesh = make_mesh(torch.device("cpu"), run)
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        results = [trainer.step(samples.step(step)) for step in range(STEPS)]
        found.append([(r.loss.item(), r.grad_norm.item()) for r in results])
    return found


# fp32 sums in another order differ by about 1e-7 of a loss and Adam's first steps, which divide by
# tiny second moments, amplify that; bf16 has 8 bits, 4e-3 of every activation.
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-5), slow("bf16", 2e-2)])
def test_all_methods_train_alike(dtype: str, tolerance: float) -> None:
    base = replace(RUN, dtype=dtype)
    (alone,) = run_ranks(losses, 1, [base])[0]
    runs = [replace(base, method=method, world_size=2) for method in METHODS]
    ranks = run_ranks(losses, 2, runs)
    assert ranks[0] == ranks[1]
    first, last = alone[0][0], alone[-1][0]
    assert last < 0.9 * first
    for run, curve in zip(runs, ranks[0], strict=True):
        for (loss, norm), (expected, expected_norm) in zip(curve, alone, strict=True):
            assert loss == pytest.approx(expected, rel=tolerance), run.method
            assert norm == pytest.approx(expected_norm, rel=10 * tolerance), run.method


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-7), (torch.bfloat16, 1e-7)]
)
@pytest.mark.parametrize("shape", [(2048, 512), (512,), (0, 512)])
def test_a_gradient_of_many_elements_keeps_its_norm(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    """Added up in one go in fp32, a million squares are 1e-6 off; in bf16, 1e-3."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.double().square().sum().sqrt()
    torch.testing.assert_close(euclidean_norm(x), expected, rtol=tolerance, atol=0)
