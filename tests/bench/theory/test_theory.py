"""The derived table, the findings and the verb, compared with the closed forms behind them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from bench.__main__ import main
from bench.commands.theory import crossovers
from bench.meters.traffic import bytes_sent
from bench.runner import launch
from bench.theory import blocks, memory, model_flops, published
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.training import trainer
from tests.support.small_runs import nothing_starts

RUN = RunConfig(model=ModelOptions(name_or_path="llama3-8b"), world_size=8, seq_len=65536)


def block_elements(run: RunConfig) -> float:
    """Return the elements that one block's activations send, over (n-1)/n."""
    n = run.sequence_size
    sent = sum(term.bytes for term in blocks.activations(run))
    return float(sent / run.compute_dtype.itemsize / bytes_sent("all_gather", n, n) * n)


@pytest.mark.parametrize("name", ["llama2-7b", "llama3-8b"])
@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("line", published.DERIVED.to_dict("records"), ids=lambda r: r["method"])
def test_the_derived_table_is_what_the_formulas_give(name: str, size: int, line: dict) -> None:
    model = ModelOptions(name_or_path=name)
    method, *flags = line["method"].split()
    run = replace(RUN, model=model, world_size=size, method=method, regather=not flags)
    a = run.architecture
    g = a.num_key_value_heads / a.num_attention_heads
    volume = line["volume"].replace("Ld", f"*{run.seq_len * a.hidden_size}")
    volume = volume.replace("N", str(size)).replace("(1+g)", f"*{1 + g}").replace(" ", "")
    assert block_elements(run) == pytest.approx(eval(volume), rel=1e-12)
    counted = re.findall(r"(\d+) (AllReduce|All2All|AG|RS)", line["activations"])
    assert sum(int(number) for number, _ in counted) == sum(
        term.count for term in blocks.activations(run)
    )


@pytest.mark.parametrize(("ring", "size"), [(2, 1), (4, 1), (2, 4), (8, 2)])
@pytest.mark.parametrize(
    "line", published.DERIVED_RING.to_dict("records"), ids=lambda r: r["ring_backend"]
)
def test_the_derived_ring_is_what_the_formulas_give(line: dict, ring: int, size: int) -> None:
    run = replace(RUN, world_size=ring * size, ring_parallel_size=ring, method="ulysses")
    run = replace(run, ring_backend=line["ring_backend"])
    with_ring, a = theory_traffic.step_traffic(run), run.architecture
    terms = [
        t for t in with_ring.terms if t.purpose == "activation" and t.collective != "all_to_all"
    ]
    g = a.num_key_value_heads / a.num_attention_heads
    volume = 6 * g * run.seq_len * a.hidden_size / size * (ring - 1) / ring
    sent = sum(term.bytes for term in terms) / a.num_hidden_layers
    assert line["volume"] == "6g Ld/N"
    assert float(sent) == 4 * volume  # fp32
    calls = sum(term.count for term in terms) // a.num_hidden_layers
    assert calls == (3 * (ring - 1) if line["ring_backend"] == "native" else 3)


def test_weights_move_three_times() -> None:
    """They are 2AG + RS of 2(1+g)d² + 3di, as in the table, plus the norms that it leaves out."""
    run = replace(RUN, method="ulysses")
    a = run.architecture
    g, d, i = a.num_key_value_heads / a.num_attention_heads, a.hidden_size, a.intermediate_size
    block = 6 * (1 + g) * d * d + 9 * d * i + 3 * 2 * d
    deeper = replace(run, model=replace(run.model, num_hidden_layers=33))
    moved = [theory_traffic.step_traffic(r) for r in (run, deeper)]
    bytes_a_block = [
        sum(t.bytes for t in m.terms if t.purpose in ("parameter", "gradient")) for m in moved
    ]
    # fp32 weights and gradients
    assert float(bytes_a_block[1] - bytes_a_block[0]) == pytest.approx(4 * block * 7 / 8)


def test_checkpointing_repeats_activations_and_no_weights() -> None:
    for method in METHODS:
        run = replace(RUN, method=method)
        plain = theory_traffic.step_traffic(run)
        again = theory_traffic.step_traffic(replace(run, activation_checkpointing=True))
        assert again.bytes(purpose="activation") > plain.bytes(purpose="activation")
        for purpose in ("parameter", "gradient", "edge"):
            assert again.bytes(purpose=purpose) == plain.bytes(purpose=purpose)


def test_crossovers_are_where_the_bytes_cross() -> None:
    words = crossovers(RUN)
    assert len(words) == 6
    pattern = r"- (\w+) sends less than (\w+) from L = (\d+) on"
    crossing = [match for match in (re.match(pattern, line) for line in words) if match]
    assert crossing
    for match in crossing:
        long, short, length = match[1], match[2], int(match[3])
        below, above = length // 8 * 8 - 8, math.ceil(length / 8) * 8 + 8
        sent = {
            (method, at): theory_traffic.step_traffic(replace(RUN, method=method, seq_len=at)).total
            for method in (long, short)
            for at in (below, above)
        }
        assert sent[long, above] < sent[short, above]
        assert sent[long, below] > sent[short, below]


