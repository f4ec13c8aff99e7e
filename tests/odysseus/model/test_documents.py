"""Packed documents: which token is whose, and no method lets one look at another's.

The reference computes every document by itself, as if there were no others
(:func:`tests.support.parity.sum_of_losses`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from bench import rows
from bench.config.checks import check
from bench.simulator import dry_run
from bench.theory import model_flops
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.io.text import Samples, load_text
from odysseus.model.attention import sdpa
from odysseus.model.attention_choice import choose_attention
from odysseus.model.documents import Documents, Span
from odysseus.parallel.ring_order import positions_of, tokens_of, visible_block
from tests.support.dry_run import check_all
from tests.support.parity import TOLERANCE, assert_parity
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL, RUN
from tests.support.toggles import ALL_ON, BASE, errors

CPU = torch.device("cpu")
TEXT = "one two\n\nthree\n \t\n\nfour\nfive six seven\n\n8\n\nnine ten eleven twelve thirteen.\n\n"


@pytest.fixture
def text(tmp_path: Path) -> DataOptions:
    """Documents of 9, 10, 21, 3 and 34 bytes, their blank lines included."""
    file = tmp_path / "documents.txt"
    file.write_text(TEXT)
    return DataOptions(path=str(file), pack=True, repeat=True)


def test_documents_are_separated_by_blank_lines(text: DataOptions) -> None:
    found = load_text(RunConfig(data=text))
    assert [bytes(d).decode() for d in np.split(found.tokens, found.starts[1:])] == [
        *("one two\n\n", "three\n \t\n\n", "four\nfive six seven\n\n", "8\n\n"),
        "nine ten eleven twelve thirteen.\n\n",
    ]
    assert load_text(RunConfig(data=replace(text, pack=False))).starts.tolist() == [0]


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\n\r\n", "\n \t\r\n\n"])
def test_blank_lines_of_windows_separate_too(tmp_path: Path, blank: str) -> None:
    file = tmp_path / "documents.txt"
    file.write_bytes(f"one{blank}two".encode())
    found = load_text(RunConfig(data=DataOptions(path=str(file), pack=True)))
    assert found.starts.tolist() == [0, 3 + len(blank)]


def test_a_batch_of_packed_samples(text: DataOptions) -> None:
    """Samples 1 and 2 of 30 tokens: the second one goes on at the text's beginning."""
    run = RunConfig(data=text, seq_len=30, micro_batch_size=2, world_size=1)
    batch = Samples(run, 0, 0, CPU).step(0)[0]
    assert batch.documents == Documents(((0, 9, 19), (0, 10, 13)))
    assert batch.position_ids[0].tolist() == [*range(9), *range(10), *range(11)]
    whole = np.frombuffer(TEXT.encode(), np.uint8)
    labels = whole[1:31].astype(int)
    labels[[8, 18]] = -100
    assert batch.labels[0].tolist() == labels.tolist()
    assert batch.labels[1].tolist()[9] == batch.labels[1].tolist()[12] == -100
    wrapped = Samples(run, 0, 0, CPU).step(1)[0]  # tokens 60 to 120 of 77 and again from 0
    assert wrapped.documents == Documents(((0, 17, 26), (0, 6, 27)))
    # Token 76 is the last of the text: the first document's beginning is not its to foretell.
    assert wrapped.labels[0, 16] == -100
    assert wrapped.labels[0, 15] == whole[76]
    # A sample that ends where a document does.
    ends = replace(run, seq_len=19, micro_batch_size=1)
    assert Samples(ends, 0, 0, CPU).step(0)[0].labels[0, -1] == -100


@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
def test_shards_of_a_packed_sample(text: DataOptions, order: str) -> None:
    run = RunConfig(data=text, seq_len=40, micro_batch_size=2)
    (whole,) = Samples(run, 0, 0, CPU).step(1)
    split = replace(run, world_size=4, ring_parallel_size=2, ring_order=order)
    for place, part in product(range(2), range(2)):
        at = np.split(tokens_of(order, 40, 2, place), 2)[part]
        (mine,) = Samples(split, 0, 2 * place + part, CPU).step(1)
        assert mine.documents == whole.documents
        for one, all_ in zip(mine.tensors, whole.tensors, strict=True):
            assert torch.equal(one, all_[:, at])


def test_documents_are_tokenised_each_by_itself(text: DataOptions, tmp_path: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "8", "nine", "?"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = ModelOptions(name_or_path=str(tmp_path))
    found = load_text(RunConfig(model=model, data=text))
    assert found.starts.tolist() == [0, 2, 3, 7, 8]
    assert found.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9]


def test_documents_of_position_ids() -> None:
    """A jump forward begins one too, as in Transformers."""
    positions = np.array([[0, 1, 2, 0, 1, 0], [5, 6, 7, 8, 9, 20]])
    assert Documents.from_positions(positions) == Documents(((0, 3, 5), (0, 5)))
    assert Documents.from_positions(positions[:, :3]).one_per_sequence
    assert not Documents.from_positions(positions).one_per_sequence


