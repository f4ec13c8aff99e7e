"""Files that a command must not overwrite, rows that cannot be written, readers that leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bench import rows
from bench.__main__ import main
from bench.runner import launch
from odysseus.config.run import RunConfig
from tests.support.launched import SMALL, bench, finished
from tests.support.paths import ROOT
from tests.support.refusals import refused_line

TRACED = "--dry_run true --hardware h100-80g --dtype bf16"
COMPARED = "peer,part,method,status,ratio_p50\ndtensor_tp,model,tp,ok,1.0\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("run --out README.md", "without the columns"),
        ("run --out compared.csv", "columns of another program"),
        ("run --out /dev/null", "no regular file"),
        ("run --out .", "out = .: it names no file"),
        ("plan --map .", "map = .: it names no file"),
        (f"run --out {'x' * 256}", "File name too long"),
        ("run --out photograph.csv", "no text file"),
        (f"run --trace README.md {TRACED}", "no trace"),
        ("sweep --out README.md", "without the columns"),
        ("sweep --watch site", "no page that report wrote"),
        ("verify --out README.md", "without the columns"),
        ("verify --out rows.csv", "without the columns"),
        ("verify --out drawing.csv", "exists already"),
        ("verify --out figure.png", "name of its figure"),
        ("compare --out rows.csv", "without the columns"),
        ("calibrate --out model.yml", "no hardware profile"),
        ("plan --out README.md --hardware h100-80g --dtype bf16", "without the columns"),
        ("report --rows rows.csv --out site", "no page that report wrote"),
    ],
)
def test_a_file_of_another_kind_stays(
    command: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("# A project\n\nwith, commas\n")
    Path("compared.csv").write_text(COMPARED)
    Path("photograph.csv").write_bytes(bytes(range(256)))
    Path("drawing.png").write_text("a picture")
    Path("model.yml").write_text("model: llama3-8b\n")
    rows.append(Path("rows.csv"), rows.identity(RunConfig()) | {"status": "ok"})
    Path("site").mkdir()
    Path("site/report.html").write_text("<!doctype html><title>Home</title>")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    line = refused_line(capsys, *command.split())
    assert reason in line
    assert "valid: " in line
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("damage", ["", "a photograph", "gone"])
def test_a_row_outlives_its_file(
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the cell runs its CSV is emptied, replaced, or its folder becomes a file."""
    out = tmp_path / "folder" / "rows.csv"

    def measured(run: RunConfig, *_: object) -> dict[str, object]:
        if damage == "gone":
            shutil.rmtree(out.parent)
            out.parent.touch()
        else:
            out.write_bytes(bytes(range(256)) if damage else b"")
        return rows.identity(run) | {"status": "error", "error": "it failed", "loss_last": 3.25}

    monkeypatch.setattr(launch, "run_cell", measured)
    assert main(["run", *SMALL.split(), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    if not damage:
        assert list(rows.read(out)["loss_last"]) == ["3.25"]
        return
    message, row = printed.err.splitlines()[-2:]
    assert f"{out} could not be written" in message
    assert json.loads(row)["loss_last"] == "3.25"
    if damage != "gone":
        assert out.read_bytes() == bytes(range(256))
        assert json.loads(Path(f"{out}.unsaved").read_text()) == json.loads(row)


@pytest.mark.slow
def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    """``report … | true`` writes the page and prints nothing on standard error."""
    report = f"{sys.executable} -m bench report --rows results/tiles.csv --out {tmp_path}"
    shell = ["bash", "-o", "pipefail", "-c", f"{report} | true"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "report.html").exists()


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bench", "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "python -m bench: standard output: No space left on device\n"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_keeps_the_row_on_the_terminal(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        (tmp_path / "rows.csv").touch()
        filled = tmp_path / "filling"
        process = bench(
            "run", *SMALL.split(), "--seq_len", "64", "--out", str(tmp_path / "rows.csv")
        )
        with suppress(OSError):
            filled.write_bytes(bytes(2**20))
        status, _, err = finished(process)
        assert status == 1
        assert "could not be written: No space left on device" in err
        assert json.loads(err.splitlines()[-1])["status"] == "ok"
        assert (tmp_path / "rows.csv").read_bytes() == b""
    finally:
        subprocess.run(["umount", tmp_path], check=True)
