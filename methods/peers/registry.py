"""Registry of the peers, with the differences between each one's work and this project's."""

from __future__ import annotations

from methods.peers.peer import Peer

_WHOLE_LOGITS = "all logits on every rank, replicated embedding and head activations"
_BY_VOCABULARY = "logits cut by vocabulary, not by tokens; embedding and head cut, not gathered"
_LOGITS_OF_SHARD = "a shard's logits whole"
_UNPACKED = "weights not packed"
_FIVE_ALL_REDUCES = f"{_UNPACKED}: five all-reduces of a block's input gradients, not two"
_KEEP_TOKENS = {"regather": False}  # keep gathered tokens for backward
_KEEP_WEIGHTS = {"reshard_after_forward": False}  # keep gathered weights for backward
_BEFORE_PREFETCH = 2  # ZeRO-3 learns the order of its weights first
_EXCHANGED = f"q, k, v exchanged one by one; {_UNPACKED}"


PEERS = {
    "dtensor_tp": Peer("tp", "torch", "dtensor:tensor_parallel", _FIVE_ALL_REDUCES, _WHOLE_LOGITS),
    "dtensor_tp_sp": Peer(
        "tp_sp",
        "torch",
        "dtensor:sequence_parallel",
        _UNPACKED,
        _WHOLE_LOGITS,
        overrides=_KEEP_TOKENS,
    ),
    "dtensor_tp_sp_loss": Peer(
        "tp_sp",
        "torch",
        "dtensor:sequence_and_loss_parallel",
        _UNPACKED,
        _BY_VOCABULARY,
        overrides=_KEEP_TOKENS,
    ),
    "fairscale_tp": Peer("tp", "fairscale", "fairscale_tp:build", _FIVE_ALL_REDUCES, _WHOLE_LOGITS),
    "megatron_tp": Peer(
        "tp",
        "megatron",
        "megatron_core:tensor_parallel",
        "SwiGLU not compiled",
        f"{_BY_VOCABULARY}; loss not compiled",
        cuts=("vocab_size",),
    ),
    "megatron_tp_sp": Peer(
        "tp_sp",
        "megatron",
        "megatron_core:sequence_parallel",
        "SwiGLU not compiled",
        f"{_BY_VOCABULARY}; loss not compiled",
        cuts=("vocab_size",),
        least_ranks=2,
    ),
    "torchtitan_tp_sp": Peer(
        "tp_sp",
        "torchtitan spmd_types tyro",
        "torchtitan_llama:tensor_and_sequence_parallel",
        "gate and up not packed; rotary embedding in complex numbers",
        _BY_VOCABULARY,
        overrides=_KEEP_TOKENS,
        install="--no-deps -r requirements-torchtitan.txt",
    ),
    "yunchang_ulysses": Peer(
        "ulysses", "yunchang", "yunchang_ulysses:build", _EXCHANGED, _LOGITS_OF_SHARD
    ),
    "yunchang_ring": Peer(
        "ulysses",
        "yunchang",
        "yunchang_ring:build",
        "keys and values sent apart, their gradients one hop further; on a CPU PyTorch's flash "
        f"attention in flash-attn's place; {_UNPACKED}",
        _LOGITS_OF_SHARD,
        dtypes=("bf16",),
        ring=True,
        gpu_package="flash_attn",
    ),
    "torch_context_parallel": Peer(
        "ulysses",
        "torch",
        "torch_context_parallel:build",
        f"keys and values gathered whole, their gradients go round; {_UNPACKED}",
        _LOGITS_OF_SHARD,
        ring=True,
        devices=("cpu",),
    ),
    "deepspeed_ulysses": Peer(
        "ulysses",
        "deepspeed transformers",
        "deepspeed_zero3:ulysses",
        _EXCHANGED,
        _LOGITS_OF_SHARD,
        overrides=_KEEP_WEIGHTS,
        cuts=("num_key_value_heads",),
        first_steps=_BEFORE_PREFETCH,
    ),
    "deepspeed_alst": Peer(
        "ulysses",
        "deepspeed transformers",
        "deepspeed_zero3:alst",
        f"{_EXCHANGED}; position ids gathered in every block",
        overrides=_KEEP_WEIGHTS | {"tiled_mlp_compute": True, "tiled_loss_compute": True},
        first_steps=_BEFORE_PREFETCH,
    ),
}
