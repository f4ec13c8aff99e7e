#!/usr/bin/env bash
# Sets everything up on a fresh machine, then runs every check. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source scripts/setup_env.sh requirements-dev.txt requirements-torchtitan.txt

export OMP_NUM_THREADS=1
if [ $# -eq 0 ]; then
    ruff check .
    ruff format --check .
    pyright
    python -m pytest -m alone
    # Not more workers: a test has up to eight processes of its own.
    set -- -n 2 --dist loadfile -m "not slow and not alone"
fi
python -m pytest "$@"
