"""Bad input ends with exit status 2 and one line that names what would be valid; nothing starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.runner import processes
from odysseus.config.advice import advice
from tests.support.refusals import refused_line


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a cell was started")

    monkeypatch.setattr(processes, "run_ranks", started)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # with which Liger's kernels run on CPU


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--world_size 3", ["sequence_parallel_size = 3", "= 8", "valid: [1]"]),
        ("--world_size 16", ["= 16 is more than model.num_attention_heads = 8", "[1, 2, 4, 8]"]),
        ("--world_size 4 --sequence_parallel_size 3", ["= 3 does not divide", "[1, 2, 4]"]),
        ("--world_size 4 --seq_len 1023", ["seq_len = 1023", "nearest valid: 1020 or 1024"]),
        ("--world_size 4 --ring_parallel_size 3", ["ring_parallel_size = 3", "[1, 2, 4]"]),
        ("--world_size 2 --ring_parallel_size 0", ["ring_parallel_size is 0", "at least 1"]),
        ("--world_size 2 --ring_parallel_size 2 --seq_len 1022", ["2 x ring", "1020 or 1024"]),
        ("--world_size 6 --ring_parallel_size 2", ["sequence_parallel_size = 3", "valid: [1]"]),
        ("--ring_order zagzig", ["ring_order", "zagzig", "'zigzag', 'contiguous'"]),
        ("--axis_order sp", ["axis_order", "'dp-ring-sp', 'dp-sp-ring'"]),
        (
            "--world_size 2 --ring_parallel_size 2 --ring_backend yunchang --device cpu",
            ["ring_backend = yunchang needs CUDA", "valid on cpu: native, allgather"],
        ),
        ("--model.name_or_path gpt5", ["'gpt5'", "tiny", "llama3-8b", "qwen3-32b"]),
        ("--model.num_key_value_heads 3", ["num_key_value_heads is 3", "divide"]),
        ("--method tp --world_size 4 --model.intermediate_size 767", ["767", "764 or 768"]),
        ("--model.vocab_size 100", ["vocab_size is 100", "256"]),
        ("--method pp", ["method", "pp", "'tp', 'tp_sp', 'ulysses', 'odysseus'"]),
        ("--seqlen 5", ["--seqlen 5", "did you mean seq_len"]),
        ("--model.hiden_size 5", ["model.hiden_size", "did you mean model.hidden_size"]),
        ("--steps many", ["steps", "many", "int"]),
        ("--steps 0", ["steps is 0", "at least 1"]),
        ("--optimizer.learning_rate -1", ["learning_rate is -1", "above 0"]),
        ("--regather perhaps", ["regather", "perhaps", "bool"]),
        ("--device cuda", ["device is cuda", "valid here: auto, cpu"]),
        ("--model.attn_implementation flash_attention_2", ["flash_attention_2", "auto, sdpa"]),
        ("--data.path /nowhere.txt", ["'/nowhere.txt'", "UTF-8"]),
        ("--config /nowhere.yml", ["/nowhere.yml"]),
        ("--seq_len 1000000", ["1000001 tokens", "seq_len up to"]),
        (
            "--out /proc/version/rows.csv",
            ["/proc/version/rows.csv", "in a folder you may write to"],
        ),
        ("--reduce_bucket_size -1", ["reduce_bucket_size is -1", "at least 0"]),
        ("--host_memory_limit_bytes -1", ["host_memory_limit_bytes is -1", "at least 0"]),
        ("--tiled_loss_bytes 0", ["tiled_loss_bytes is 0", "at least 1"]),
        ("--tiled_loss_compute maybe", ["tiled_loss_compute", "maybe", "'auto'", "bool"]),
        ("--tiled_loss_engine apple", ["apple", "'fused', 'checkpoint', 'torch', 'liger'"]),
        ("--tiled_loss_engine liger --device cpu", ["tiled_loss_engine = liger", "on cpu: auto"]),
        ("--model.type liger --device cpu", ["model.type = liger", "valid on cpu: torch"]),
        ("--optimizer.offload nvme", ["optimizer.offload", "nvme", "'none', 'cpu'"]),
        ("--parameter_offload nvme", ["parameter_offload", "nvme", "'none', 'cpu'"]),
        ("--seq_len 1000000 --data.repeat false", ["1000001 tokens", "data.repeat = true"]),
    ],
)
def test_flags(capsys: pytest.CaptureFixture[str], flags: str, expected: list[str]) -> None:
    message = refused_line(capsys, "run", *flags.split())
    assert message.startswith("python -m bench run: ")
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"plain \xff bytes" * 100, "not UTF-8 at byte 6"),
        (b"too short", "needs 1025 tokens"),
    ],
)
def test_data_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "text"
    file.write_bytes(content)
    assert expected in refused_line(capsys, "run", "--data.path", str(file))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model:\n  hiden_size: 3\n", "did you mean model.hidden_size"),
        ("seqlen: 3\n", "did you mean seq_len"),
        ("method: tpp\n", "'ulysses'"),
        ("method: [\n", "config"),
        ("model: !!python/object/apply:os.system ['false']\n", "could not determine"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_yaml_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, content: str, expected: str
) -> None:
    file = tmp_path / "run.yml"
    file.write_text(content)
    assert expected in refused_line(capsys, verb, "--config", str(file))


def test_an_output_that_is_another_csv_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "budget.csv"
    other.write_text("month,sum\nMay,3\n")
    assert "without the columns" in refused_line(capsys, "run", "--out", str(other))
    assert other.read_text() == "month,sum\nMay,3\n"


def test_more_ranks_than_gpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = refused_line(
        capsys, "run", "--world_size", "4", "--model.attn_implementation", "sdpa"
    )
    assert "world_size = 4 is more than the 2 GPUs" in message


def test_a_launcher_of_another_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = refused_line(capsys, "run", "--world_size", "2")
    assert "world_size = 2, but the launcher started 4 processes" in message


def test_unknown_verb_and_missing_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "valid: run, sweep" in refused_line(capsys, "rnu")
    assert "no such file: nothing.csv" in refused_line(capsys, "report", "--rows", "nothing.csv")


def test_a_length_that_is_legal_but_slow_gets_advice() -> None:
    from odysseus.config.run import RunConfig

    assert advice(RunConfig(world_size=4, seq_len=1024)) == []
    (line,) = advice(RunConfig(world_size=4, seq_len=1000))
    assert "not a multiple of 256 x sequence_parallel_size = 1024" in line
