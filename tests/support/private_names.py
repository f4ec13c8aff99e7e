"""Private names of PyTorch that a module uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator

ALLOWED = {
    "_flash_attn_forward",  # of flash-attn, which has no public function with the log-sum-exp
    "_flash_attn_backward",
    "_attn_implementation",  # of Transformers' models
    "_init_weights",
    "_gradient_checkpointing_func",
    "_get_collator_with_removed_columns",  # of its trainers
    "_clip_grad_norm",
    "_get_grad_norm",
    "_save",
    "_cdata",  # the identity of a storage, which odysseus.memory needs, below odysseus.parallel
    "_C",  # whether a backward keeps its graph, which odysseus.model needs, below it as well
    "_autograd",
    "_get_current_graph_task_keep_graph",
}


def private_names_of_torch(tree: ast.Module) -> Iterator[str]:
    """Private names that a module imports from torch, or reads of anything but itself.

    Operators (``torch.ops``) are named after kernels and do not count.
    """
    yield from private_imports_of_torch(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in ALLOWED:
            of_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            of_operators = ast.unparse(node.value).startswith("torch.ops.")
            if not (of_itself or of_operators) and _is_private(f"torch.{node.attr}"):
                yield f"torch.{node.attr}"


def private_imports_of_torch(tree: ast.Module) -> Iterator[str]:
    """Private names that a module imports from torch."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from filter(_is_private, names)


def _is_private(name: str) -> bool:
    top, *parts = name.split(".")
    return top == "torch" and any(p.startswith("_") and p[:2] != "__" for p in parts)
