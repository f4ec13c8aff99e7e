"""Groups of options: each checks its own bounds, and their order is that of help and sweeps."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from math import inf, nan
from reprlib import repr as shortened

import pytest

from odysseus.config.groups import Batch, Execution, MemorySavings, Precision
from odysseus.config.nested import OptimizerOptions
from odysseus.config.option_group import OptionGroup, flags_of, groups_of, ordered_fields
from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Batch(seq_len=0), "seq_len is 0; it must be at least 1"),
        (Parallelism(overlap_chunks=0), "overlap_chunks is 0; it must be at least 1"),
        (MemorySavings(ulysses_head_chunks=-1), "ulysses_head_chunks is -1; it must be at least 1"),
        (
            Parallelism(world_size=4, ring_parallel_size=3),
            "ring_parallel_size = 3 does not divide world_size = 4; valid: [1, 2, 4]",
        ),
        (
            OptimizerOptions(learning_rate=0.0),
            "optimizer.learning_rate is 0.0; it must be above 0 and finite",
        ),
        (
            OptimizerOptions(learning_rate=nan),
            "optimizer.learning_rate is nan; it must be above 0 and finite",
        ),
        (
            OptimizerOptions(learning_rate=inf),
            "optimizer.learning_rate is inf; it must be above 0 and finite",
        ),
        (
            Execution(timeout_s=10**400),
            f"timeout_s is {shortened(10**400)}; it must be at most 100000000",
        ),
        (Parallelism(world_size=10**12), "world_size is 1000000000000; it must be at most 1048576"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OptionGroup) else "",
)
def test_a_group_checks_its_own_options(group: OptionGroup, message: str) -> None:
    type(group)().check()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        group.check()


def test_every_option_belongs_to_one_group() -> None:
    names = [f.name for f in ordered_fields(RunConfig)]
    assert sorted(names) == sorted(f.name for f in fields(RunConfig))
    assert [group.__name__ for group, _ in groups_of(RunConfig)] == [
        *("RunConfig", "Parallelism", "Batch", "Precision", "Zero", "MemorySavings", "Execution"),
        "DryRun",
    ]


def test_every_option_is_explained() -> None:
    for group, own in groups_of(RunConfig):
        missing = [f.name for f in own if f"        {f.name}: " not in (group.__doc__ or "")]
        assert missing == [], group.__name__


def test_methods_and_models_vary_slowest_then_ranks_then_lengths() -> None:
    """The order in which a sweep runs its cells."""
    flags = [flag for flag, _ in flags_of(RunConfig())]
    slowest_first = ("method", "model.name_or_path", "world_size", "ring_backend", "seq_len")
    slowest_first += ("dtype", "zero_prefetch", "activation_checkpointing", "tiled_mlp_compute")
    slowest_first += ("tiled_loss_compute", "tiled_loss_engine", "steps", "rank")
    assert [flag for flag in flags if flag in slowest_first] == list(slowest_first)


def test_a_group_has_the_properties_of_its_options() -> None:
    axes = Parallelism(world_size=8, ring_parallel_size=2, sequence_parallel_size=2)
    assert (axes.sequence_size, axes.shards, axes.data_parallel_size) == (2, 4, 2)
    assert (axes.seq_len_unit, Parallelism(world_size=4, overlap_chunks=2).seq_len_unit) == (8, 8)
    assert MemorySavings(activation_checkpoint_cpu_offload=True).recomputes
    assert Precision(dtype="bf16").compute_dtype.itemsize == 2


def test_options_are_read_without_torch() -> None:
    code = "import sys; from odysseus.config import run; run.RunConfig().check()"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
