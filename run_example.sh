#!/usr/bin/env bash
# Sets everything up on a fresh machine, then the main job: the four methods side by side on real
# text, each alone and with ring attention across it. Leaves results/example.csv, figures in
# results/example/ and the table on the screen.
set -euo pipefail
cd "$(dirname "$0")"
has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
if has_gpu; then
    source scripts/setup_env.sh requirements.txt requirements-gpu.txt
    gpus=$(nvidia-smi -L | wc -l)
    config=(--config scripts/sweeps/example_gpu.yml --world_size "$gpus")
    # An odd number of GPUs has no ring of two: then these are the same cells, which are skipped.
    rings=("${config[@]}" --ring_parallel_size $((gpus % 2 ? 1 : 2)))
else
    source scripts/setup_env.sh requirements.txt
    config=(--config scripts/sweeps/example.yml)
    rings=(--config scripts/sweeps/hybrids.yml)
fi

python -m bench sweep "${config[@]}" --out results/example.csv
python -m bench sweep "${rings[@]}" --out results/example.csv
python -m bench report --rows results/example.csv --out results/example
python -m bench verify --config scripts/sweeps/verify.yml --steps 5 --out results/example/verify.csv
