"""docs/worked-examples.md states what the closed forms, the methods and the collectives compute."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from bench.theory import memory
from odysseus.parallel import collectives
from odysseus.parallel.mesh import make_mesh
from scripts.written import worked_examples
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks

PAGE = " ".join((ROOT / "docs/worked-examples.md").read_text().split())
SECTIONS = dict(re.findall(r"## ([^#]+?) `(.+?)(?= ## |$)", PAGE))


def states(section: str, *phrases: str) -> None:
    """Check that every phrase is in the section whose title begins with `section`."""
    (text,) = [text for title, text in SECTIONS.items() if title.startswith(section)]
    assert [phrase for phrase in phrases if phrase not in text] == []


def test_the_exchanges_of_chunks() -> None:
    whole, chunked = (worked_examples.exchange_bytes(chunks) for chunks in (1, 2))
    forward = whole // 2  # backward sends the transposes
    states("Attention in head chunks", f"same {forward:,} bytes", f"{whole:,} bytes for the step")
    again = chunked - whole
    states("Attention", f"once more, {again:,} bytes: {chunked:,} bytes for the step")


@pytest.mark.parametrize("method", worked_examples.UNITS)
def test_units_are_gathered_and_reduced_as_drawn(method: str) -> None:
    calls = worked_examples.zero_calls(method)
    spans = [s for unit in worked_examples.SCHEDULES[method].values() for s in unit]
    drawn = {
        "all_gather": sum(s.gathered for s in spans),
        "reduce_scatter": sum(s.reduced for s in spans),
    }
    assert drawn == calls
    gathers, scatters = calls.values()
    phrase = f"{gathers} all-gathers and {scatters} reduce-scatters with `{method}`"
    states("ZeRO's root unit", phrase)


def test_the_bytes_of_the_norms() -> None:
    terms = worked_examples.zero_terms("tp_sp")
    norms = Counter({t.collective: int(t.bytes) for t in terms if t.size_bytes == 4 * 4 * 32})
    assert norms.keys() == {"all_gather", "reduce_scatter"}
    states("ZeRO's root unit", f"reduced once, {norms.total()} bytes sent per rank")


def gather_and_go_back() -> tuple[list[float], list[float]]:
    axis = make_mesh(torch.device("cpu"), worked_examples.BASE).sequence
    x_Bs = torch.tensor([[1.0, 2.0]] if axis.rank == 0 else [[3.0, 4.0]], requires_grad=True)
    y_BS = collectives.all_gather(x_Bs, axis)
    y_BS.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]) * (1 if axis.rank == 0 else 10))
    assert x_Bs.grad is not None
    return y_BS.tolist()[0], x_Bs.grad.tolist()[0]


def test_the_gather_and_its_transpose() -> None:
    (y, first), (same, second) = run_ranks(gather_and_go_back, 2)
    assert y == same
    whole = [[int(number) for number in numbers] for numbers in (y, first, second)]
    states("A collective", f"y = {whole[0]}", f"rank 0 {whole[1]} and rank 1 {whole[2]}")


def test_the_moments() -> None:
    runs = worked_examples.MOMENTS
    found = {name: memory.moments(run) for name, run in runs.items()}
    numbers = [*found["no trick"].values(), *found["and checkpointing"].values()]
    numbers += [found["and tiled MLP"]["MLP"], memory.block_saved_bytes(runs["no trick"])]
    numbers += [memory.stream_bytes(runs["no trick"]), memory.mlp_unit_bytes(runs["no trick"])]
    states("The moments", *(f"{number:,}" for number in numbers))
    peaks = [memory.peak_activation_bytes(runs[name]) for name in ("no trick", "and tiled MLP")]
    states("The moments", *(f"{peak:,} bytes with" for peak in peaks))
    largest = [max(moments, key=moments.__getitem__) for moments in found.values()]
    assert largest == ["loss", "MLP", "MLP", "norm"]
