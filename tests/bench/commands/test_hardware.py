"""``hardware`` lists the profiles, and prints one so that it is read back as it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.hardware import profile_file
from bench.hardware.commented import meanings
from bench.hardware.profiles import PROFILES, Hardware
from bench.hardware.speeds import Speeds
from tests.support.paths import RESULTS
from tests.support.refusals import refused_line

MEASURED = str(RESULTS / "emulated/50mbit-1/profile.yml")
LABEL = "h100-80g(memory_bytes=68719476736, network_bytes_per_s=1.25e+10)"


def test_the_list_is_an_aligned_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware"]) == 0
    header, *lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(PROFILES)
    columns = [header.index(title) for title in ("GPU memory", "device", "speeds", "measured")]
    for line, profile in zip(lines, PROFILES.values(), strict=True):
        cells = [line[at:].split()[0] for at in columns]
        counted = cells.pop()
        assert counted.isdigit() if profile.speeds else counted == "-"
        memory = f"{profile.memory_bytes / 2**30:.1f}"
        assert cells == [memory, profile.device, "yes" if profile.speeds else "no"]
        assert all(line[at - 1] == " " for at in columns)


@pytest.mark.parametrize("name", [*PROFILES, LABEL, MEASURED])
def test_a_printed_profile_is_read_back_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hardware", name]) == 0
    printed, file = capsys.readouterr().out, tmp_path / "printed.yml"
    file.write_text(printed)
    assert profile_file.find(str(file)) == profile_file.find(name)
    out = tmp_path / "written.yml"
    for _ in range(2):  # a profile may be replaced
        assert main(["hardware", name, "--out", str(out)]) == 0
        assert out.read_text() == printed


def test_every_field_has_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", LABEL]) == 0
    lines = capsys.readouterr().out.splitlines()
    for group, indent in ((Hardware, ""), (Speeds, "  ")):
        for name, meaning in meanings(group).items():
            (at,) = [n for n, line in enumerate(lines) if line.startswith(f"{indent}{name}:")]
            comment = lines[at - 1].strip()
            assert comment.startswith(f"# {meaning}")
            if f"{name}=" in LABEL:
                assert comment.endswith("; overridden in its name")
    text = "\n".join(lines)
    assert "; measured: " in text
    assert "; assumed: " in text
    assert "; data sheet: " in text


def test_meanings_have_the_unit() -> None:
    units = {"_bytes": "ytes", "_bytes_per_s": "ytes/s", "_flops_per_s": "FLOP/s", "_s": "econds"}
    known = meanings(Hardware) | meanings(Speeds)
    assert len(known) == len(fields(Hardware)) + len(fields(Speeds))
    for name, meaning in known.items():
        unit = next((unit for end, unit in units.items() if name.endswith(end)), "")
        for longer in ("_flops_per_s", "_bytes_per_s"):
            unit = units[longer] if name.endswith(longer) else unit
        assert unit in meaning
        assert meaning


def test_a_file_of_ones_own_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", MEASURED]) == 0
    shown = capsys.readouterr().out
    assert "; as in its file\n" in shown
    assert "; measured" not in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["h900"], "hardware is 'h900'; valid: a100-80g"),
        (["h100-80g(speed=1)"], "hardware.speed is no field"),
        (["/nowhere.yml"], "there is no such file"),
        (["--out", "x.yml"], "out = x.yml needs a profile"),
        (["h20", "--out", "h20.txt"], "valid: a name ending in .yml or .yaml"),
        (["h20", "--out", "model.yml"], "it is no hardware profile"),
        (["h20", "b300"], "b300"),
    ],
)
def test_bad_names_and_files(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.yml").write_text("model: llama3-8b\n")
    assert reason in refused_line(capsys, "hardware", *arguments)
    assert [path.name for path in Path().iterdir()] == ["model.yml"]
    assert Path("model.yml").read_text() == "model: llama3-8b\n"
