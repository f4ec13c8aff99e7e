"""Hold trials again: ``python -m tests.faults SEED [LAST_SEED]``."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.faults.trials import held

first, last = int(sys.argv[1]), int(sys.argv[-1])
harms: Counter[str] = Counter()
with ThreadPoolExecutor(2) as pool:
    for verdict in pool.map(held, range(first, last + 1)):
        print(verdict.trial, *verdict.harms or ["held"], sep="\n  ", flush=True)
        harms.update(harm.partition(":")[0] for harm in verdict.harms)
print(f"{last + 1 - first} trials:", dict(harms) or "no harm")
