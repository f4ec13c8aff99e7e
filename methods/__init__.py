"""The four ways to spread a block over the ranks of the sequence axis, by name; others by file."""

from methods import odysseus, tp, tp_sp, ulysses
from methods.from_file import is_file, load
from odysseus.method import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (tp, tp_sp, ulysses, odysseus)
}


def method_of(name: str) -> Method:
    """Return the method that a run's ``method`` means: a name in :data:`METHODS`, or a Python file.

    Raises:
        KeyError: no method has this name.
        ValueError: the file cannot be loaded (see :func:`methods.from_file.load`), or its method
            has the name of one in :data:`METHODS`.
    """
    if not is_file(name):
        return METHODS[name]
    method = load(name)
    if method.name in METHODS:
        raise ValueError(
            f"method = {name}: its METHOD has the name {method.name!r} of a method of this "
            "project; valid: another name"
        )
    return method


def label_of(name: str) -> str:
    """Return how rows and titles call a run's ``method``: a file by the name of its method, all
    others as they are.

    Raises:
        ValueError: as :func:`method_of`.
    """
    return method_of(name).name if is_file(name) else name
