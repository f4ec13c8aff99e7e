"""The four ways to spread a block over the ranks of the sequence axis, by name."""

from methods import odysseus, tp, tp_sp, ulysses
from odysseus.method import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (tp, tp_sp, ulysses, odysseus)
}
