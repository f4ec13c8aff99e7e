"""Plans: predictions for a deep model from two shallow dry runs, and the longest sequence that
fits."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from bench import rows
from bench.__main__ import main
from bench.commands import flags, plan
from bench.config import options
from bench.hardware import profile_file
from bench.planner import longest
from bench.planner.dry_runs import DryRuns
from bench.simulator import dry_run, fit, shallow
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from tests.support.marks import slow
from tests.support.small_node import MODEL, SMALL, planned_run, write_profile


@pytest.fixture
def node(tmp_path: Path) -> str:
    return write_profile(tmp_path)


@pytest.fixture
def run(node: str) -> RunConfig:
    return planned_run(node)


def counted_need(run: RunConfig) -> fit.Need:
    """Return the need from a dry run of all blocks."""
    return dry_run.need(run, dry_run.counted(run))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offload", [slow(False), True])
def test_memory_grows_alike_with_every_block(run: RunConfig, method: str, offload: bool) -> None:
    run = replace(run, method=method, activation_checkpoint_cpu_offload=offload)
    run = replace(run, activation_checkpointing=True, tiled_mlp_compute=True)
    assert DryRuns().need(run) == counted_need(run)


@pytest.mark.parametrize("method", [slow("tp_sp"), slow("ulysses"), "odysseus"])
def test_the_peak_may_move_on_the_way_to_a_deep_run(run: RunConfig, method: str) -> None:
    """A vocabulary this large puts a shallow run's peak at the head. A deep run's peak is at the
    end of backward, where the gradients of every block are alive."""
    model = replace(MODEL, num_hidden_layers=12, vocab_size=8192)
    run = replace(run, method=method, model=model, activation_checkpointing=True)
    run = replace(run, tiled_mlp_compute=True, tiled_loss_compute=True)
    run = replace(run, activation_checkpoint_cpu_offload=True)
    few_blocks = dry_run.counted(shallow.with_blocks(run, shallow.SHALLOW[-1])).peak
    deep = dry_run.counted(run)
    assert few_blocks.last is not None
    assert deep.peak.last is not None
    assert few_blocks.last.unit != deep.peak.last.unit
    assert DryRuns().need(run) == dry_run.need(run, deep)


@pytest.mark.parametrize("method", [slow("tp"), "ulysses"])
def test_the_longest_that_fits_is_the_gpus(run: RunConfig, method: str) -> None:
    run = replace(run, method=method, activation_checkpointing=True)
    tried: list[int] = []
    found = longest.longest(run, lambda seq_len, need: tried.append(seq_len))
    length = found.seq_len
    assert found.limit == "GPU"
    assert len(tried) < 12
    assert found.whole is not None
    assert counted_need(replace(run, seq_len=length)) == found.whole.need
    assert found.whole.need.limit == ""
    more = length + 256 * run.seq_len_unit * max(1, length // (256 * run.seq_len_unit) // 256)
    assert counted_need(replace(run, seq_len=more)).limit == "GPU"


def test_host_memory_may_be_the_limit(run: RunConfig) -> None:
    run = replace(run, activation_checkpoint_cpu_offload=True, host_memory_limit_bytes=2**23)
    found = longest.longest(run, lambda seq_len, need: None)
    assert found.limit == "host"
    # Six blocks' inputs of 256 elements in bf16, on all ranks together.
    assert found.seq_len == 2**23 // (6 * 256 * 2) // 1024 * 1024


def test_nothing_may_fit(run: RunConfig) -> None:
    deep = replace(run, model=ModelOptions(name_or_path="llama3-8b"))
    assert longest.longest(deep, lambda seq_len, need: None) == longest.Longest(0, "GPU", None)


def test_the_verb(node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.csv"
    flags = f"--hardware {node} --world_size 4 --seq_len 1024 --ulysses_head_chunks 2 --out {out}"
    assert main(["plan", *flags.split()]) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert "1024 tokens, GiB" in title
    assert header.split()[:2] == ["method", "fits"]
    assert [line.split()[:2] for line in lines] == [[name, "yes"] for name in METHODS]
    kept = rows.read(out)
    assert set(kept["mode"]) == {"dry_run"}
    assert set(kept["hardware"]) == {node}
    assert set(kept["status"]) == {"ok"}
    in_chunks = kept[kept["ulysses_head_chunks"] == "2"]  # one method's own
    assert set(in_chunks["method"]) == {"ulysses"} != set(kept["method"])
    longest_of = {line.split()[0]: int(line.split()[-2]) for line in lines}
    for name, length in longest_of.items():
        method_rows = kept[kept["method"] == name]
        assert list(method_rows["longest_limit"]) == ["", "GPU"]
        assert list(method_rows["seq_len"]) == ["1024", str(length)]


def test_a_plan_of_some_methods(node: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--hardware {node} --world_size 4 --model.num_hidden_layers 2"
    assert main(["plan", *flags.split(), "--method", "ulysses,tp,ulysses"]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ulysses", "tp"]


def test_progress_has_a_first_result_before_the_table(
    node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--hardware {node} --world_size 4 --model.num_hidden_layers 2 --method tp"
    assert main(["plan", *flags.split()]) == 0
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("tp: 1024 tokens take ")
    assert first.endswith("fits: yes")
    assert last.startswith("tp: the longest is ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--hardware h900", ["hardware is 'h900'", "h100-80g", "YAML"]),
        ("--hardware /nowhere.yml", ["/nowhere.yml"]),
        ("--world_size 3", ["sequence_parallel_size = 3"]),
        ("--dtype fp32", ["dtype = fp32", "valid: bf16"]),
        ("--compile true", ["compile", "valid: false"]),
        ("--rank 8", ["rank = 8", "-1 to 7"]),
        (
            "--hardware a100-80g --model.attn_implementation flash_attention_3",
            ["flash_attention_3", "a100-80g", "valid: flash_attention_2"],
        ),
    ],
)
def test_bad_input(flags: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in expected if word not in line] == []


def test_a_profile_lacks_or_has_too_much(tmp_path: Path) -> None:
    file = tmp_path / "node.yml"
    for given, expected in (
        ({"memory_bytes": 1}, "lacks context_bytes, gpus_per_node"),
        (asdict(SMALL) | {"color": 1}, "has unknown color"),
        (asdict(SMALL) | {"nccl_bytes": "much"}, "nccl_bytes is 'much'; valid: whole bytes"),
        (asdict(SMALL) | {"nccl_peer_bytes": -1}, "nccl_peer_bytes is -1; valid: whole bytes"),
    ):
        file.write_text(yaml.safe_dump(given))
        with pytest.raises(ValueError, match=expected):
            profile_file.find(str(file))
    assert profile_file.find("h100-80g").usable_bytes == int(79.11 * 2**30) - 3 * 2**30 - 2**25


def test_a_world_smaller_than_a_node_takes_its_own_share_of_the_host(run: RunConfig) -> None:
    """The offloading of one rank fits on a node of four, although that of four ranks would not."""
    run = replace(run, world_size=1, model=ModelOptions(num_hidden_layers=2), seq_len=256)
    run = replace(run, activation_checkpoint_cpu_offload=True)
    counted = dry_run.counted(run)
    need = dry_run.need(run, counted)
    tight = replace(run, host_memory_limit_bytes=2 * need.host)
    fits = dry_run.need(tight, counted)
    assert (fits.limit, fits.outcome) == ("", {})
    short = replace(run, host_memory_limit_bytes=need.host - 1)
    assert dry_run.need(short, counted).limit == "host"
    assert dry_run.need(short, counted).outcome["status"] == "oom_cpu"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gpus_per_node": True}, "gpus_per_node is True"),
        ({"memory_bytes": 0}, "memory_bytes is 0; valid: more than"),
        ({"context_bytes": 10**15}, "valid: more than the 1000000002097152 that"),
        ({"dtype": "fp8"}, "dtype is 'fp8'; valid: '', fp32, bf16, fp64"),
    ],
)
def test_a_profile_of_no_machine(change: dict[str, object], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "node.yml"
    file.write_text(yaml.safe_dump(asdict(SMALL) | change))
    with pytest.raises(ValueError, match="hardware") as refused:
        profile_file.find(str(file))
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        ("--method all,ulysses+tp_sp", [*METHODS, "ulysses+tp_sp"]),
        ("--attention ulysses --mlp tp_sp", ["ulysses+tp_sp"]),
        ("--method tp_sp+zero", ["odysseus"]),
    ],
)
def test_pairs_are_planned_like_methods(words: str, methods: list[str]) -> None:
    parsed = options.parse(flags.PARSERS["plan"](), words.split())
    assert plan.planned(parsed)[0] == methods


def test_every_attention_with_every_mlp_is_planned() -> None:
    parsed = options.parse(flags.PARSERS["plan"](), ["--method", "pairs"])
    methods = plan.planned(parsed)[0]
    assert len(methods) == len({*methods}) == 16
    assert {*METHODS, "tsp", "ulysses+tp_sp", "tsp+zero"} <= {*methods}
    assert not any("local" in method for method in methods)


@pytest.mark.slow
def test_pairs_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "best.csv"
    flags = "--objective throughput --model.name_or_path llama3-8b --model.num_hidden_layers 4"
    flags += f" --world_size 2 --seq_len 8192 --dtype bf16 --method pairs --out {out}"
    assert main(["plan", *flags.split()]) == 0
    printed = capsys.readouterr().out.split()
    assert {"tsp", "ulysses+tp_sp", "tp+zero"} <= {*printed}
