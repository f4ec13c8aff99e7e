"""A rank's peak of memory in words."""

from __future__ import annotations

import re
from collections import Counter

from bench.meters.memory import Peak


def peak_in_words(rank: int, peak: Peak) -> str:
    """Describe a rank's peak: its operation, and the ten largest tensors alive then."""
    assert peak.last is not None, "a step allocates"
    alike = Counter(
        (a.bytes, a.kind, a.made_by, re.sub(r"layers\.\d+", "layers", a.unit)) for a in peak.alive
    )
    largest = sorted(alike.items(), key=lambda item: -item[0][0] * item[1])[:10]
    lines = [
        f"rank {rank}: {peak.bytes} bytes at {peak.last.made_by} in {peak.last.unit or 'no unit'}",
        f"{'MiB':>10} {'tensors':>8}  {'kind':14} made by",
    ]
    lines += [
        f"{size * count / 2**20:10.1f} {count:8}  {kind:14} {made_by} in {unit or 'no unit'}"
        for (size, kind, made_by, unit), count in largest
    ]
    return "\n".join(lines)
