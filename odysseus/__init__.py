"""The shared skeleton of all methods: one model, its collectives, ZeRO-3, data and step.

The names below are the documented API (docs/python-api.md). Each is imported at its first use, so
that ``import odysseus`` alone does not import PyTorch. METHODS and method_of come from the package
above, which no module but this one names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods import METHODS, method_of
    from odysseus.config.run import DataOptions, ModelOptions, OptimizerOptions, RunConfig
    from odysseus.io.text import Batch, Samples
    from odysseus.method import Method
    from odysseus.parallel.mesh import Mesh, make_mesh, pick_device, start_process_group
    from odysseus.training.trainer import StepResult, Trainer

_MODULES = {
    "methods": ("METHODS", "method_of"),
    "odysseus.config.run": ("DataOptions", "ModelOptions", "OptimizerOptions", "RunConfig"),
    "odysseus.io.text": ("Batch", "Samples"),
    "odysseus.method": ("Method",),
    "odysseus.parallel.mesh": ("Mesh", "make_mesh", "pick_device", "start_process_group"),
    "odysseus.training.trainer": ("StepResult", "Trainer"),
}

__all__ = [
    "METHODS",
    "Batch",
    "DataOptions",
    "Mesh",
    "Method",
    "ModelOptions",
    "OptimizerOptions",
    "RunConfig",
    "Samples",
    "StepResult",
    "Trainer",
    "make_mesh",
    "method_of",
    "pick_device",
    "start_process_group",
]


def __getattr__(name: str) -> Any:
    """Import a documented name from the module that defines it."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
