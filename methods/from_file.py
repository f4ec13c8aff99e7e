"""Load a method from a Python file outside this repository. Loading executes the file."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from os.path import isfile
from pathlib import Path

from odysseus.method import Method

_NAME = re.compile(r"[A-Za-z_][\w.-]*")


def is_file(name: str) -> bool:
    """Return whether a run's ``method`` is a Python file: its name ends in ``.py``."""
    return name.endswith(".py")


def is_name(name: str) -> bool:
    """Return whether a method may have this name.

    It consists of letters, digits, ``_``, ``-`` and ``.``, and begins with a letter or ``_``, so
    that it is readable in tables, legends and layouts like ``NAME x ring 2``.
    """
    return _NAME.fullmatch(name) is not None


def load(name: str) -> Method:
    """Execute a Python file once in this process and return its ``METHOD``.

    Args:
        name: Path of the file, absolute or relative to the current folder.

    Raises:
        ValueError: the file does not exist or raised an exception; or its ``METHOD`` is missing,
            is not a :class:`odysseus.method.Method`, or has an invalid name.
    """
    return _load(name, Path(name).absolute())


@lru_cache
def _load(name: str, path: Path) -> Method:
    if not isfile(path):
        raise ValueError(f"method = {name} is not a file; valid: a Python file with a METHOD")
    spec = spec_from_file_location(f"method_file_{path.stem}", path)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None, "its name ends in .py"
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their annotations here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"method = {name} cannot be loaded: {type(error).__name__}: {reason}; "
            "valid: a Python file with a METHOD"
        ) from error
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Method):
        problem = "has no METHOD" if method is None else f"METHOD is a {type(method).__name__}"
        raise ValueError(f"method = {name}: {problem}; valid: METHOD = odysseus.method.Method(…)")
    if not is_name(method.name):
        raise ValueError(
            f"method = {name}: its METHOD has the name {method.name!r}; "
            "valid: letters, digits, '_', '-' and '.', a letter or '_' first"
        )
    return method
