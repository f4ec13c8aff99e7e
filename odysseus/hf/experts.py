"""The load-balancing loss of mixture-of-experts models, over the tokens of all ranks.

Each token goes to the experts that its own router chooses, so the blocks need no other rank's
tokens. The loss does: it is E·Σ_e f_e·P_e with f_e the share of tokens that expert e gets and P_e
its mean probability, over all layers (Fedus et al., arXiv 2101.03961, eq. 4 to 6). Shares have no
gradient and are summed over ranks; a rank's part is E·Σ_e f_e·(its own tokens' part of P_e).
T tokens of this rank, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odysseus.hf.batches import SplitDocuments
from odysseus.hf.changes import Changes
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Mesh


def balance_over_ranks(model: Any, changes: Changes, mesh: Mesh) -> None:
    """Make a model's output have this rank's part of the load-balancing loss.

    Where Transformers computes one (``output_router_logits``), ``output.aux_loss`` becomes this
    rank's part, and ``output.router_loss`` that times ``router_aux_loss_coef``, which
    :func:`odysseus.hf.loss` adds.
    """
    hook = partial(_replace_loss, mesh)
    changes.undos.append(model.register_forward_hook(hook, with_kwargs=True).remove)


def _replace_loss(mesh: Mesh, model: Any, _: Any, kwargs: Mapping[str, Any], output: Any) -> None:
    if getattr(output, "router_logits", None) is None:
        return
    documents = kwargs.get("documents")
    if not isinstance(documents, SplitDocuments):
        raise ValueError(
            f"{type(model).__name__} returns router logits and was given no documents; valid: "
            "batches of odysseus.hf.shard_batch, or output_router_logits = false"
        )
    kept = None if documents.padding is None else ~documents.padding.flatten()
    experts = output.router_logits[0].shape[-1]
    part = load_balancing_loss(output.router_logits, model.config.num_experts_per_tok, kept, mesh)
    output.aux_loss = experts * part
    output.router_loss = model.config.router_aux_loss_coef * output.aux_loss


def load_balancing_loss(
    router_logits: tuple[Tensor, ...], top_k: int, kept_T: Tensor | None, mesh: Mesh
) -> Tensor:
    """Return this rank's part of Σ_e f_e·P_e, a scalar in at least fp32.

    Args:
        router_logits: Per layer, [T, E].
        top_k: Experts of a token.
        kept_T: Whether a token counts; None if all do.
        mesh: The mesh that this rank belongs to.
    """
    wide = torch.promote_types(router_logits[0].dtype, torch.float32)
    weight_T1 = 1.0 if kept_T is None else kept_T.to(wide).unsqueeze(1)
    probability_E: Any = 0.0
    # The number of tokens comes after those of the experts.
    counts = torch.zeros(router_logits[0].shape[1] + 1, dtype=torch.float64, device=mesh.device)
    for logits_TE in router_logits:
        probability_TE = torch.softmax(logits_TE.to(wide), -1) * weight_T1
        probability_E = probability_E + probability_TE.sum(0)
        chosen_TE = torch.zeros_like(logits_TE, dtype=wide)
        chosen_TE.scatter_(1, logits_TE.detach().topk(top_k, -1).indices, 1.0)
        counts[:-1] += (chosen_TE * weight_T1).sum(0)
        counts[-1] += logits_TE.shape[0] if kept_T is None else kept_T.sum()
    transfers.all_reduce_plain(counts, mesh.world)
    tokens = counts[-1].clamp(min=1)  # all may be padding
    shares_E = (counts[:-1] / tokens).to(wide)
    return (shares_E * probability_E).sum() / tokens.to(wide)
