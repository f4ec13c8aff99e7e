"""Places of rows by their times."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench import rows
from bench.report.spread import places


def test_rows_whose_rounds_overlap_share_a_place() -> None:
    """Four methods at one length, one of them alone at another, and a row without rounds."""
    ranges = [
        ("tp", "64", 10.0, 12.0),
        ("tp_sp", "64", 11.0, 13.0),
        ("ulysses", "64", 12.5, 14.0),
        ("odysseus", "64", 20.0, 21.0),
        ("tp", "128", 30.0, 31.0),
        ("tp_sp", "128", np.nan, np.nan),
    ]
    columns = ["method", "seq_len", "round_ms_low", "round_ms_high"]
    blank = dict.fromkeys(rows.COLUMNS, "")
    data = pd.DataFrame([blank | dict(zip(columns, one, strict=True)) for one in ranges])
    data.index = pd.Index([7, 3, 5, 1, 9, 2])
    assert places(data).to_dict() == {7: "1", 3: "1", 5: "2", 1: "4", 9: "1", 2: ""}
