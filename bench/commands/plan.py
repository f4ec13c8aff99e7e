"""``python -m bench plan``: four programs; flags choose one of them.

- plan_longest: the memory of each method at one length, and the longest sequence that fits;
- plan_throughput: every layout that fits at one length, fastest first (--objective throughput);
- plan_map: the fastest method at every length and number of GPUs (--map);
- plan_ladder: the longest sequence of each method, toggle by toggle (--ladder).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import rows
from bench.commands import plan_ladder, plan_longest, plan_map, plan_throughput
from bench.commands.prediction_flags import ALL_METHODS, ALL_PAIRS
from bench.config import grid
from bench.planner.map_file import Tried
from methods import METHODS
from methods.from_file import is_file
from odysseus.config.advice import size_advice
from odysseus.config.pairs import spread_pairs
from odysseus.config.run import RunConfig


def main(parsed: Any) -> int:
    """Run the chosen program; return 0 if something fits, else 1.

    Raises:
        ValueError: a method is not known, or none can run with these options; or flags exclude
            each other.
    """
    methods, base = planned(parsed)
    if parsed.map:
        if files := [name for name in methods if is_file(name)]:
            raise ValueError(f"method = {files[0]} is not for a map; valid: a map without a file")
        if parsed.out:
            raise ValueError(
                f"out = {parsed.out} is not for a map, which has its own CSV; valid: empty"
            )
        if parsed.ladder:
            raise ValueError("ladder = true is not for a map; valid: false, or no map")
        tried = Tried(methods, [*dict.fromkeys(parsed.map_tensor_parallel_sizes)])
        sizes = parsed.map_seq_lens, parsed.map_world_sizes
        return plan_map.main(base, tried, Path(parsed.map), *sizes)
    if parsed.ladder:
        if parsed.objective != "longest":
            raise ValueError(
                f"objective = {parsed.objective} is not for a ladder; valid: longest, or ladder = "
                "false"
            )
        return plan_ladder.main(base, methods, parsed.out)
    for line in size_advice(base):
        print(f"advice: {line}", file=sys.stderr)
    if parsed.out:
        rows.check_writable(Path(parsed.out))
    program = plan_throughput if parsed.objective == "throughput" else plan_longest
    return program.main(base, methods, parsed.out)


def planned(parsed: Any) -> tuple[list[str], RunConfig]:
    """Return the methods that a plan is about, and its run with the first of them.

    Raises:
        ValueError: a method is not known or has no file.
    """
    names: list[str] = []
    experts = grid.run_config(parsed, method=next(iter(METHODS))).architecture.num_experts > 0
    several = {ALL_METHODS: [*METHODS], ALL_PAIRS: spread_pairs(experts)}
    for name in parsed.method.replace(",", " ").split():
        names += several.get(name, [name])
    if not names:
        raise ValueError(
            f"method = {parsed.method!r} names none; valid: {', '.join([*several, *METHODS])}, "
            "or a file FILE.py with a METHOD"
        )
    runs = {name: grid.run_config(parsed, method=name) for name in names}
    if (given := runs[names[0]].model.implementation) != "native":
        raise ValueError(f"model.implementation = {given} is not for plan; valid: native")
    methods = dict.fromkeys(run.method for run in runs.values())
    return [*methods], replace(runs[names[0]], dry_run=True)
