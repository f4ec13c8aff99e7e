"""Draw which method is fastest at every length and number of GPUs."""

from __future__ import annotations

from pathlib import Path

from bench.commands.plan_row import check_speeds
from bench.planner import map_file, method_map
from bench.report import draw_matplotlib
from bench.report.charts import method_map as map_chart
from odysseus.config.run import RunConfig


def main(base: RunConfig, path: Path, seq_lens: list[int], world_sizes: list[int]) -> int:
    """Write the map's CSV, PNG and SVG; return 0.

    Args:
        path: Name of the files, without ending.
        seq_lens: Tokens per sample.
        world_sizes: Numbers of GPUs.

    Raises:
        ValueError: the profile has no speeds, or the files cannot be written.
    """
    check_speeds(base)
    if not path.name:
        raise ValueError(f"map = {path}: it names no file; valid: a new name, without ending")
    csv = path.with_name(f"{path.name}.csv")
    map_file.check_writable(csv)
    data = method_map.cells(base, seq_lens, world_sizes, csv)
    title = f"{base.model.label}, {base.dtype}, dry run, {base.hardware}"
    drawn = map_chart.chart(data, title, map_chart.fewest_of(base, data))
    draw_matplotlib.save(draw_matplotlib.draw(drawn), path)
    print(f"{csv}, .png and .svg: {len(data)} cells")
    return 0
