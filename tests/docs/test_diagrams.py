"""The diagrams of the methods agree with the methods: which weights are cut, what is sent, and the
initial layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import methods
from bench.theory import blocks
from scripts.written import diagrams, worked_examples
from tests.support.runs import RUN


def test_the_files_are_up_to_date(tmp_path: Path) -> None:
    diagrams.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_text() for path in diagrams.FOLDER.iterdir()}
    assert drawn == shipped, "python -m scripts.written.diagrams"
    names = [*methods.METHODS, *worked_examples.DRAWINGS]
    assert drawn.keys() == {f"{name}.svg" for name in names}


@pytest.mark.parametrize("name", methods.METHODS)
def test_it_sends_what_the_method_sends(name: str) -> None:
    sends = [s for s in diagrams.METHODS[name] if isinstance(s, diagrams.Send)]
    forward = Counter(s.collective.replace("-", "_") for s in sends if not s.of)
    transpose = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}
    for collective, count in [*forward.items()]:
        forward[transpose.get(collective, collective)] += count
    terms: Counter[str] = Counter()
    run = replace(RUN, method=name, world_size=4, regather=False)
    for term in blocks.activations(run):
        terms[term.collective] += term.count
    assert forward == terms


@pytest.mark.parametrize("name", methods.METHODS)
def test_it_cuts_what_the_method_cuts(name: str) -> None:
    steps, method = diagrams.METHODS[name], methods.METHODS[name]
    weights = {s.what: s.weights for s in steps if isinstance(s, diagrams.Compute)}
    cut = {True: "cut", False: "whole"}
    assert weights["output projection"] == cut["self_attn.o_proj" in method.split]
    assert weights["down projection"] == cut["mlp.down_proj" in method.split]
    gathered = any(isinstance(s, diagrams.Send) and s.of for s in steps)
    assert gathered == ("whole" in weights.values())
    streams = {s.held for s in steps if isinstance(s, diagrams.Tensor) and s.name == "stream"}
    assert streams == {"whole" if method.replicated else "tokens"}