def test_odysseus_beats_ulysses_only_below_the_length_that_the_findings_name() -> None:
    run = replace(RUN, model=replace(RUN.model, num_hidden_layers=200))
    a, n = run.architecture, run.sequence_size
    g = a.num_key_value_heads / a.num_attention_heads
    bound = 6 * (1 + g) * a.hidden_size / (5 - 4 * (1 + g) / n)

    def sent(method: str, factor: float) -> int:
        length = round(bound * factor / n) * n
        return theory_traffic.step_traffic(replace(run, method=method, seq_len=length)).total

    assert sent("odysseus", 0.98) < sent("ulysses", 0.98)
    assert sent("odysseus", 1.02) > sent("ulysses", 1.02)


def test_model_flops_by_hand() -> None:
    """tiny: 4 layers of d = 256, i = 768, 8 heads of 32, 4 kv heads, vocabulary 256."""
    matmuls = 4 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 768) + 256 * 256
    run = RunConfig(seq_len=1024, micro_batch_size=2)
    attention = 4 * 6 * 1024**2 * 256 * 2
    assert model_flops.step_flops(run) == 6 * matmuls * 2048 + attention
    tied = replace(run, model=ModelOptions(tie_word_embeddings=True))
    assert model_flops.step_flops(tied) == model_flops.step_flops(run)


def test_the_verb_measures_what_it_derives(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--world_size 2 --seq_len 512 --model.num_hidden_layers 1 --measure true"
    assert main(["theory", *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert "measured = derived, to the byte" in printed
    for title in ("README, first version", "README, June 2024", "tables are wrong", "sends less"):
        assert title in printed


@pytest.fixture
def only_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a cell is started or a model is built."""
    monkeypatch.setattr(launch, "run_cell", nothing_starts)
    monkeypatch.setattr(trainer, "Trainer", nothing_starts)


def derived(printed: str) -> dict[str, int]:
    """Return the total bytes that the verb printed for each method, beside five other columns."""
    table = printed.partition("As derived, bytes per rank and step")[2]
    lines = [line.split() for line in table.partition("Sequence length")[0].splitlines()]
    of_methods = (words for words in lines if words and words[0] in METHODS)
    return {words[0]: int(words[5]) for words in of_methods if words[1].isdigit()}


@pytest.mark.usefixtures("only_computed")
def test_the_verb_only_computes(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model.name_or_path llama3-70b --world_size 64 --seq_len 1048576"
    assert main(["theory", *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert "As measured" not in printed
    assert [*derived(printed)] == [*METHODS]


@pytest.mark.usefixtures("only_computed")
def test_peaks_are_beside_the_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--world_size", "4", "--seq_len", "1024"]) == 0
    lines = [line.split(maxsplit=6) for line in capsys.readouterr().out.splitlines()]
    rows = (words for words in lines if len(words) == 7 and words[1].isdigit())
    printed = {words[0]: words[6].strip() for words in rows}
    run = RunConfig(world_size=4, seq_len=1024)
    for method in (*METHODS, "ulysses+tp_sp", "tsp+zero"):
        peak = memory.peak_activation_bytes(replace(run, method=method))
        assert printed[method] == str(peak)
    assert printed["tp+zero"] == printed["tsp"] == "no form"


@pytest.mark.usefixtures("only_computed")
def test_more_ranks_than_heads_are_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model.name_or_path llama3-70b --world_size 1024 --seq_len 131072"
    assert main(["theory", *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert "DP 16 x ring 1 x SP 64" in printed
    assert "sequence_parallel_size = 64: the most of the 1024 ranks" in printed
    model = ModelOptions(name_or_path="llama3-70b")
    run = replace(RUN, model=model, world_size=1024, seq_len=131072, sequence_parallel_size=64)
    assert derived(printed) == {
        name: theory_traffic.step_traffic(replace(run, method=name)).total for name in METHODS
    }


@pytest.mark.usefixtures("only_computed")
def test_a_method_that_cannot_be_cut_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model.intermediate_size 769 --world_size 4"
    assert main(["theory", *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert [*derived(printed)] == ["ulysses", "odysseus"]
    left_out = [line for line in printed.splitlines() if "is left out: " in line]
    assert [line.split()[0] for line in left_out] == ["tp", "tp_sp"]
    assert all("model.intermediate_size = 769" in line for line in left_out)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--world_size 3", "sequence_parallel_size = 3"),
        ("--world_size 1024 --sequence_parallel_size 1024", "sequence_parallel_size = 1024"),
        ("--world_size 4 --seq_len 1001", "1001"),
    ],
)
@pytest.mark.usefixtures("only_computed")
def test_no_method_can_be_cut(
    flags: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["theory", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
