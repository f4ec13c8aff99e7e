"""Logs of steps: what TensorBoard and Weights & Biases are given, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import rows
from bench.__main__ import main
from bench.config import checks
from bench.runner import step_log
from odysseus.config.run import RunConfig
from tests.support.launched import SMALL

RUN = RunConfig(method="tp", world_size=2, seq_len=100, steps=2, warmup_steps=1)
LOSSES, TIMES_MS = [5.5, 5.25, 5.0], [20.0, 10.0]
SCALARS = {
    0: {"loss": 5.5},
    1: {"loss": 5.25, "step_ms": 20.0, "tokens_per_s": 5000.0},
    2: {"loss": 5.0, "step_ms": 10.0, "tokens_per_s": 10000.0},
}


@pytest.fixture(autouse=True)
def _on_the_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_log.dist, "get_rank", lambda: 0)


class Writer:
    """Stands for TensorBoard's SummaryWriter."""

    made: list[Writer]

    def __init__(self, log_dir: str) -> None:
        self.log_dir, self.scalars, self.texts = log_dir, dict[int, dict[str, float]](), ""
        Writer.made.append(self)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def add_text(self, name: str, text: str) -> None:
        self.texts += f"{name}: {text}"

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(step, {})[name] = value


class Wandb(ModuleType):
    """Stands for the package wandb; it takes steps in ascending order alone."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def init(self, **options: Any) -> Wandb:
        self.options = options
        return self

    def log(self, scalars: dict[str, float], step: int) -> None:
        assert step > (self.logged[-1][0] if self.logged else -1)
        self.logged.append((step, scalars))

    def finish(self) -> None:
        self.finished = True


def test_tensorboard(tmp_path: Path) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter, Writer.made = Writer, []
    run = RunConfig(**{**vars(RUN), "log": "tensorboard", "log_dir": str(tmp_path)})
    with patch.dict(sys.modules, {"torch.utils.tensorboard": module}):
        assert step_log.write(run, LOSSES, TIMES_MS) == {}
    (writer,) = Writer.made
    assert writer.scalars == SCALARS
    assert writer.closed
    assert Path(writer.log_dir).parent == tmp_path
    assert Path(writer.log_dir).name.startswith("tp-2x-100-")
    assert "| model.name_or_path | tiny |" in writer.texts


def test_wandb(tmp_path: Path) -> None:
    run = RunConfig(**{**vars(RUN), "log": "wandb", "log_dir": str(tmp_path / "log")})
    with patch.dict(sys.modules, {"wandb": (wandb := Wandb())}):
        assert step_log.write(run, LOSSES, TIMES_MS) == {}
    assert dict(wandb.logged) == SCALARS
    assert wandb.finished
    assert wandb.options["config"]["world_size"] == "2"
    assert wandb.options["dir"] == str(tmp_path / "log")


def test_a_log_that_fails_leaves_the_row_its_numbers(tmp_path: Path) -> None:
    run = RunConfig(**{**vars(RUN), "log": "wandb", "log_dir": str(tmp_path)})
    wandb = Wandb()
    with (
        patch.dict(sys.modules, {"wandb": wandb}),
        patch.object(wandb, "log", side_effect=OSError("no network")),
    ):
        found = step_log.write(run, LOSSES, TIMES_MS)
    assert found == {"status": "error", "error": "log = wandb: OSError: no network"}
    assert wandb.finished


def test_no_log_and_other_ranks_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with patch.object(step_log, "_write") as write:
        assert step_log.write(RUN, LOSSES, TIMES_MS) == {}
        monkeypatch.setattr(step_log.dist, "get_rank", lambda: 1)
        run = RunConfig(**{**vars(RUN), "log": "tensorboard"})
        assert step_log.write(run, LOSSES, TIMES_MS) == {}
    write.assert_not_called()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with patch.object(checks.importlib.util, "find_spec", lambda found: None):
        assert main(["run", *SMALL.split(), "--world_size", "1", "--log", name]) == 2
    assert f"log = {name} needs the package {name}" in capsys.readouterr().err


def test_a_file_is_no_folder_for_a_log(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = RunConfig(log="tensorboard", log_dir=str(tmp_path / "file"))
    with (
        patch.object(checks.importlib.util, "find_spec", lambda found: True),
        pytest.raises(ValueError, match="is no folder"),
    ):
        checks.check_log(run)


def test_a_run_writes_its_log(tmp_path: Path) -> None:
    """Real events of a measured run, read again by TensorBoard."""
    out, log = tmp_path / "rows.csv", tmp_path / "log"
    flags = f"run {SMALL} --world_size 2 --seq_len 64 --steps 2 --warmup_steps 1 --out {out}"
    assert main([*flags.split(), "--log", "tensorboard", "--log_dir", str(log)]) == 0
    (row,) = rows.read(out).to_dict("records")
    (folder,) = log.iterdir()
    events = EventAccumulator(str(folder)).Reload()
    losses, times = events.Scalars("loss"), events.Scalars("step_ms")
    assert [event.step for event in losses] == [0, 1, 2]
    assert [event.step for event in times] == [1, 2]
    assert losses[0].value == pytest.approx(float(row["loss_first"]))
    assert losses[-1].value == pytest.approx(float(row["loss_last"]))
    middle = (times[0].value + times[1].value) / 2
    assert middle == pytest.approx(float(row["step_ms_p50"]))