@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
def test_spans_are_the_mask(order: str) -> None:
    """Every pair of tokens of one document, the key not after the query, is in one span of one
    look, and no other pair."""
    ring, length = 4, 32
    documents = Documents(((0, 5, 6, 20), (0,), (0, 8, 16, 24)))
    seen = np.zeros((3, length, length), int)
    for place, source in product(range(ring), range(ring)):
        look = visible_block(order, place, source, length // ring)
        if look is None:
            continue
        queries, keys = positions_of(look, order, length, ring, place)
        for span in documents.spans(queries, keys):
            pairs = np.ix_(queries[span.queries], keys[span.keys])
            count = len(queries[span.queries]), len(keys[span.keys])
            seen[span.row][(slice(None), *pairs)] += np.tri(*count, dtype=int) if look.causal else 1
    ids = [np.searchsorted(starts, np.arange(length), side="right") for starts in documents.starts]
    expected = [np.tri(length, dtype=int) * (of[:, None] == of) for of in ids]
    assert np.array_equal(seen, np.stack(expected))
    assert list(Documents(((0, 3),)).spans(np.arange(3), np.arange(3, 6))) == []
    assert next(Documents(((0,),)).spans(np.arange(3), np.arange(6))) == Span(
        slice(0, 1), slice(0, 3), slice(0, 6)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_parity(method: str, ranks: tuple[int, int], text: DataOptions) -> None:
    ring, size = ranks
    run = replace(RUN, method=method, data=text, world_size=ring * size, ring_parallel_size=ring)
    assert_parity(replace(run, seq_len=48))


@pytest.mark.parametrize(
    "changes",
    [
        {"ring_backend": "allgather"},
        {"ring_order": "contiguous"},
        {"ring_backend": "allgather", "ring_order": "contiguous"},
        {"ulysses_head_chunks": 2},
        {"ulysses_all_to_all": "yunchang", "gradient_accumulation_steps": 2},
    ],
)
def test_parity_of_other_exchanges(changes: dict[str, Any], text: DataOptions) -> None:
    run = replace(RUN, method="ulysses", data=text, world_size=4, ring_parallel_size=2, seq_len=48)
    assert_parity(replace(run, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "tp_sp"},
        {"method": "ulysses+expert"},
        {"method": "tp+expert", "expert_parallel_size": 4},
        {"method": "ulysses", "ulysses_head_chunks": 2},
    ],
)
def test_parity_of_experts(changes: dict[str, Any], text: DataOptions) -> None:
    sizes = {"intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    losses = {"router_aux_loss_coef": 0.1, "router_z_loss_coef": 0.01}
    run = replace(RUN, model=replace(MODEL, **sizes, **losses), data=text, seq_len=48)
    assert_parity(replace(run, world_size=4, ring_parallel_size=2, **changes))


@pytest.mark.parametrize("method", METHODS)
def test_parity_with_every_trick(method: str, text: DataOptions) -> None:
    base = replace(BASE, method=method, data=text, world_size=2)
    for of_rank in run_ranks(errors, 2, [base, replace(base, **ALL_ON)]):
        assert all(max(found.values()) < TOLERANCE for found in of_rank)


def test_the_dry_run_counts_it(text: DataOptions) -> None:
    """Every sample is the whole text, as where documents are decides what is computed."""
    Path(text.path).write_text(TEXT[:-1])
    base = replace(RUN, dtype="fp32", seq_len=76, data=text, world_size=2)
    check_all([base, replace(base, method="ulysses", activation_checkpointing=True)], [0])


def test_every_packed_row_sends_its_positions(text: DataOptions) -> None:
    """Two samples a micro step have positions of their own."""
    base = replace(RUN, dtype="fp32", data=text, world_size=2, micro_batch_size=2)
    for run in (replace(base, method=method) for method in METHODS):
        assert dry_run.count(run, 0).traffic == theory_traffic.step_traffic(run).columns


def test_attention_of_each_document_in_turn() -> None:
    """CUDA computes so what FlashAttention has no kernel for, by dtype or width."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, h, 8, dtype=torch.double, requires_grad=True) for h in (4, 2, 2))
    documents = Documents(((0, 5), (0, 1, 9)))
    expected = choose_attention("sdpa", CPU, torch.double)[1](q, k, v, documents=documents)
    found = sdpa(q, k, v, documents=documents)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_rows_and_refusals(text: DataOptions) -> None:
    run = RunConfig(data=text, world_size=2, ring_parallel_size=2)
    assert rows.identity(run)["data_pack"] is True
    assert rows.identity(RunConfig())["data_pack"] is None
    told = model_flops.speed_columns(run, 10.0, 1e9)
    assert told.keys() == {"tokens_per_s", "tokens_per_s_per_gpu"}
    with pytest.raises(ValueError, match=r"data\.pack = true; valid: data\.pack = false, or comp"):
        check(replace(run, compile=True))
    with pytest.raises(
        ValueError, match=r"most of the documents of data\.pack = true; valid: data"
    ):
        check(replace(run, dry_run=True, hardware="h100-80g", dtype="bf16"))
