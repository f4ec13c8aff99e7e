"""Run on the fake GPU: ``python -m tests.fake_cuda cases < cases.json``, or ``stand_ins``.

cases reads [method, ranks, ring, toggles] and trains two steps of each; prints, per case, the error
or the second step's waits. stand_ins prints what the originals of the dry run's stand-ins do.
"""

from bench.scripted.library import load

load()  # before PyTorch

import json  # noqa: E402
import sys  # noqa: E402

from tests.fake_cuda.cases import outcome  # noqa: E402
from tests.fake_cuda.stand_ins import originals  # noqa: E402

WHAT = {
    "cases": lambda: [outcome(*case) for case in json.load(sys.stdin)],
    "stand_ins": originals,
}
json.dump(WHAT[sys.argv[1]](), sys.stdout)
