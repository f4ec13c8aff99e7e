"""The head of a Transformers model that returns token losses instead of the logits.

B batch, s tokens of this rank, T = B·s, t tokens of a tile, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from odysseus.config.groups import MemorySavings
from odysseus.config.run import RunConfig
from odysseus.hf import families
from odysseus.hf.changes import Changes
from odysseus.model import loss

_PER_TOKEN: ContextVar[bool] = ContextVar("per token", default=False)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def tiles_loss(model: Any, run: RunConfig) -> bool:
    """Whether a model's loss is computed in tiles: if asked for, and by default where it is known
    to be right."""
    known = model.config.model_type in families.TILED_LOSS and not _hooks(_head(model))
    return run.tiles_loss and (known or run.tiled_loss_compute is True)


def check(model: Any, run: MemorySavings) -> None:
    """Raise ValueError if a run asks for tiles of a head whose hooks need all logits."""
    if run.tiled_loss_compute is True:
        _check_hooks(model)


def compute_loss(model: Any, run: RunConfig, changes: Changes) -> None:
    """Make the head return the sum of token losses, a scalar, instead of the logits; inside
    :func:`token_log_probs`, the log-probability of each label.

    A head that is a weight alone takes the run's loss engine. Any other, with a bias or an adapter,
    is called tile by tile, under activation checkpointing.
    """
    head, vocabulary = _head(model), model.config.vocab_size
    forward, tile = head.forward, loss.most_tokens(run, vocabulary)
    engine = loss.choose_loss(run, vocabulary)
    # FSDP2 adds hooks of its own to the head; what is called inside must not run them again.
    is_weight = type(head) is nn.Linear and head.bias is None and "forward" not in vars(head)
    labels: list[Tensor] = []

    def store_labels(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if "shift_labels" not in kwargs:
            raise ValueError(
                "the loss is computed in tiles, and the model was not given shift_labels; valid: "
                "batches of odysseus.hf.shard_batch"
            )
        labels[:] = [kwargs["shift_labels"]]

    def sum_losses(x_BsD: Tensor) -> Tensor:
        _check_hooks(model)  # also of those that were added since
        hidden_TD, labels_Bs = x_BsD.flatten(0, 1), labels.pop()
        labels_T = labels_Bs.flatten()
        if _PER_TOKEN.get():
            return loss.token_log_probs(forward, hidden_TD, labels_T, tile).view(labels_Bs.shape)
        if is_weight:
            return engine(hidden_TD, head.weight, labels_T)
        return loss.checkpointed_head(forward, hidden_TD, labels_T, tile)

    changes.undos.append(model.register_forward_pre_hook(store_labels, with_kwargs=True).remove)
    changes.set(head, "forward", sum_losses)


def token_log_probs(model: Any, shard: Mapping[str, Any]) -> Tensor:
    """Run a model, and return the log-probability of each label of this rank's shard.

    For preference and policy losses, without a router's loss. Where the loss is computed in tiles,
    so are these, and no rank ever holds all logits. A sample's sum over tokens is
    ``sum_over_ranks(log_probs.sum(1), mesh)``.

    Args:
        model: A prepared model.
        shard: What :func:`odysseus.hf.shard_batch` has returned.

    Returns:
        [B, s] in at least fp32; 0 where the label is -100.
    """
    token = _PER_TOKEN.set(True)
    try:
        logits = model(**shard).logits
    finally:
        _PER_TOKEN.reset(token)
    labels = shard["shift_labels"]
    return logits if logits.dim() == labels.dim() else loss.log_probs(logits, labels)


def _check_hooks(model: Any) -> None:
    if _hooks(_head(model)):
        raise ValueError(
            f"the head of {type(model).__name__} has hooks, which expect logits, and a loss in "
            "tiles has none; valid: tiled_loss_compute = false, or a head without hooks"
        )


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


def _hooks(head: nn.Module) -> list[Callable[..., Any]]:
    """The hooks that a head is called with, but for FSDP2's."""
    hooks = [hook for kind in _HOOKS for hook in getattr(head, kind).values()]
    return [hook for hook in hooks if not _module_of(hook).startswith("torch.distributed.")]


def _module_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__module__", None) or ""
