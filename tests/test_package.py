"""The package: its pins, what the wheel holds, its console command, what it finds installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from bench import provenance, rows
from bench.__main__ import main
from bench.config import shipped
from tests.support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(file: str) -> list[str]:
    """The requirement lines of a file, without those of the files that it includes."""
    lines = (ROOT / file).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


def included(file: str) -> list[str]:
    """The files that a requirements file includes."""
    lines = (ROOT / file).read_text().splitlines()
    return [line.removeprefix("-r ") for line in lines if line.startswith("-r")]


def test_dependencies_equal_requirements() -> None:
    assert PROJECT["dependencies"] == requirements("requirements.txt")


@pytest.mark.parametrize("extra", ["gpu", "flash-attn", "hf", "peers"])
def test_an_extra_equals_its_requirements_file(extra: str) -> None:
    assert EXTRAS[extra] == requirements(f"requirements-{extra}.txt")


def test_the_extra_for_development_adds_hf_and_peers() -> None:
    assert included("requirements-dev.txt") == [
        "requirements.txt",
        "requirements-hf.txt",
        "requirements-peers.txt",
    ]
    assert EXTRAS["dev"] == [f"{PROJECT['name']}[hf,peers]", *requirements("requirements-dev.txt")]


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_version_is_pinned(extra: str) -> None:
    wanted = EXTRAS[extra] if extra else PROJECT["dependencies"]
    own = f"{PROJECT['name']}["
    assert [name for name in wanted if "==" not in name and not name.startswith(own)] == []


def test_every_package_is_listed() -> None:
    inits = [file for top in ("odysseus", "methods", "bench") for file in
             (ROOT / top).rglob("__init__.py")]  # fmt: skip
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in inits}
    assert {*PYPROJECT["tool"]["setuptools"]["packages"]} == found | {
        *PYPROJECT["tool"]["setuptools"]["package-dir"]
    }


def test_the_citation_has_the_version() -> None:
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy of the tracked files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    needed = ("odysseus", "methods", "bench", "scripts", "*.toml", "LICENSE", "README.md")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *needed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = listed.stdout.split("\0")
    for name in filter(None, files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(out / "unpacked")
    return out / "unpacked"


def test_the_wheel_holds_page_recipes_and_sweeps(wheel: Path) -> None:
    page = [file for file in (ROOT / "bench/report/page").iterdir() if file.is_file()]
    expected = {str(file.relative_to(ROOT)) for file in page} | {"bench/scripted/device.cpp"}
    for folder in ("recipes", "sweeps"):
        names = [file.name for file in (ROOT / "scripts" / folder).glob("*.yml")]
        expected |= {f"bench/shipped/{folder}/{name}" for name in names}
    expected |= {
        str(file.relative_to(ROOT))
        for top in ("odysseus", "methods", "bench")
        for file in (ROOT / top).rglob("*.py")
    }
    held = {str(file.relative_to(wheel)) for file in wheel.rglob("*") if file.is_file()}
    assert {name for name in held if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def test_the_installed_command_finds_its_sweeps(wheel: Path, tmp_path: Path) -> None:
    script = tmp_path / "odysseus-bench"
    script.write_text("import sys\nfrom bench.__main__ import console\nsys.exit(console())\n")
    # A repository around the installed package is not this project's.
    subprocess.run(["git", "init", "-q", str(wheel)], check=True)
    flags = "--seq_len [256] --world_size [2] --dry_run true --out rows.csv"
    command = [sys.executable, str(script), "sweep", "--config", "sweeps/example.yml"]
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [*command, *flags.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = rows.read(tmp_path / "rows.csv")
    assert [*found["method"]] == ["tp", "tp_sp", "ulysses", "odysseus"]
    assert {*found["git_commit"]} == {""}
    done = subprocess.run(
        [*command, "--seq_length", "3"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("odysseus-bench sweep: ")


@pytest.mark.parametrize("name", ["sweeps/example.yml", "scripts/sweeps/example.yml"])
def test_a_shipped_file_is_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.find(name) == str(ROOT / "scripts/sweeps/example.yml")
    assert shipped.find("example.yml") == "example.yml"
    assert shipped.find("sweeps/../sweeps/example.yml") == "sweeps/../sweeps/example.yml"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("method: tp")
    assert shipped.find(name) == name


def test_a_config_that_is_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", "sweeps/none.yml"]) == 2
    assert "sweeps/none.yml" in capsys.readouterr().err


def test_a_commit_is_known_in_a_clone_and_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(provenance.columns()["git_commit"]) == 40
    monkeypatch.setenv("PATH", "")
    assert provenance.columns()["git_commit"] == ""
