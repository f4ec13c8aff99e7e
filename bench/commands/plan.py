"""``python -m bench plan``: three programs; flags choose one of them.

- plan_longest: the memory of each method at one length, and the longest sequence that fits;
- plan_throughput: every layout that fits at one length, fastest first (--objective throughput);
- plan_map: the fastest method at every length and number of GPUs (--map).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import rows
from bench.commands import plan_longest, plan_map, plan_throughput
from bench.config import grid
from methods.from_file import is_file


def main(parsed: Any) -> int:
    """Run the chosen program; return 0 if something fits, else 1.

    Raises:
        ValueError: no method can run with these options.
    """
    base = replace(grid.run_config(parsed), dry_run=True)
    if parsed.map:
        if is_file(base.method):
            raise ValueError(
                f"method = {base.method} is not for a map; valid: a map without a file"
            )
        if parsed.out:
            raise ValueError(
                f"out = {parsed.out} is not for a map, which has its own CSV; valid: empty"
            )
        return plan_map.main(base, Path(parsed.map), parsed.map_seq_lens, parsed.map_world_sizes)
    for line in base.size_advice():
        print(f"advice: {line}", file=sys.stderr)
    if parsed.out:
        rows.check_writable(Path(parsed.out))
    program = plan_throughput if parsed.objective == "throughput" else plan_longest
    return program.main(base, parsed.out)
