#!/usr/bin/env bash
# Predictions held against measured steps, on four hosts that are network namespaces of this one.
#
#   sudo scripts/emulated_study.sh [FOLDER]     about 40 minutes; default results/emulated
#
# At each speed of the links: calibrate on the hosts, measure the cells of emulated.yml and
# emulated_ring.yml on them, predict the same cells from the profile. The comparison of all is
# FOLDER/errors.csv and its figures. What is there already is not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/emulated}
model=(--model.name_or_path tiny --model.hidden_size 256 --model.num_attention_heads 8 --model.num_key_value_heads 4)
mkdir -p "$folder"
for rate in 50mbit 200mbit 800mbit none; do
    profile=$folder/profile-$rate.yml
    cluster=(bash scripts/emulate_cluster.sh --hosts 4 --ranks 1 --rate "$rate" --)
    [ -f "$profile" ] || "${cluster[@]}" calibrate --world_size 4 "${model[@]}" --out "$profile"
    for cells in emulated emulated_ring; do
        "${cluster[@]}" sweep --config "scripts/$cells.yml" --out "$folder/measured-$rate.csv"
        python -m bench sweep --config "scripts/$cells.yml" --dry_run true \
            --hardware "$profile" --out "$folder/predicted-$rate.csv"
    done
done
python -m scripts.emulated_errors "$folder"
