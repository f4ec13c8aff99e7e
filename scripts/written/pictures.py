"""Draw every shipped figure again, with the commands of results/README.md.

python -m scripts.written.pictures

Nothing is measured again: the figures come from the rows in results/. The diagrams of docs/ are
drawn too.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bench.__main__ import main as bench_main
from bench.commands import compare, flags, plan_ladder, verify
from bench.config import grid, options
from bench.report import draw_matplotlib
from bench.report.charts import verify as verify_chart
from bench.runner.verify import TOLERANCES, coarsest_dtype
from scripts.studies import emulated_errors, growth, overlap_summary
from scripts.written import diagrams

RESULTS = Path("results")
STUDIES = {
    "scripts.studies.emulated_errors": emulated_errors.main,
    "scripts.studies.overlap_summary": overlap_summary.main,
    "scripts.studies.growth": growth.main,
}


def commands(text: str) -> Iterator[list[str]]:
    """Yield module and arguments of every `python -m` command in a text, with loops over words
    expanded and continued lines joined."""
    name, words = "", [""]
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if loop := re.fullmatch(r"for (\w+) in (.+); do", line):
            name, words = loop[1], loop[2].split()
        elif line == "done":
            name, words = "", [""]
        elif line.lstrip().startswith("python -m "):
            for word in words:
                command = line.replace(f"${name}", word) if name else line
                yield shlex.split(command, comments=True)[2:]


def draw(command: list[str]) -> None:
    """Draw the figures of one command, if it draws any."""
    module, *arguments = command
    if module in STUDIES:
        sys.argv = command
        STUDIES[module]()
    if module != "bench":
        return
    verb, *rest = arguments
    if "--ladder" in rest:
        plan_ladder.save_figure(Path(rest[rest.index("--out") + 1]))
    elif verb in ("report", "plan", "validate"):
        bench_main(arguments)
    elif verb == "verify":
        _overlay(rest)
    elif verb == "compare":
        compare.save_figure(Path(rest[rest.index("--out") + 1]))


def _overlay(arguments: list[str]) -> None:
    """Draw the figure of a correctness experiment, titled after its run."""
    parsed: Any = options.parse(flags.verify(), arguments)
    out = Path(parsed.out)
    run = grid.run_config(parsed)
    tolerance, _ = TOLERANCES[coarsest_dtype(run)]
    chart = verify_chart.overlay(pd.read_csv(out), verify.title(run), tolerance)
    draw_matplotlib.save(draw_matplotlib.draw(chart), out.with_suffix(""))


def main() -> None:
    """Draw all figures, then delete the files of reports that are not shipped."""
    shipped = set(RESULTS.rglob("*"))
    for command in commands((RESULTS / "README.md").read_text()):
        draw(command)
    for extra in set(RESULTS.rglob("*")) - shipped:
        extra.unlink()
    diagrams.main()


if __name__ == "__main__":
    main()
