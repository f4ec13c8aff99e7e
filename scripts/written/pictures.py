"""Every shipped figure again, from the files that results/README.md gives the commands of.

python -m scripts.written.pictures

What those commands measure is not measured again: their figures are drawn from the rows that are
there. So are the diagrams of docs/.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bench.commands import compare, plan, report, verify
from bench.config import options
from bench.report import draw_matplotlib
from bench.report.charts import verify as verify_chart
from scripts.studies import emulated_errors, growth, overlap_summary
from scripts.written import diagrams

RESULTS = Path("results")
STUDIES = {
    "scripts.studies.emulated_errors": emulated_errors.main,
    "scripts.studies.overlap_summary": overlap_summary.main,
    "scripts.studies.growth": growth.main,
}


def commands(text: str) -> Iterator[list[str]]:
    """The Python modules that a text's commands run, with their arguments; loops over words
    spelled out."""
    name, words = "", [""]
    for line in text.splitlines():
        if loop := re.fullmatch(r"for (\w+) in (.+); do", line):
            name, words = loop[1], loop[2].split()
        elif line == "done":
            name, words = "", [""]
        elif line.lstrip().startswith("python -m "):
            for word in words:
                told = line.replace(f"${name}", word) if name else line
                yield shlex.split(told, comments=True)[2:]


def draw(command: list[str]) -> None:
    """Draw the figures of one command, if it has any."""
    module, *arguments = command
    if module in STUDIES:
        sys.argv = command
        STUDIES[module]()
    if module != "bench":
        return
    verb, *flags = arguments
    if verb == "report":
        report.main(flags)
    elif verb == "plan":
        plan.main(flags)
    elif verb == "verify":
        _overlay(flags)
    elif verb == "compare":
        compare.save_figure(Path(flags[flags.index("--out") + 1]))


def _overlay(flags: list[str]) -> None:
    """The figure of a correctness experiment, whose title is its run's."""
    parser = options.parser("verify", "")
    options.add_run_options(parser)
    parser.add_argument("--out", type=str)
    parsed: Any = options.parse(parser, flags)
    out = Path(parsed.out)
    title = verify.title(options.run_config(parsed))
    drawn = draw_matplotlib.draw(verify_chart.overlay(pd.read_csv(out), title))
    draw_matplotlib.save(drawn, out.with_suffix(""))


def main() -> None:
    """Draw all; of what a report draws on top of what ships, nothing is left."""
    before = set(RESULTS.rglob("*"))
    for command in commands((RESULTS / "README.md").read_text()):
        draw(command)
    for more in set(RESULTS.rglob("*")) - before:
        more.unlink()
    diagrams.main()


if __name__ == "__main__":
    main()
