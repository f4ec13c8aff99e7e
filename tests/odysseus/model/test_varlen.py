"""Packed documents in one kernel: the arguments of PyTorch's, gradients, FLOPs and dry runs.

No CPU has the kernel. Here attention to one document after another is registered in its place, with
the parameters of its schema; everything around it is this project's own code.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.config.checks import check
from bench.meters.flops import Kernel, kernel_of
from bench.meters.memory import MemoryMeter
from bench.simulator import cuda_kernels, dry_run, predict
from bench.simulator.program import Op
from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.model import varlen
from odysseus.model.attention import packed_by, sdpa
from odysseus.model.block_attention import CPU_FLASH
from odysseus.model.documents import Documents
from odysseus.model.varlen import FLASH, Packing, VarlenAttention
from tests.support.runs import RUN

CPU, META = torch.device("cpu"), torch.device("meta")
DOCUMENTS = Documents(((0, 5), (0, 1, 9)))
LENGTHS = (5, 7, 1, 8, 3)
"""Two samples have 12 tokens each."""
SQUARES = sum(n * n for n in LENGTHS)


def checked(*others: Any, scale: float | None, width: int) -> list[int]:
    """Check the arguments from the offsets on: those of the queries and of the keys, the longest
    documents, dropout, causal. Return the lengths."""
    offsets, of_keys, *rest = others
    assert offsets.dtype == of_keys.dtype == torch.int32
    assert torch.equal(offsets, of_keys)
    assert rest[:4] == [max(LENGTHS), max(LENGTHS), 0.0, True]
    assert scale == width**-0.5
    return offsets.diff().tolist()


def documents_of(lengths: list[int], *tensors: Tensor) -> Iterator[list[Tensor]]:
    for parts in zip(*(x.split(lengths) for x in tensors), strict=True):
        yield [part.unsqueeze(0) for part in parts]


def forward(
    query: Tensor, key: Tensor, value: Tensor, *others: Any, scale: float | None = None
) -> tuple[Tensor, ...]:
    lengths = checked(*others, scale=scale, width=query.shape[-1])
    found = [CPU_FLASH.forward(*of, True) for of in documents_of(lengths, query, key, value)]
    o_THK = torch.cat([o.squeeze(0) for o, _ in found])
    logsumexp_HT = torch.cat([logsumexp.squeeze(0) for _, logsumexp in found], dim=1)
    return o_THK, logsumexp_HT, torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    *others: Any,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    lengths = checked(*others, scale=scale, width=query.shape[-1])
    tokens = grad_out, query, key, value, out, logsumexp.T
    found = [
        CPU_FLASH.backward(*of[:5], of[5].transpose(1, 2).contiguous(), True)
        for of in documents_of(lengths, *tokens)
    ]
    return tuple(torch.cat([x.squeeze(0) for x in parts]) for parts in zip(*found, strict=True))


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """Register the kernel for CPUs."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield


def tensors(dtype: torch.dtype, width: int = 8) -> list[Tensor]:
    """Make q, k and v of two samples: slices of packed heads, as a projection has them."""
    packed = torch.randn(2, 12, 8, width, dtype=dtype, requires_grad=True)
    return list(packed.split([4, 2, 2], dim=2))


