#!/usr/bin/env bash
# What only a GPU can show, in about 15 minutes: the tests that need one, its kernels' speeds, and
# measured steps and memory beside dry runs of the same cells, with and without offload. Leaves rows
# and a page in one folder.
#
#   bash scripts/first_gpu.sh [FOLDER]             default results/local/first_gpu
#   bash scripts/first_gpu.sh FOLDER rehearse      the same commands on this CPU, with small cells
#
# Installs nothing where PyTorch can use a GPU already. A part that fails is named at the end, and
# the others go on.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/local/first_gpu}
mkdir -p "$folder"
cells=(--config scripts/sweeps/first_gpu.yml)
model=(--model.name_or_path llama3-8b --dtype bf16 --device cuda)
slower=1
if [ "${2:-}" = rehearse ]; then
    cells+=(--config scripts/recipes/cpu.yml --activation_checkpoint_cpu_offload "[false,true]")
    model=(--model.name_or_path tiny --device cpu)
    ranks=2
    slower=5 # than a GPU, on cores that others use too
else
    python -m scripts.gpus >/dev/null 2>&1 ||
        source scripts/setup_env.sh requirements-dev.txt requirements-gpu.txt
    ranks=$(python -m scripts.gpus)
    cells+=(--world_size "$ranks")
fi

failed=()
# Run one part for at most so many seconds; what it prints is also in FOLDER/NAME.txt.
part() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$((seconds * slower))" "$@" 2>&1 | tee "$folder/$name.txt" || failed+=("$name")
}
part tests 300 python -m pytest -q -m gpu tests/odysseus/test_gpu.py
part speeds 180 python -m bench calibrate "${model[@]}" --world_size "$ranks" \
    --out "$folder/profile.yml"
part measured 600 python -m bench sweep "${cells[@]}" --out "$folder/rows.csv"
part predicted 300 python -m bench sweep "${cells[@]}" --dry_run true \
    --hardware "$folder/profile.yml" --out "$folder/dry_runs.csv"
part beside 60 python -m scripts.studies.first_gpu "$folder/rows.csv" "$folder/dry_runs.csv"
part report 60 python -m bench report --rows "$folder/rows.csv" "$folder/dry_runs.csv" \
    --out "$folder/report"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
