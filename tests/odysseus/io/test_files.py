"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from odysseus.io import files


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with suppress(ZeroDivisionError), files.replacing(path) as draft:
        draft.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_a_write_replaces_what_a_link_points_to(tmp_path: Path) -> None:
    path, link = tmp_path / "rows.csv", tmp_path / "link.csv"
    path.write_text("old")
    link.symlink_to(path)
    files.write(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_what_cannot_be_written_is_kept_beside_and_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text in ("first", "second"):
        error = files.not_saved(path, text, OSError(28, "No space left on device"))
        assert str(error) == (
            f"{path} could not be written: No space left on device; the result is in "
            f"{path}.unsaved, and here:\n{text}"
        )
    assert (tmp_path / "rows.csv.unsaved").read_text() == "first\nsecond\n"


def test_without_any_room_the_result_is_told(tmp_path: Path) -> None:
    path = tmp_path / "no" / "rows.csv"
    error = files.not_saved(path, "numbers", ValueError("no CSV\nat all"))
    assert str(error) == f"{path} could not be written: no CSV:\nnumbers"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 256, "File name too long"),
        ("a\0b", "null byte"),
        ("caf\udce9.csv", "not UTF-8"),
        ("folder", "no regular file"),
        ("pipe", "no regular file"),
        ("stranger.csv", "it is a letter"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stranger.csv").write_text("Dear Ada")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=reason) as refused:
        files.check_output("out", tmp_path / name, "a new file", lambda path: "it is a letter")
    (line,) = str(refused.value).splitlines()
    assert line.startswith("out = ")
    assert line.endswith("; valid: a new file")
    assert line.isprintable()
    assert sorted(os.listdir(tmp_path)) == before


def test_new_and_empty_files_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    for path in (tmp_path / "empty.csv", tmp_path / "new" / "folder" / "rows.csv"):
        files.check_output("out", path, "a new file")
    assert os.listdir(tmp_path / "new" / "folder") == []
