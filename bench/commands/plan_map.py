"""Draw which method is fastest at every length and number of GPUs."""

from __future__ import annotations

from pathlib import Path

from bench.commands.plan_row import check_speeds
from bench.commands.progress import bar, say
from bench.planner import map_file, method_map
from bench.planner.map_file import Tried
from bench.pool import workers
from bench.report import draw_matplotlib
from bench.report.charts import method_map as map_chart
from odysseus.config.run import RunConfig


def main(
    base: RunConfig,
    tried: Tried,
    path: Path,
    seq_lens: list[int],
    world_sizes: list[int],
) -> int:
    """Write the map's CSV, PNG and SVG; return 0.

    Args:
        tried: What is tried in each cell.
        path: Name of the files, without ending.
        seq_lens: Tokens per sample.
        world_sizes: Numbers of GPUs.

    Raises:
        ValueError: the profile has no speeds, the run sets a tensor axis, a size of it is below 1,
            or the files cannot be written.
    """
    check_speeds(base)
    if base.tensor_parallel_size > 1:
        raise ValueError(
            f"tensor_parallel_size = {base.tensor_parallel_size} is not for a map; valid: 1, and "
            "sizes to try in map_tensor_parallel_sizes"
        )
    if 1 not in tried.tensor_sizes or min(tried.tensor_sizes) < 1:
        raise ValueError(
            f"map_tensor_parallel_sizes = {tried.tensor_sizes}; valid: 1, and larger sizes to try "
            "beside it"
        )
    if not path.name:
        raise ValueError(f"map = {path}: it names no file; valid: a new name, without ending")
    csv = path.with_name(f"{path.name}.csv")
    map_file.check_writable(csv)
    runs = method_map.wanted(base, seq_lens, world_sizes, tried)
    cells = method_map.Cells(runs, csv, tried)
    with workers() as processes, bar(len(cells.tasks), "layout") as shown:

        def report(run: RunConfig, line: str) -> None:
            say(f"{run.seq_len} tokens on {run.world_size} GPUs: {line}")
            shown.update()

        data = cells.predict(report, processes)
    title = f"{base.model.label}, {base.dtype}, dry run, {base.hardware}"
    drawn = map_chart.chart(data, title, map_chart.fewest_of(base, data, tried.methods))
    draw_matplotlib.save(draw_matplotlib.draw(drawn), path)
    print(f"{csv}, .png and .svg: {len(data)} cells")
    return 0
