"""The choice of the attention kernel: by GPU, cuDNN, head and what is installed; and cuDNN's calls.

No GPU is there: PyTorch is told what it sees, and the arguments of cuDNN's operations are checked
by the names of their schemas, with a CPU's attention in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.model import attention_choice, block_attention
from odysseus.model.attention import Attend, local_attention
from odysseus.model.attention_choice import choose_attention
from odysseus.model.block_attention import CPU_FLASH, choose_block_attention
from odysseus.model.documents import Documents
from odysseus.model.kernels import TORCH, attention_kernel, check_kernels, within_window

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
BF16 = torch.bfloat16
AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tell PyTorch which GPU, cuDNN and packages it sees."""
    for switch in attention_choice._SWITCHES:
        monkeypatch.delenv(switch, raising=False)

    def told(capability: tuple[int, int], cudnn: int | None = 91600, *packages: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        for module in (attention_choice, block_attention):
            monkeypatch.setattr(module, "is_installed", lambda name: name in packages)
        monkeypatch.setattr(attention_choice, "_of_package", lambda name: name)

    return told


TWO, THREE = "flash_attention_2", "flash_attention_3"


@pytest.mark.parametrize(
    ("asked", "capability", "cudnn", "packages", "head_dim", "chosen"),
    [
        ("auto", AMPERE, 91600, (), 128, "sdpa"),
        ("auto", AMPERE, 91600, (TWO, THREE), 128, TWO),
        ("auto", HOPPER, 91600, (), 128, "cudnn"),
        ("auto", HOPPER, 91600, (TWO,), 128, "cudnn"),
        ("auto", HOPPER, 91600, (TWO, THREE), 128, THREE),
        ("auto", HOPPER, 91500, (), 128, "sdpa"),
        ("auto", HOPPER, None, (TWO,), 128, TWO),
        ("auto", HOPPER, 91600, (), 256, "cudnn"),
        ("auto", HOPPER, 91600, (), 192, "sdpa"),
        ("auto", BLACKWELL, 91600, (THREE,), 128, "cudnn"),
        ("auto", BLACKWELL, 91600, (), 256, "sdpa"),
        ("auto", BLACKWELL, 91600, (), 100, "sdpa"),
        ("auto", (10, 3), 91600, (), 128, "cudnn"),
        ("auto", (12, 0), 91600, (), 128, "sdpa"),
        ("sdpa", HOPPER, 91600, (TWO, THREE), 128, "cudnn"),
        ("sdpa", AMPERE, 91600, (TWO,), 128, "sdpa"),
        ("cudnn", BLACKWELL, 91600, (), 64, "cudnn"),
        (TWO, HOPPER, 91600, (), 128, TWO),
        (TWO, HOPPER, 91600, (TWO,), 128, TWO),
        (THREE, HOPPER, 91600, (THREE,), 128, THREE),
    ],
)
def test_the_kernel_of_a_gpu(
    see: Any,
    asked: str,
    capability: tuple[int, int],
    cudnn: int | None,
    packages: tuple[str, ...],
    head_dim: int,
    chosen: str,
) -> None:
    see(capability, cudnn, *packages)
    name, attend = choose_attention(asked, GPU, BF16, head_dim)
    assert name == chosen
    assert (attend == name) == (name in packages)
    of_package = choose_block_attention(name, GPU) in block_attention._OF_PACKAGES.values()
    assert of_package == (name in packages)


@pytest.mark.parametrize(
    ("asked", "capability", "dtype", "head_dim", "said"),
    [
        ("cudnn", AMPERE, BF16, 128, r"head_dim = 128 with cuDNN 91600 on this GPU; valid: auto"),
        ("cudnn", BLACKWELL, BF16, 256, r"cudnn has no kernel for model\.head_dim = 256"),
        ("cudnn", HOPPER, torch.float32, 128, r"cudnn computes in bf16, not in float32"),
        (THREE, HOPPER, BF16, 128, r"flash_attn_interface; valid without it: auto, sdpa, flash_"),
    ],
)
def test_a_kernel_that_is_not_there(
    see: Any,
    asked: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    said: str,
) -> None:
    see(capability)
    with pytest.raises(ValueError, match=said):
        choose_attention(asked, GPU, dtype, head_dim)


def test_a_check_asks_no_gpu(see: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that starts ranks checks their options, and must not take memory of a GPU."""
    see(HOPPER)
    monkeypatch.setattr(torch.cuda, "get_device_capability", None)
    for asked in ("auto", "sdpa", "cudnn", TWO):
        check_kernels(ModelOptions(attn_implementation=asked), GPU, BF16)  # pyrefly: ignore
    with pytest.raises(ValueError, match="needs the package flash_attn_interface"):
        check_kernels(ModelOptions(attn_implementation=THREE), GPU, BF16)


def test_what_a_gpu_does_not_decide(see: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    see(HOPPER, 91600, TWO, THREE)
    for asked in ("auto", "sdpa"):
        assert choose_attention(asked, GPU, torch.float32)[0] == "sdpa"
        assert choose_attention(asked, CPU, BF16)[0] == "sdpa"
    assert attention_kernel(RunConfig(dtype="bf16"), GPU) == THREE
    ring = RunConfig(dtype="bf16", world_size=2, ring_parallel_size=2, ring_backend="yunchang")
    assert attention_kernel(ring, GPU) == TWO
    # What computes where PyTorch chooses, and where documents are packed.
    see(HOPPER)
    narrow = RunConfig(dtype="bf16", model=ModelOptions(head_dim=36))
    assert attention_kernel(narrow, GPU) == "sdpa"
    usual = RunConfig(dtype="bf16")
    assert attention_kernel(usual, GPU) == "cudnn"
    assert attention_kernel(replace(usual, data=DataOptions(pack=True)), GPU) == TWO
    see(AMPERE)
    assert attention_kernel(usual, GPU) == TWO
    assert attention_kernel(usual, CPU) == attention_kernel(RunConfig(), GPU) == "sdpa"
    # PyTorch's own switches against cuDNN.
    see(HOPPER)
    for switch in ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "TORCH_CUDNN_SDPA_AVOID_RECOMPILE"):
        with monkeypatch.context() as during:
            during.setenv(switch, "1")
            assert choose_attention("auto", GPU, BF16)[0] == "sdpa"
    assert choose_attention("auto", GPU, BF16)[0] == "cudnn"
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert choose_attention("auto", GPU, BF16)[0] == "sdpa"


def tensors() -> list[Tensor]:
    return [torch.randn(2, 12, heads, 8, dtype=torch.double) for heads in (4, 2, 2)]


@pytest.mark.parametrize("backend", [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION])
def test_pytorchs_kernel_comes_first_and_others_after_it(
    backend: SDPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    attend: Attend = attention_choice._first(backend)
    scaled = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        orders.append(torch._C._get_sdp_priority_order())
        return scaled(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    before = torch._C._get_sdp_priority_order()
    q, k, v = tensors()
    torch.testing.assert_close(attend(q, k, v), attention_choice.sdpa(q, k, v))
    assert orders[0][0] == int(backend)
    assert torch._C._get_sdp_priority_order() == before


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    assert (attn_bias, compute_log_sumexp, dropout_p) == (None, True, 0.0)
    assert (return_debug_mask, scale) == (False, None)
    o, logsumexp = CPU_FLASH.forward(*(x.transpose(1, 2) for x in (query, key, value)), is_causal)
    no = torch.empty(0, dtype=torch.int64)
    return o.transpose(1, 2), logsumexp.unsqueeze(-1), no, no, 12, 12, no, no, no


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    attn_bias: Tensor | None,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    assert (max_q, max_k, dropout_p, scale) == (query.shape[2], key.shape[2], 0.0, None)
    assert philox_seed.shape == philox_offset.shape == ()
    assert logsumexp.shape == (*query.shape[:3], 1)
    assert grad_out.transpose(1, 2).is_contiguous()
    assert out.transpose(1, 2).is_contiguous()
    tokens = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
    found = CPU_FLASH.backward(*tokens, logsumexp.squeeze(-1), is_causal)
    return tuple(x.transpose(1, 2) for x in found)


@pytest.fixture
def cudnn_on_cpu() -> Iterator[None]:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_scaled_dot_product_cudnn_attention", forward, "CPU")
        library.impl("_scaled_dot_product_cudnn_attention_backward", backward, "CPU")
        yield


CUDNN = block_attention.OF_PYTORCH["cudnn"]


@pytest.mark.usefixtures("cudnn_on_cpu")
@pytest.mark.parametrize(("causal", "first"), [(True, 0), (False, 0), (False, 6)])
def test_a_block_of_cudnns_is_a_block_of_the_cpus(causal: bool, first: int) -> None:
    torch.manual_seed(0)
    q, k, v = tensors()
    q = q[:, first:]
    found, expected = (of.forward(q, k, v, causal) for of in (CUDNN, CPU_FLASH))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    o, logsumexp = expected
    # As a method may hand them over: not contiguous.
    grad_o, o = (torch.stack([x, x], dim=2).unbind(dim=2)[0] for x in (torch.randn_like(q), o))
    grads = [of.backward(grad_o, q, k, v, o, logsumexp, causal) for of in (CUDNN, CPU_FLASH)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_documents_windows_and_single_tokens_are_flash_attentions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuDNN makes a plan for every shape, and has none for one token."""
    for name in ("_cuda_forward", "_cuda_backward"):
        monkeypatch.setattr(block_attention, name, getattr(block_attention, f"_cpu{name[5:]}"))
    monkeypatch.setattr(block_attention, "CUDA_FLASH", CPU_FLASH)
    torch.manual_seed(0)
    q, k, v = tensors()
    documents = Documents(((0, 5), (0, 1, 9)))
    attention, of_cpu = local_attention(CUDNN), local_attention(CPU_FLASH)
    found, expected = (of.forward(q, k, v, documents) for of in (attention, of_cpu))
    torch.testing.assert_close(found, expected)
    grads = [of.backward(q, q, k, v, *expected, documents) for of in (attention, of_cpu)]
    torch.testing.assert_close(*grads)
    kernels = replace(TORCH, blocks=CUDNN)
    window = within_window(kernels, 3).attend(q, k, v)
    torch.testing.assert_close(
        window, within_window(replace(TORCH, blocks=CPU_FLASH), 3).attend(q, k, v)
    )
    one = q[:, :1]
    found, expected = (of.forward(one, k, v, False) for of in (CUDNN, CPU_FLASH))
    torch.testing.assert_close(found, expected)
    grads = [of.backward(one, one, k, v, *expected, False) for of in (CUDNN, CPU_FLASH)]
    torch.testing.assert_close(*grads)
