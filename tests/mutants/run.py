"""Apply one small fault to the code at a time and see that the tests notice it.

python -m tests.mutants.run [NAME …]     all mutants, or those whose name contains a word

Each mutant of mutants.toml is made in a copy of the working tree, where the test files that are
named for it run as in the default suite until the first one fails. Each result becomes a row of
docs/mutants.md. About a minute per mutant, so this is no part of the suite;
there, test_mutants.py checks that every mutant still applies.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "mutants.md"
_TABLE = re.compile(r"(?<=<!-- written by python -m tests\.mutants\.run -->\n\n).*", re.DOTALL)


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: The fault in words.
        file: The file that has it.
        before: A text that stands in the file exactly once.
        after: What the fault makes of it.
        tests: Arguments of pytest: the test files that should notice.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the file's text with the fault.

        Raises:
            ValueError: the file does not have the text exactly once.
        """
        if (count := text.count(self.before)) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has {self.before!r} {count} times; valid: 1"
            )
        return text.replace(self.before, self.after)


def mutants() -> list[Mutant]:
    """Read mutants.toml."""
    given = tomllib.loads((ROOT / "tests/mutants/mutants.toml").read_text())["mutant"]
    return [Mutant(**one | {"tests": tuple(one["tests"])}) for one in given]


def copy_of_tree(to: Path) -> None:
    """Copy all files that git tracks or would track, as they are in the working tree."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def noticed_by(mutant: Mutant, tree: Path) -> str:
    """Return the first test that fails with the fault; empty if none does."""
    path = tree / mutant.file
    sound = path.read_text()
    path.write_text(mutant.applied(sound))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *mutant.tests], cwd=tree, capture_output=True, text=True, check=False
        )
    finally:
        path.write_text(sound)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?)(?:\[| |$)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and failed is None):
        raise RuntimeError(f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout}")
    return failed[1] if failed else ""


def with_result(page: str, mutant: Mutant, test: str) -> str:
    """Return the page with the row of this mutant written again, in the order of mutants.toml."""
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines()}
    by = f"`{test.removeprefix('tests/')}`" if test else "**nothing**"
    rows[mutant.name] = f"| {mutant.name} | `{mutant.file}` | {by} |"
    lines = ["| fault | file | noticed by |", "| --- | --- | --- |"]
    lines += [rows[m.name] for m in mutants() if m.name in rows]
    return _TABLE.sub(lambda _: "\n".join(lines) + "\n", page)


def main(words: Sequence[str]) -> int:
    """Run the mutants; 1 if one survives."""
    chosen = [m for m in mutants() if not words or any(word in m.name for word in words)]
    survived = False
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_of_tree(tree)
        for mutant in chosen:
            start = time.monotonic()
            test = noticed_by(mutant, tree)
            survived |= not test
            PAGE.write_text(with_result(PAGE.read_text(), mutant, test))
            spent = time.monotonic() - start
            print(f"{spent:6.0f} s  {mutant.name}: {test or 'SURVIVED'}", flush=True)
    return int(survived)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
