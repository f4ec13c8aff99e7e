#!/usr/bin/env bash
# Sets everything up on a fresh machine, then the main job, measured on this machine: the four
# methods side by side on real text, each alone and with ring attention across it. Leaves rows,
# figures and a page in results/local/, which git ignores, and the answer on the screen.
set -euo pipefail
cd "$(dirname "$0")"
has_gpu() {
    [ -n "${CUDA_VISIBLE_DEVICES-all}" ] && command -v nvidia-smi >/dev/null &&
        nvidia-smi -L >/dev/null 2>&1
}
if has_gpu; then
    source scripts/setup_env.sh requirements.txt requirements-gpu.txt
    gpus=$(python -m scripts.gpus)
    config=(--config scripts/sweeps/example_gpu.yml --world_size "$gpus")
    # One GPU has no ring of two: then these are the same cells, which are skipped.
    rings=("${config[@]}" --ring_parallel_size $((gpus > 1 ? 2 : 1)))
    ring=("${config[@]}" --method ulysses --ring_parallel_size "$gpus")
else
    source scripts/setup_env.sh requirements.txt
    config=(--config scripts/sweeps/example.yml)
    rings=(--config scripts/sweeps/hybrids.yml)
    ring=("${rings[@]}" --method ulysses --ring_parallel_size 4)
fi

failed=0
# A failed cell (status 1) is a row, and does not end this; bad input and signals do.
go_on() {
    local status=0
    "$@" || status=$?
    [ "$status" -le 1 ] || exit "$status"
    failed=$((failed | status))
}
lines() { (cat results/local/example.csv 2>/dev/null || true) | wc -l; }

before=$(lines)
SECONDS=0
go_on python -m bench sweep "${config[@]}" --rounds 3 --out results/local/example.csv
go_on python -m bench sweep "${rings[@]}" --rounds 3 --out results/local/example.csv
go_on python -m bench sweep "${ring[@]}" --rounds 3 --out results/local/example.csv
measured=$(($(lines) - (before ? before : 1)))
seconds=$SECONDS
go_on python -m bench report --rows results/local/example.csv --out results/local/example
go_on python -m bench verify --config scripts/sweeps/verify.yml --steps 5 --out results/local/verify.csv
go_on python -m bench sweep --config scripts/sweeps/example_h100.yml --out results/local/h100.csv

echo
echo "$measured cells measured on this machine in $((seconds / 60)) min $((seconds % 60)) s: rows in" \
    "results/local/example.csv, page and figures in results/local/example/."
echo "The rows that come with this project, in results/*.csv, are another machine's."
echo
go_on python -m scripts.answer results/local/example.csv results/local/h100.csv
exit "$failed"
