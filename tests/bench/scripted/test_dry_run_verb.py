"""``dry_run SCRIPT``: which step is counted, what a script finds, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from tests.support.paths import ROOT

TRAIN = Path(__file__).parent / "scripts" / "train.py"

STEPS = """
import torch
model = torch.nn.Linear(8, 16, device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
for step in range(4):
    loss = model(torch.randn(4, 8, device="cuda")).sum()
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )
    assert torch.tensor([loss, 2 * loss]).shape == (2,)
    optimizer.step()
    state = torch.cuda.default_generators[0].get_state()
    torch.cuda.default_generators[0].set_state(state)
"""
VALUES = """
import os, torch, torch.distributed as dist
dist.init_process_group("nccl")
rank, gpu = dist.get_rank(), torch.device("cuda", int(os.environ["LOCAL_RANK"]))
assert (rank, dist.get_world_size(), gpu.index) == (11, 16, 3)
assert torch.cuda.is_available() and torch.cuda.device_count() == 8
assert torch.arange(4).sum().item() == 6
count = torch.tensor([3, 4], device=gpu)
dist.all_reduce(count, op=dist.ReduceOp.MAX)
assert (2 * count)[1].item() == 8
loader = torch.utils.data.DataLoader(range(4), 2, False, None, None, 3, lambda rows: sum(rows))
assert list(loader) == [1, 5]
x = torch.randn(5, 3, device=gpu)
assert x.sum().item() == 0.0 and not torch.isnan(x).any() and not torch.equal(x, x)
assert x.nonzero().shape == (15, 2) and x.cpu().numpy().shape == (5, 3)
dist.all_reduce_coalesced([x, x])
everyone = [None] * 16
dist.all_gather_object(everyone, {"rank": rank})
assert everyone == [{"rank": 11}] * 16
q = torch.randn(1, 4, 64, 32, device=gpu, dtype=torch.bfloat16, requires_grad=True)
torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
"""


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the verb in a new process: it loads its GPU before PyTorch."""
    command = [sys.executable, "-m", "bench", "dry_run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def counts(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    out = tmp_path / "counts.json"
    done = dry_run("--out", str(out), *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_the_second_step_is_counted_on_a_gpu(tmp_path: Path) -> None:
    found, shown = counts(
        tmp_path, "--world_size", "4", "--hardware", "h100-80g", str(TRAIN), "fsdp"
    )
    assert "step 0: loss" in shown
    assert "step 1" not in shown  # it ends when the second step has
    assert found["counted"] == "step 2"
    assert found["comm_calls"] == {"all_gather": 5, "all_reduce": 1, "reduce_scatter": 3}
    assert found["peak_memory_by_kind"]["parameters"] > 0
    assert found["step_ms"] > 0
    assert sum(found["of_step_ms"].values()) == pytest.approx(found["step_ms"])
    assert [what for what in found["values_asked"] if "train.py:" in what]


def test_the_step_that_is_counted_and_a_backward_of_a_librarys_own(tmp_path: Path) -> None:
    """Megatron-Core calls autograd's engine itself, and reads a list of a GPU's numbers."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    for step in (1, 3):
        found, _ = counts(tmp_path, "--step", str(step), str(script))
        assert found["counted"] == f"step {step}"
        forward_and_gradient_of_the_weight = 2 * 2 * 4 * 8 * 16
        assert found["matmul_flops"] == forward_and_gradient_of_the_weight


def test_what_a_script_finds(tmp_path: Path) -> None:
    script = tmp_path / "values.py"
    script.write_text(VALUES)
    found, _ = counts(tmp_path, "--world_size", "16", "--rank", "11", str(script))
    assert found["counted"] == "the whole script"
    assert found["attention_flops"] == (2 + 5) * 4 * 64 * 64 * 32
    assert {what.partition(" at ")[0] for what in found["values_asked"]} == {
        *("a number", "an array", "whether tensors are equal", "which elements are not 0"),
    }


def test_megatrons_fused_kernels_are_not_built(tmp_path: Path) -> None:
    package = tmp_path / "megatron" / "legacy"
    package.mkdir(parents=True)
    (package / "fused_kernels.py").write_text("def load(args):\n    raise OSError('no nvcc')\n")
    script = tmp_path / "pretrain.py"
    script.write_text("from megatron.legacy import fused_kernels\nfused_kernels.load(None)\n")
    done = dry_run("--device", "cpu", str(script))
    assert done.returncode == 0, done.stderr


def test_a_script_that_fails_is_shown_with_its_line(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text("import torch\ntorch.ones(2, 3) @ torch.ones(2, 3)\n")
    done = dry_run("--device", "cpu", str(script))
    assert done.returncode == 1
    assert f'"{script}", line 2' in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "SCRIPT is missing; valid: SCRIPT.py or the name of a module"),
        ("nowhere.py", "SCRIPT = nowhere.py is no file"),
        ("no.such.module", "SCRIPT = no.such.module is no file"),
        ("--world_size 0 {train}", "world_size = 0; valid: 1 to"),
        ("--world_size 4 --rank 4 {train}", "rank = 4; valid: 0 to 3"),
        ("--step 0 {train}", "step = 0; valid: 1 to 1000"),
        ("--ranks_per_node 17 {train}", "ranks_per_node = 17; valid: 1 to 16"),
        ("--hardware h1000 {train}", "h1000"),
        ("--device cpu --hardware h100-80g {train}", "hardware = h100-80g is of device cuda"),
        ("--out {train}/counts.json {train}", "its folder is a file"),
    ],
)
def test_bad_input(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments.format(train=TRAIN, folder=tmp_path).split()
    assert main(["dry_run", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_file_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.json"
    out.write_text("{}")
    assert main(["dry_run", "--out", str(out), str(TRAIN)]) == 2
    assert out.read_text() == "{}"


def test_the_scripts_own_flags_are_its_own(tmp_path: Path) -> None:
    script = tmp_path / "flags.py"
    script.write_text("import sys\nprint(sys.argv[1:])\n")
    done = dry_run("--device=cpu", str(script), "--config", "x.yml", "--rank", "7", "--help")
    assert done.returncode == 0, done.stderr
    assert "['--config', 'x.yml', '--rank', '7', '--help']" in done.stdout