@pytest.mark.usefixtures("on_cpu")
def test_output_and_gradients_are_those_of_each_document() -> None:
    torch.manual_seed(0)
    q, k, v = tensors(torch.double)
    found = FLASH.attend(q, k, v, DOCUMENTS)
    expected = sdpa(q, k, v, documents=DOCUMENTS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "width", "documents", "taken"),
    [
        (torch.bfloat16, 8, DOCUMENTS, "kernel"),
        (torch.float16, 256, DOCUMENTS, "kernel"),
        (torch.bfloat16, 8, None, "other"),
        (torch.float32, 8, DOCUMENTS, "other"),
        (torch.bfloat16, 6, DOCUMENTS, "other"),
        (torch.bfloat16, 264, DOCUMENTS, "other"),
    ],
)
def test_the_kernel_computes_the_documents_that_it_can(
    dtype: torch.dtype, width: int, documents: Documents | None, taken: str
) -> None:
    found: list[str] = []

    def of_kernel(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> tuple[Tensor, ...]:
        found.append("kernel")
        return torch.empty_like(q), torch.empty(0), torch.empty(0)

    def other(q: Tensor, k: Tensor, v: Tensor, *, documents: Documents | None = None) -> Tensor:
        found.append("other")
        return q

    attend = packed_by(VarlenAttention(of_kernel, FLASH.backward), other)  # pyrefly: ignore
    q, k, v = tensors(dtype, width)
    assert attend(q, k, v, documents=documents).shape == q.shape
    assert found == [taken]


def test_a_packing_is_made_once_and_goes_with_its_documents() -> None:
    documents = Documents(DOCUMENTS.starts)
    packing = Packing.of(documents, 12, CPU)
    assert packing.offsets.tolist() == [0, 5, 12, 13, 21, 24]
    assert (packing.lengths, packing.longest) == (LENGTHS, 8)
    assert Packing.of(documents, 12, CPU) is packing
    # Documents that are equal are another batch's.
    assert Packing.of(Documents(DOCUMENTS.starts), 12, CPU) is not packing
    assert Packing.of(documents, 12, META).offsets.device == META
    assert Packing.of(documents, 20, META).lengths == (5, 15, 1, 8, 11)
    others = Documents(DOCUMENTS.starts)
    Packing.share(documents, others)
    assert Packing.of(others, 20, META) is Packing.of(documents, 20, META)
    del others
    gc.collect()
    known = len(varlen._PACKINGS)
    del documents
    gc.collect()
    assert len(varlen._PACKINGS) == known - 1


@pytest.mark.parametrize("package", ["aten", "flash_attn"])
def test_flops_are_those_of_the_documents(package: str) -> None:
    """Two matmuls forward and five backward, half of the scores: 4 query heads of 8 elements."""
    q, k = torch.empty(24, 4, 8, device="meta"), torch.empty(24, 2, 8, device="meta")
    typical = round(SQUARES / 24)
    sizes = (-(-4 * 24 // typical), typical, typical, 8, 1)
    if package == "aten":  # without values
        packing = Packing.of(DOCUMENTS, 12, META)
        at = (packing.offsets, packing.offsets, 8, 8)
        names = "aten::_flash_attention_forward", "aten::_flash_attention_backward"
        of_forward: tuple[Any, ...] = (q, k, k, *at, 0.0, True, False)
        of_backward: tuple[Any, ...] = (q, q, k, k, q, q, *at, 0.0, True, None, None)
    else:  # of another program, with offsets of its own
        offsets = torch.tensor([0, 5, 12, 13, 21, 24], dtype=torch.int32)
        at = (offsets, offsets, 8, 8)
        names = "flash_attn::_flash_attn_varlen_forward", "flash_attn::_flash_attn_varlen_backward"
        of_forward = (q, k, k, *at, 0.0, 8**-0.5, True)
        of_backward = (q, q, k, k, q, q, q, k, k, *at, 0.0, 8**-0.5, True)
        unknown = torch.empty(6, dtype=torch.int32, device="meta")
        assert varlen.lengths_of(unknown, 24) == [4, 5, 5, 5, 5]  # without values
    once = 2 * 4 * SQUARES * 8 // 2
    assert kernel_of(names[0], of_forward) == Kernel("attention_forward", 2 * once, sizes)
    assert kernel_of(names[1], of_backward) == Kernel("attention_backward", 5 * once, sizes)


@pytest.mark.parametrize(
    ("name", "allocated"),
    [
        # 24 + 5 x 128 rows: fp32 sums of rows and of dq, in 32 elements; dk and dv by query head.
        ("flash_attention_2", 4 * 4 * 664 * (1 + 32) + 2 * 2 * 24 * 4 * 8),
        # These rows in blocks of 128: two fp32 sums of rows, those of dq, and of dk and dv.
        ("flash_attention_3", 4 * 768 * (4 * (2 + 8) + 2 * (2 * 8))),
        ("cudnn", 4 * 4 * 664 * (1 + 32) + 2 * 2 * 24 * 4 * 8),  # FlashAttention-2 computes them
    ],
)
def test_backward_allocates_what_its_source_says(name: str, allocated: int) -> None:
    packing = Packing.of(DOCUMENTS, 12, META)
    q, k, v = (
        torch.empty(24, heads, 8, device="meta", dtype=torch.bfloat16) for heads in (4, 2, 2)
    )
    saved = q, torch.empty(4, 24, device="meta"), torch.empty(2, device="meta"), packing
    peaks = []
    for of in (cuda_kernels._BACKWARD[name][1], FLASH.backward):
        meter = MemoryMeter()
        with meter:
            grads = of(q, q, k, v, *saved)
        assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]
        peaks.append(meter.peak().bytes)
    assert peaks[0] - peaks[1] == allocated


PACKED = DataOptions(pack=True, repeat=True)


@pytest.mark.parametrize("method", ["tp", "tp_sp", "ulysses", "odysseus", "ulysses+tp_sp"])
def test_a_dry_run_for_a_gpu_computes_what_a_cpu_does(method: str) -> None:
    """The same documents, by one kernel there and one after another here."""
    run = replace(RUN, method=method, dtype="bf16", world_size=2, seq_len=512, data=PACKED)
    run = replace(run, dry_run=True, activation_checkpointing=True)
    on_gpu = replace(run, hardware="h100-80g")
    check(on_gpu)
    found, expected = (dry_run.count(of, 1, with_program=True) for of in (on_gpu, run))
    assert found.flops["attention_flops"] == expected.flops["attention_flops"]
    assert found.traffic == expected.traffic
    names = [op.name for op in found.program if isinstance(op, Op) and "attention" in op.kind]
    blocks = run.architecture.num_hidden_layers
    assert names.count("aten::_flash_attention_forward") == 2 * blocks
    assert names.count("aten::_flash_attention_backward") == blocks
    assert len(names) == 3 * blocks


def test_packed_documents_are_predicted_to_be_faster() -> None:
    model = ModelOptions(name_or_path="llama3-8b", num_hidden_layers=1)
    run = RunConfig(model=model, method="ulysses", dtype="bf16", world_size=8, seq_len=65536)
    whole = replace(run, dry_run=True, hardware="h100-80g")
    found = [predict.timeline(of, predict.count(of)) for of in (replace(whole, data=PACKED), whole)]
    packed_s, whole_s = (of.step_s for of in found if of is not None)
    assert packed_s < whole_s


@pytest.mark.parametrize("parts", [{"method": "odysseus"}, {"method": "tsp"}])
def test_a_ring_on_a_gpu_is_refused(parts: dict[str, Any]) -> None:
    """The documents decide which of its ranks the others wait for."""
    run = RunConfig(world_size=4, dtype="bf16", data=PACKED, dry_run=True, **parts)
    if parts["method"] == "odysseus":
        run = replace(run, ring_parallel_size=2)
    check(run)
    with pytest.raises(ValueError, match=r"hardware = h100-80g .* no ring, or no hardware"):
        check(replace(run, hardware="h100-80g"))
