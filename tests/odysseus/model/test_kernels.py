"""Each kernel against its plain torch formula: values, gradients, and what it keeps for backward.

Formulas are evaluated in fp64 on the very numbers that the kernel gets. B batch, S tokens,
D width, H heads, K elements of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from odysseus.model import kernels
from odysseus.model.loss import IGNORED_LABEL, cross_entropy_sum
from tests.support.numerics import EPS, ROUNDINGS, random, values_and_gradients

HEADS = 3  # Of four: the last head passes through the rotation.


def angles_table() -> Tensor:
    angles_BS1k = 6 * random(2, 5, 1, 3)
    return torch.stack([angles_BS1k.cos(), angles_BS1k.sin()])


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.tensor_split(2, -1)
    return gate * gate.sigmoid() * up


def plain_rotary(x_BSHK: Tensor, table: Tensor) -> Tensor:
    """Pairs as complex numbers, turned by multiplication."""
    first, second = x_BSHK[..., :HEADS, :].tensor_split(2, -1)
    turned = torch.complex(first, second) * torch.complex(table[0], table[1])
    return torch.cat([torch.cat([turned.real, turned.imag], -1), x_BSHK[..., HEADS:, :]], -2)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    losses = logits.exp().sum(-1).log() - logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return losses[labels != IGNORED_LABEL].sum()


LABELS = torch.tensor([[0, 6, -100, 3, 3], [-100, -100, 1, 2, 5]])
Kernel = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]
KERNELS: dict[str, Kernel] = {
    "rms_norm": (partial(kernels.rms_norm, eps=EPS), plain_rms_norm, [random(2, 5, 8), random(8)]),
    "swiglu": (kernels.swiglu, plain_swiglu, [random(2, 5, 8)]),
    "rotary": (
        lambda x, table: kernels.rotary_(x.clone(), table.detach(), HEADS),
        lambda x, table: plain_rotary(x, table.detach()),
        [random(2, 5, 4, 6), angles_table()],
    ),
    "cross_entropy_sum": (
        lambda logits: cross_entropy_sum(logits, LABELS),
        lambda logits: plain_cross_entropy(logits, LABELS),
        [random(2, 5, 7)],
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_equal_the_formula(name: str, dtype: torch.dtype) -> None:
    kernel, plain, inputs = KERNELS[name]
    inputs = [x.to(dtype) for x in inputs]
    found = values_and_gradients(kernel, inputs)
    exact = values_and_gradients(plain, [x.double() for x in inputs])
    is_loss = name == "cross_entropy_sum"
    assert found[0].dtype == (torch.promote_types(dtype, torch.float32) if is_loss else dtype)
    assert {gradient.dtype for gradient in found[1:]} == {dtype}
    for a, b in zip(found, exact, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error < ROUNDINGS * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("name", KERNELS)
def test_gradcheck(name: str) -> None:
    kernel, _, inputs = KERNELS[name]
    checked = inputs[:1] if name == "rotary" else inputs  # A table is given, not learned.
    rest = inputs[len(checked) :]
    assert torch.autograd.gradcheck(
        lambda *x: kernel(*x, *rest), [x.clone().requires_grad_() for x in checked]
    )


@pytest.mark.parametrize("name", ["swiglu", "rotary", "rms_norm"])
def test_strided_input_and_gradient(name: str) -> None:
    """Heads of a packed projection and gradients of a transpose are not contiguous."""
    kernel, plain, (x, *rest) = KERNELS[name]
    strided = torch.cat([x, x], 1)[:, ::2].requires_grad_()
    dense = strided.detach().contiguous().requires_grad_()
    results = []
    for function, given in ((kernel, strided), (plain, dense)):
        out = function(given, *rest)
        upstream = random(*out.transpose(0, -1).shape).transpose(0, -1)
        (gradient,) = torch.autograd.grad(out, given, upstream)
        results.append((out, gradient))
    # fp64 rounds at 1e-16; numbers are of order 1.
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-14)


def test_inputs_are_left_as_they_are() -> None:
    for kernel, _, inputs in KERNELS.values():
        given = [x.clone().requires_grad_() for x in inputs]
        kernel(*given).sum().backward()
        assert all(torch.equal(x, y) for x, y in zip(given, inputs, strict=True))


def test_bf16_norm_is_computed_in_fp32() -> None:
    """Weight 1 gives the exact result rounded once, here for all of 80 numbers."""
    x = random(2, 5, 8).bfloat16()
    found = kernels.rms_norm(x, torch.ones(8, dtype=torch.bfloat16), EPS)
    assert torch.equal(found, plain_rms_norm(x.double(), torch.ones(8).double()).bfloat16())


def test_bf16_losses_are_summed_in_fp32() -> None:
    logits, labels = torch.zeros(1, 3000, 2, dtype=torch.bfloat16), torch.zeros(1, 3000).long()
    # 3000 roundings of fp32 at the very most; bf16 cannot even count to 3000.
    exact = 3000 * math.log(2)
    assert cross_entropy_sum(logits, labels).item() == pytest.approx(exact, rel=3000 * 2**-24)


def test_ignored_labels_count_nothing() -> None:
    logits = random(2, 5, 7)
    some = cross_entropy_sum(logits, LABELS)
    kept = LABELS != IGNORED_LABEL
    alone = cross_entropy_sum(logits[kept], LABELS[kept])
    assert some.item() == pytest.approx(alone.item(), rel=1e-14)  # fp64, perhaps another order.
    logits.requires_grad_()
    cross_entropy_sum(logits, LABELS).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, kept)


def test_all_labels_ignored_gives_zero_and_no_nan() -> None:
    logits = random(2, 5, 7).requires_grad_()
    loss = cross_entropy_sum(logits, torch.full((2, 5), IGNORED_LABEL))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 5, 7))


def kept_for_backward(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """A kernel's inputs, and what it keeps for backward."""
    kernel, _, inputs = KERNELS[name]
    inputs = [x.clone().requires_grad_() for x in inputs]
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kernel(*inputs)
    return inputs, kept


def same_storage(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape


def test_rms_norm_keeps_its_inputs_and_a_number_a_row() -> None:
    (x, weight), kept = kept_for_backward("rms_norm")
    others = [k for k in kept if not same_storage(k, x) and not same_storage(k, weight)]
    assert len(kept) == 3
    assert [k.numel() for k in others] == [x.numel() // x.shape[-1]]


def test_swiglu_keeps_its_input_alone() -> None:
    (gate_up,), kept = kept_for_backward("swiglu")
    assert [same_storage(k, gate_up) for k in kept] == [True]


def test_rotary_keeps_the_table_alone() -> None:
    (_, table), kept = kept_for_backward("rotary")
    assert [same_storage(k, table) for k in kept] == [True]


def test_cross_entropy_keeps_one_copy_of_the_logits() -> None:
    (logits,), kept = kept_for_backward("cross_entropy_sum")
    copies = {k.data_ptr(): k.numel() for k in kept if k.is_floating_point()}
    assert sum(copies.values()) <= logits.numel() + 1  # And one number of the reduction.
