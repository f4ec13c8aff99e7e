"""The site of docs/: built strictly, complete, and readable without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import rows
from bench.config import options
from odysseus.config.run import RunConfig
from scripts.written import toggles
from tests.support.paths import ROOT

# Nothing that a build asked the network for would be answered.
_NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml"]
    environment = os.environ | _NO_NETWORK | {"NO_MKDOCS_2_WARNING": "1"}
    command = [*build, "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "CONTRIBUTING"}
    assert pages - {path.stem for path in site.glob("*.html")} == set()


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|source|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//")
    styles = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text())] == []
    assert [page.name for page in site.rglob("*.css") if styles.search(page.read_text())] == []


def test_every_picture_of_a_page_is_there(site: Path) -> None:
    missing = [
        f"{page.name}: {picture}"
        for page in site.glob("*.html")
        for picture in re.findall(r"<img[^>]* src=\"?([^\" >]+)", page.read_text())
        if not (page.parent / picture).is_file()
    ]
    assert missing == []


def test_every_column_is_described_in_its_order() -> None:
    described = re.findall(
        r"^\| `(\w+)` \| \S", (ROOT / "docs/columns.md").read_text(), re.MULTILINE
    )
    assert described == list(rows.COLUMNS)


def test_every_toggle_is_described_as_it_is() -> None:
    assert toggles.page() == toggles.PAGE.read_text(), "python -m scripts.written.toggles"
    parser = options.parser("run", "")
    common = {action.dest for action in parser._actions}
    options.add_run_options(parser)
    flags = {action.dest for action in parser._actions} - common - {"model", "optimizer", "data"}
    assert {name for _, rows in toggles.sections(RunConfig) for name, _ in rows} == flags
