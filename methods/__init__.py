"""Methods by name: four ways to spread a block over the sequence axis, and others.

Others are pairs of an attention and an MLP (:mod:`methods.pairs`), or come from files.
"""

from methods import odysseus, tp, tp_sp, ulysses
from methods.from_file import is_file, load
from methods.pairs import pair
from odysseus.method import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (tp, tp_sp, ulysses, odysseus)
}


def method_of(name: str) -> Method:
    """Return a run's method: one of :data:`METHODS`, a pair, or from a Python file.

    Raises:
        KeyError: the name is neither in :data:`METHODS` nor a pair's.
        ValueError: the file cannot be loaded (see :func:`methods.from_file.load`), or its method
            has a name that is already in :data:`METHODS`.
    """
    if not is_file(name):
        return METHODS.get(name) or pair(name)
    method = load(name)
    if method.name in METHODS:
        raise ValueError(
            f"method = {name}: its METHOD has the name {method.name!r} of a method of this "
            "project; valid: another name"
        )
    return method


def label_of(name: str) -> str:
    """Return the label of a run's ``method`` in rows and titles.

    A file is labelled with the name of its method. Any other ``method`` is its own label.

    Raises:
        ValueError: the file cannot be loaded (see :func:`method_of`).
    """
    return method_of(name).name if is_file(name) else name
