#!/usr/bin/env bash
# Sets everything up on a fresh machine, then runs every check.
#
#   bash run_tests.sh            lint, types and tests
#   bash run_tests.sh --all      the same with the tests marked slow: the whole matrix
#   bash run_tests.sh ARGUMENTS  pytest with these arguments; after --all, slow tests included
set -euo pipefail
cd "$(dirname "$0")"
source scripts/setup_env.sh requirements-dev.txt requirements-torchtitan.txt

export OMP_NUM_THREADS=1
# Tests start some hundred processes: each must find the modules compiled.
unset PYTHONDONTWRITEBYTECODE
chosen="not slow"
if [ "${1:-}" = --all ]; then
    chosen="slow or not slow"
    shift
fi
if [ $# -gt 0 ]; then
    exec python -m pytest -m "$chosen" "$@"
fi
trap 'exit 130' INT
failed=0  # each check runs, whatever the others find
ruff check . || failed=1
ruff format --check . || failed=1
pyrefly check || failed=1
mapfile -t timed < <(grep -rl --include='test_*.py' 'mark\.alone' tests)
python -m pytest -m "alone and ($chosen)" "${timed[@]}" || failed=1
# Not more workers: a test has up to eight processes of its own.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone and ($chosen)" ||
    failed=1
exit $failed
