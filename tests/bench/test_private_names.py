"""Private names of PyTorch outside odysseus: each has a known home, beside those that every watcher
of operations needs."""

from __future__ import annotations

import ast

from tests.support.paths import ROOT
from tests.support.private_names import private_imports_of_torch

OF_WATCHERS = {
    "torch._ops.OpOverload",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map_only",
}
"""Names that PyTorch's own notes on extending it use."""
HOMES = {
    "bench/calibration/host.py": {"torch.testing._internal.distributed.fake_pg"},
    "bench/meters/memory.py": {
        "torch.distributed._functional_collectives.AsyncCollectiveTensor",
    },
    "bench/meters/traffic.py": {"torch._C._distributed_c10d._resolve_process_group"},
    "bench/meters/watcher.py": {
        "torch.nn.modules.linear_cross_entropy._linear_cross_entropy_batch_chunked_accumulator",
    },
    "bench/runner/fork_server.py": {"torch._dynamo"},
    "bench/runner/join.py": {
        "torch._C._distributed_c10d.PrefixStore",
        "torch._C._distributed_c10d.TCPStore",
    },
    "methods/peers/torch_context_parallel.py": {
        "torch.distributed.tensor.experimental._context_parallel._attention",
    },
}
"""Files that need one. The patches of dry runs are in two places of their own: fake_world.py for
this project's code, bench/scripted for any script's."""
OF_PATCHES = ("bench/simulator/fake_world.py", "bench/scripted/")


def test_each_private_name_has_a_known_home() -> None:
    used: dict[str, set[str]] = {}
    for top in ("bench", "methods", "scripts"):
        for file in sorted((ROOT / top).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            private = {*private_imports_of_torch(ast.parse(file.read_text()))} - OF_WATCHERS
            if private and not name.startswith(OF_PATCHES):
                used[name] = private
    assert used == HOMES
