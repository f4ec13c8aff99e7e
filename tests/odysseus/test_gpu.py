"""Behaviour that only a GPU can show; skipped without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.runner import launch
from bench.theory import memory as theory_memory
from methods import METHODS
from odysseus.config.run import DataOptions, ModelOptions, OptimizerOptions, RunConfig
from odysseus.model import kernels
from odysseus.model.attention import Attend, sdpa
from odysseus.model.attention_choice import choose_attention
from odysseus.model.block_attention import choose_block_attention
from odysseus.model.documents import Documents
from odysseus.model.loss import cross_entropy_sum
from tests.support.liger import KERNELS, kernel_errors
from tests.support.numerics import ROUNDINGS
from tests.support.ring import in_two_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # a driver's warning is no failure
]
DEVICE = torch.device("cuda", 0)
KERNELS_OF_ATTENTION = ["sdpa", "cudnn", "flash_attention_2", "flash_attention_3"]


def chosen(implementation: str) -> tuple[str, Attend]:
    """Choose the attention in bf16; skip the test if this GPU has none of that name."""
    try:
        return choose_attention(implementation, DEVICE, torch.bfloat16)
    except ValueError as missing:
        pytest.skip(str(missing))


def test_rms_norm_equals_the_cpus() -> None:
    x, weight = torch.randn(2, 8, 64), torch.randn(64)
    ours = kernels.rms_norm(x, weight, 1e-5)
    # fp32 rounding of one row's mean and product
    torch.testing.assert_close(kernels.rms_norm(x.cuda(), weight.cuda(), 1e-5).cpu(), ours)


@pytest.mark.parametrize("implementation", KERNELS_OF_ATTENTION)
def test_attention_equals_the_formula(implementation: str) -> None:
    _, attend = chosen(implementation)
    q = torch.randn(2, 128, 8, 64, device=DEVICE, dtype=torch.bfloat16)
    k, v = torch.randn(2, 2, 128, 2, 64, device=DEVICE, dtype=torch.bfloat16)
    exact = sdpa(q.double().cpu(), k.double().cpu(), v.double().cpu())
    # bf16 has 8 bits: 4e-3 of values of order 1, a few of them added up
    torch.testing.assert_close(attend(q, k, v).double().cpu(), exact, atol=3e-2, rtol=0)


@pytest.mark.parametrize("implementation", KERNELS_OF_ATTENTION)
def test_packed_documents_equal_the_cpus(implementation: str) -> None:
    _, attend = chosen(implementation)
    documents = Documents(((0, 100, 101), (0,), (0, 7)))
    packed = torch.randn(3, 256, 12, 64).bfloat16()
    found, expected = [], []
    for computed, x, of in (
        (found, packed.to(DEVICE).requires_grad_(), attend),
        (expected, packed.double().requires_grad_(), sdpa),
    ):
        o = of(*x.split([8, 2, 2], dim=2), documents=documents)
        o.sum().backward()
        computed += [o.detach().double().cpu(), x.grad.double().cpu()]
    # bf16 has 8 bits: 4e-3 of every value, of which a few roundings add up
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-2


@pytest.mark.parametrize("implementation", KERNELS_OF_ATTENTION)
def test_block_attention_equals_the_cpus(implementation: str) -> None:
    name, _ = chosen(implementation)
    blocks, exact = (
        choose_block_attention(at, device)
        for at, device in ((name, DEVICE), ("sdpa", torch.device("cpu")))
    )
    packed, grad = torch.randn(2, 256, 12, 64).bfloat16(), torch.randn(2, 256, 8, 64).bfloat16()
    found = in_two_blocks(blocks, packed.to(DEVICE), grad.to(DEVICE))
    expected = in_two_blocks(exact, packed.double(), grad.double())
    # bf16 has 8 bits: 4e-3 of every value, of which a few roundings add up
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cell_on_one_gpu(method: str, dtype: str) -> None:
    run = RunConfig(method=method, dtype=dtype, device="cuda", steps=3)
    row = launch.run_cell(run)
    assert row["status"] == "ok", row["error"]
    assert row["backend"] == "nccl"
    assert row["comm_bytes_total"] == row["theory_comm_bytes_total"]
    assert row["peak_reserved_bytes"] >= row["peak_memory_bytes"] > 0
    reference = launch.run_cell(replace(run, device="cpu"))
    tolerance = 1e-3 if dtype == "fp32" else 3e-2  # TF32 is off; bf16 sums in another order
    assert row["loss_last"] == pytest.approx(reference["loss_last"], rel=tolerance)


def test_chunks_of_heads_on_one_gpu() -> None:
    """k and v are strided views there; the loss is that of all heads at once."""
    whole = RunConfig(method="ulysses", dtype="bf16", device="cuda", steps=3)
    in_chunks = replace(whole, ulysses_head_chunks=4, activation_checkpoint_cpu_offload=True)
    row = launch.run_cell(replace(in_chunks, tiled_mlp_compute=True))
    assert row["status"] == "ok", row["error"]
    assert row["loss_last"] == pytest.approx(launch.run_cell(whole)["loss_last"], rel=3e-2)


def test_cross_entropy_ignores_masked_labels() -> None:
    logits = torch.randn(6, 10, device=DEVICE)
    labels = torch.tensor([1, 2, -100, 3, -100, 4], device=DEVICE)
    kept = labels != -100
    expected = F.cross_entropy(logits[kept], labels[kept], reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits, labels), expected)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ligers_kernels_equal_ours(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("liger_kernel")
    assert max(kernel_errors(name, dtype, DEVICE)) < ROUNDINGS * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_liger_cell_equals_ours(dtype: str) -> None:
    pytest.importorskip("liger_kernel")
    run = RunConfig(
        method="ulysses",
        dtype=dtype,
        device="cuda",
        steps=3,
        activation_checkpointing=True,
        tiled_mlp_compute=True,
        tiled_loss_compute=True,
    )
    row = launch.run_cell(replace(run, model=ModelOptions(type="liger")))
    assert row["status"] == "ok", row["error"]
    tolerance = 1e-3 if dtype == "fp32" else 3e-2  # As of one cell on two devices.
    assert row["loss_last"] == pytest.approx(launch.run_cell(run)["loss_last"], rel=tolerance)


TRICKS = RunConfig(
    method="ulysses",
    model=ModelOptions(name_or_path="small"),
    seq_len=16384,
    dtype="bf16",
    device="cuda",
    steps=3,
    activation_checkpointing=True,
    tiled_mlp_compute=True,
    tiled_loss_compute=True,
)


def test_offloaded_inputs_leave_the_gpu_and_nothing_else_changes() -> None:
    kept = launch.run_cell(TRICKS)
    moved = launch.run_cell(replace(TRICKS, activation_checkpoint_cpu_offload=True))
    assert kept["status"] == moved["status"] == "ok", (kept["error"], moved["error"])
    # FlashAttention-2's backward adds with atomics, so two runs of one cell differ.
    assert moved["loss_last"] == pytest.approx(kept["loss_last"], rel=1e-3)
    assert moved["peak_host_bytes"] == moved["theory_peak_host_bytes"]
    saved = (TRICKS.architecture.num_hidden_layers - 2) * theory_memory.stream_bytes(TRICKS)
    # The allocator rounds; what is saved is many megabytes.
    assert kept["peak_memory_bytes"] - moved["peak_memory_bytes"] == pytest.approx(saved, rel=0.05)
    assert kept["allocator_settings"] == "expandable_segments:True"


@pytest.mark.parametrize("where", ["optimizer", "parameters"])
def test_offloaded_states_leave_the_gpu_and_nothing_else_changes(where: str) -> None:
    kept = launch.run_cell(TRICKS)
    optimizer = OptimizerOptions(offload="cpu")
    moved = launch.run_cell(
        replace(TRICKS, parameter_offload="cpu")
        if where == "parameters"
        else replace(TRICKS, optimizer=optimizer)
    )
    assert moved["status"] == "ok", moved["error"]
    # AdamW's own rounding on another device, over a few steps of fp32
    assert moved["loss_last"] == pytest.approx(kept["loss_last"], rel=1e-3)
    assert moved["peak_host_bytes"] == moved["theory_peak_host_bytes"]
    assert moved["peak_memory_optimizer_bytes"] == 0
    assert moved["peak_memory_bytes"] < kept["peak_memory_bytes"]


def test_a_gpu_that_runs_out_is_told_apart() -> None:
    """Logits of 64K tokens and 1M words are 128 GiB in bf16 and 256 GiB in fp32."""
    model = ModelOptions(name_or_path="small", num_hidden_layers=1, vocab_size=1 << 20)
    run = replace(TRICKS, model=model, seq_len=1 << 16, tiled_loss_compute=False)
    assert launch.run_cell(replace(run, data=DataOptions(repeat=True)))["status"] == "oom_gpu"
