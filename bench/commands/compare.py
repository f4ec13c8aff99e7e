"""``python -m bench compare``: this project's methods beside other implementations of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bench import provenance, rows
from bench.config import checks, grid
from bench.report import draw_matplotlib
from bench.report.charts import compare as compare_chart
from bench.runner import compare, launch
from methods.peers import plain
from methods.peers.checks import check, check_cell
from methods.peers.peer import PARTS
from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import pick_device

_EXTRA_IDENTITY = "peer", "part", "pairs"
"""Columns that identify a comparison, together with those of the method's own cell."""
COLUMNS = (
    *(*_EXTRA_IDENTITY, *rows.IDENTITY, "status", "error"),
    *("ratio_p50", "ratio_p20", "ratio_p80", "ours_ms_p50", "peer_ms_p50"),
    *("ours_comm_bytes", "peer_comm_bytes", "ours_peak_bytes", "peer_peak_bytes"),
    *("largest_difference", "tensors_checked", "differs", "mode", "device", "hardware"),
    *("torch_version", "git_commit", "git_dirty", "utc"),
)
"""Columns of a comparison; those of :data:`rows.IDENTITY` are of the method's own cell."""


@dataclass(frozen=True)
class Comparison:
    """One comparison to make.

    Attributes:
        peer: Name of the peer.
        run: The cell of this project's method.
        pairs: Number of pairs of steps.
        part: model or blocks.
    """

    peer: str
    run: RunConfig
    pairs: int
    part: str

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that identify the comparison."""
        cell = {name: value for name, value in rows.identity(self.run).items() if name in COLUMNS}
        return cell | {"peer": self.peer, "pairs": self.pairs, "part": self.part}

    def check(self) -> None:
        """Raise ValueError unless both implementations can run the cell here."""
        checks.check(self.run)
        check_cell(self.peer, self.run)
        checks.check_gpus(self.run, None)

    def measure(self) -> dict[str, Any]:
        """Run both implementations in new processes and return the row."""
        measured = partial(compare.measured, peer=self.peer, pairs=self.pairs, part=self.part)
        outcome = launch.run_workers(self.run, measured)
        about = self.identity | {"differs": PEERS[self.peer].differs(self.part)}
        return about | provenance.columns() | outcome


def main(parsed: Any) -> int:
    """Compare every chosen peer in every cell that has no row yet; return 1 if one failed, else 0.

    Raises:
        ValueError: a peer is unknown or not installed, or a cell cannot be started.
    """
    out = Path(parsed.out)
    rows.check_writable(out, COLUMNS, ("peer", "method", "status"))
    draw_matplotlib.check_beside(out)
    comparisons = comparisons_of(parsed)
    known = rows.keys(out, parsed.retry_failed, _EXTRA_IDENTITY)
    by_key = {rows.key(one.identity, _EXTRA_IDENTITY): one for one in comparisons}
    left = [one for key, one in by_key.items() if key not in known]
    failed = 0
    for one in tqdm(left, disable=None):
        row = one.measure()
        rows.append(out, row, COLUMNS)
        print(line(row), flush=True)
        failed += row["status"] != "ok"
    save_figure(out)
    print(f"{len(by_key)} cells: {len(by_key) - len(left)} had rows, {failed} failed")
    return int(failed > 0)


def comparisons_of(parsed: Any) -> list[Comparison]:
    """Return every comparison that the parsed options ask for.

    Raises:
        ValueError: a peer is unknown or not installed, or a cell cannot be started.
    """
    if parsed.pairs < 1:
        raise ValueError(f"pairs is {parsed.pairs}; it must be at least 1")
    if parsed.part not in PARTS:
        raise ValueError(f"part is {parsed.part!r}; valid: {', '.join(PARTS)}")
    runs = grid.expand(parsed)
    for run in runs:
        check_run(run)
    chosen = [(name, run) for run in runs for name in names_of(parsed.peers, run)]
    for name in dict.fromkeys(name for name, _ in chosen):
        check(name)
    comparisons = [
        Comparison(name, PEERS[name].matching_run(run), parsed.pairs, parsed.part)
        for name, run in chosen
    ]
    for one in comparisons:
        one.check()
    return comparisons


def names_of(peers: str, run: RunConfig) -> list[str]:
    """Return the names of the chosen peers.

    all means the peers that compute in the run's dtype on its device. If there are none, all peers
    are returned, so that the check of a peer says what is valid.
    """
    if peers != "all":
        return peers.split(",")
    device = pick_device(run.device).type
    able = (n for n, peer in PEERS.items() if run.dtype in peer.dtypes and device in peer.devices)
    return [*able] or [*PEERS]


def check_run(run: RunConfig) -> None:
    """Raise ValueError if the run has an option that no peer can have."""
    for name, given, valid in (
        ("ring_parallel_size", run.ring_parallel_size, 1),
        ("tensor_parallel_size", run.tensor_parallel_size, 1),
        ("expert_parallel_size", run.expert_parallel_size, 0),
        ("sequence_parallel_size", run.sequence_size, run.world_size),
        ("gradient_accumulation_steps", run.gradient_accumulation_steps, 1),
        ("dry_run", run.dry_run, False),
        ("data.pack", run.data.pack, False),
        ("model.implementation", run.model.implementation, "native"),
    ):
        if given != valid:
            raise ValueError(f"{name} = {given} is not for compare; valid: {valid}")
    plain.check(run)


def save_figure(out: Path) -> None:
    """Draw the ratios of a CSV file, and save the figure beside it as PNG and SVG."""
    if not isinstance(chart := compare_chart.chart(pd.read_csv(out)), str):
        draw_matplotlib.save(draw_matplotlib.draw(chart), out.with_suffix(""))


def line(row: dict[str, Any]) -> str:
    """Return a row in one line: ratios of time, bytes and peak memory, or the error."""
    cell = (
        f"{row['method']} beside {row['peer']}, {row['world_size']} ranks, {row['seq_len']} tokens"
    )
    cell += ", blocks alone" * (row["part"] == "blocks")
    if row["status"] != "ok":
        return f"{cell}: {row['status']}: {row['error']}"
    spread = f"{row['ratio_p20']:.2f} to {row['ratio_p80']:.2f}"
    bytes_, peak = (row[f"ours_{x}_bytes"] / row[f"peer_{x}_bytes"] for x in ("comm", "peak"))
    return (
        f"{cell}: {row['ratio_p50']:.2f} x its time ({spread}), {bytes_:.2f} x its bytes, "
        f"{peak:.2f} x its peak memory"
    )
