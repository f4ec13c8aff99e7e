"""Changes of a model that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Undo = Callable[[], None]


class Changes:
    """Changes of a model, with the functions that undo them, newest last."""

    def __init__(self) -> None:
        self.undos: list[Undo] = []

    def set(self, target: Any, name: str, value: Any) -> None:
        """Set an attribute of an object, and remember its own value or that it had none."""
        if name in vars(target):
            self.undos.append(partial(setattr, target, name, vars(target)[name]))
        else:
            self.undos.append(partial(delattr, target, name))
        setattr(target, name, value)

    def undo(self) -> None:
        """Undo all changes, the newest first."""
        while self.undos:
            self.undos.pop()()
