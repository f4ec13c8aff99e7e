"""Steps of a cell as scalars for TensorBoard or Weights & Biases, where these are installed.

They are written after the measured steps, so that they take no time from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import torch.distributed as dist

from odysseus.config.option_group import flags_of
from odysseus.config.run import RunConfig

Write = Callable[[dict[str, float], int], None]
"""write(scalars by name, step)."""


def write(run: RunConfig, losses: list[float], times_ms: list[float]) -> dict[str, str]:
    """Write the log of a round, if the run has one, on the first rank. If that fails return status
    and error for the row, which keeps its numbers.

    Args:
        losses: Loss of each step, warm-up included.
        times_ms: Milliseconds of each measured step on the slowest rank.
    """
    if run.log == "none" or dist.get_rank():
        return {}
    try:
        _write(run, losses, times_ms)
    except Exception as error:  # of the network, the disk, or a service's account
        return {"status": "error", "error": f"log = {run.log}: {type(error).__name__}: {error}"}
    return {}


def _write(run: RunConfig, losses: list[float], times_ms: list[float]) -> None:
    """Write loss, milliseconds and tokens/s of every step; those of warm-up steps have a loss
    alone."""
    with _WRITERS[run.log](run) as log:
        for step, loss in enumerate(losses):
            log({"loss": loss}, step)
        for step, step_ms in enumerate(times_ms, run.warmup_steps):
            log({"step_ms": step_ms, "tokens_per_s": run.tokens_per_step / step_ms * 1e3}, step)


def _name(run: RunConfig) -> str:
    """The name of a cell and the time, which tells its rounds apart."""
    method = Path(run.method.replace(":", "-")).stem
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return f"{method}-{run.world_size}x-{run.seq_len}-{now}"


def _texts(run: RunConfig) -> dict[str, str]:
    """Every option of a run."""
    return {name: str(value) for name, value in flags_of(run)}


@contextmanager
def _tensorboard(run: RunConfig) -> Iterator[Write]:
    from torch.utils.tensorboard import SummaryWriter  # optional

    with SummaryWriter(str(Path(run.log_dir, _name(run)))) as writer:
        options = "\n".join(f"| {name} | {text} |" for name, text in _texts(run).items())
        writer.add_text("options", f"| option | value |\n| --- | --- |\n{options}")

        def log(scalars: dict[str, float], step: int) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def _wandb(run: RunConfig) -> Iterator[Write]:
    wandb = import_module("wandb")  # optional
    Path(run.log_dir).mkdir(parents=True, exist_ok=True)
    logged = wandb.init(project="odysseus", dir=run.log_dir, name=_name(run), config=_texts(run))
    merged: dict[int, dict[str, float]] = {}
    try:
        yield lambda scalars, step: merged.setdefault(step, {}).update(scalars)
        for step, scalars in sorted(merged.items()):  # W&B takes steps in order
            logged.log(scalars, step=step)
    finally:
        logged.finish()


_WRITERS = {"tensorboard": _tensorboard, "wandb": _wandb}
