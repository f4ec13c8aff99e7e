"""Train two steps of each case on the fake GPU: ``python -m tests.fake_cuda < cases.json``.

Reads [method, ranks, ring, toggles] and prints, per case, the error or the second step's waits.
"""

from tests.fake_cuda.library import load

load()  # before PyTorch

import json  # noqa: E402
import sys  # noqa: E402

from tests.fake_cuda.cases import outcome  # noqa: E402

json.dump([outcome(*case) for case in json.load(sys.stdin)], sys.stdout)
