"""Files shipped in results/: each is described, each command is right, and no figure is stale."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import provenance, rows
from bench.__main__ import main
from bench.commands import flags
from bench.config import options
from bench.theory import model_sizes
from scripts.written import pictures, tables
from tests.support.marks import slow
from tests.support.paths import RESULTS, ROOT

README = (RESULTS / "README.md").read_text()
PICTURES = (".png", ".svg")
# By heading: names of files, as patterns, and what is said of them.
SECTIONS = {
    tuple(re.findall(r"`([^`]+)`", heading)): text
    for heading, text in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", README, re.MULTILINE)
}


def shipped(*suffixes: str) -> list[str]:
    """Files of results/ that git keeps; all of them where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "."], cwd=RESULTS, check=False, capture_output=True, text=True
    ).stdout.splitlines()
    there = [path.relative_to(RESULTS).as_posix() for path in sorted(RESULTS.rglob("*"))]
    return [name for name in listed or there if name.endswith(suffixes)]


def section_of(name: str) -> str:
    """Return the README's section on a file."""
    (text,) = [text for names, text in SECTIONS.items() if any(fnmatch(name, n) for n in names)]
    return text


@pytest.mark.parametrize("name", shipped(".csv"))
def test_every_csv_has_its_command_and_its_mode(name: str) -> None:
    text = section_of(name)
    made = [word for command in pictures.commands(text) for word in command]
    folder, _, _ = name.rpartition("/")
    by_script = folder and re.search(rf"scripts/studies/{folder.split('/')[0]}_study\.sh", text)
    assert by_script or {f"results/{name}", f"results/{name.removesuffix('.csv')}"} & set(made)
    table = rows.read(RESULTS / name)
    assert re.search("`measured`|`dry_run`", text)
    for mode in set(table.get("mode", [])):
        assert f"`{mode}`" in text
    for hardware in set(table.get("hardware", [])):
        assert hardware in text or re.search(r"/profile(-\d+)?\.yml$", hardware)


@pytest.mark.parametrize(
    "cells",
    [
        "dry_runs.yml --world_size 8 --seq_len 4096 --method odysseus",
        slow("dry_runs.yml --world_size 8 --seq_len 4096"),
        slow("dry_runs.yml --world_size 4096 --seq_len 65536 --method odysseus"),
        slow("dry_runs_ring8.yml --seq_len 262144 --method ulysses"),
    ],
)
def test_the_shipped_dry_runs_are_counted_again(
    cells: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the presets, counted again, equal the shipped rows to the last digit."""
    monkeypatch.chdir(ROOT / "scripts/sweeps")
    out = tmp_path / "again.csv"
    arguments = ["--config", *cells.split(), "--model.name_or_path", "llama3-8b"]
    assert main(["sweep", *arguments, "--out", str(out)]) == 0
    now, then = (by_key(path) for path in (out, RESULTS / "dry_runs.csv"))
    assert now
    assert now == {key: then[key] for key in now}, "count the presets of results/README.md again"


@pytest.mark.parametrize(
    ("speed", "profile"), [("50mbit-1", "profile.yml"), slow("none-1", "profile-2048.yml")]
)
def test_the_shipped_predictions_are_predicted_again(
    speed: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions from the shipped profiles equal the shipped predictions."""
    monkeypatch.chdir(ROOT)
    folder, out = Path("results/emulated", speed), tmp_path / "again.csv"
    cells = [
        "--config",
        "scripts/sweeps/emulated.yml",
        "--method",
        "[tp, ulysses]",
        "--seq_len",
        "2048",
    ]
    flags = ["--dry_run", "true", "--hardware", str(folder / profile), "--out", str(out)]
    assert main(["sweep", *cells, *flags]) == 0
    now, then = (
        {key: float(row["step_ms_p50"]) for key, row in by_key(path).items()}
        for path in (out, folder / "predicted.csv")
    )
    assert len(now) == 2
    assert now == pytest.approx({key: then[key] for key in now}), (
        "predict the cells of the study again"
    )


def by_key(path: Path) -> dict[tuple[str, ...], dict[Any, Any]]:
    """Return a file's rows by key, without the columns of when and how long they were made, and of
    the model's sizes and the prediction's interval, which older rows lack."""
    found = rows.read(path).reindex(columns=rows.COLUMNS, fill_value="")  # newer columns too
    newer = (*model_sizes.COLUMNS, "step_ms_low", "step_ms_high")
    found = found.drop(columns=[*provenance.columns(), "wall_s", *newer]).to_dict("records")
    return {rows.key(row): row for row in found}


def test_every_picture_is_described() -> None:
    names = shipped(*PICTURES)
    assert len(names) > 50
    assert [name for name in names if not section_of(name)] == []


class Stopped(Exception):
    """Raised in place of what follows the parsing of flags."""


def test_every_command_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(made: Any, arguments: list[str]) -> None:
        real(made, arguments)
        raise Stopped

    real = options.parse
    monkeypatch.setattr(options, "parse", stop)
    monkeypatch.setattr(flags, "PARSERS", {verb: cache(of) for verb, of in flags.PARSERS.items()})
    monkeypatch.chdir(ROOT)
    found = list(pictures.commands(README))
    assert len(found) > 40
    for module, *arguments in found:
        assert find_spec(module) is not None
        if module == "bench":
            with pytest.raises(Stopped):
                main(arguments)


@pytest.mark.slow
def test_no_figure_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure, drawn again from the shipped files, equals the shipped figure."""
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "*.svg"))
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)
    for command in pictures.commands(README):
        pictures.draw(command)
    drawn, kept = tmp_path / "results", shipped(*PICTURES)
    assert [name for name in kept if not (drawn / name).is_file()] == []
    texts = [name for name in kept if not name.endswith(".png")]
    stale = [n for n in texts if (drawn / n).read_text() != (RESULTS / n).read_text()]
    assert stale == [], "python -m scripts.written.pictures"


def test_no_table_of_measured_rows_is_stale() -> None:
    """Every number in a table of measured rows equals that of the shipped rows."""
    pages = {page: page.read_text() for page in tables.PAGES}
    stale = [page.name for page, text in pages.items() if tables.filled(text) != text]
    assert stale == [], "python -m scripts.written.tables"
    kinds = re.findall(r"<!-- (\w+) of results/", "".join(pages.values()))
    assert set(kinds) == set(tables.TABLES)


def test_a_wrong_number_in_a_table_is_put_right() -> None:
    for page in tables.PAGES:
        text = page.read_text()
        places = list(re.finditer(r"<!-- \w+ of results/[^>]+ -->\n\n.*\n.*\n\|.*?(\d\.\d+)", text))
        assert places
        for place in places:
            wrong = f"{text[: place.start(1)]}7.77{text[place.end(1) :]}"
            assert tables.filled(wrong) == text


def test_the_readme_shows_at_most_four_shipped_pictures() -> None:
    pictures_shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert 1 <= len(pictures_shown) <= 4
    assert {name.removeprefix("results/") for name in pictures_shown} <= set(shipped(".png"))
