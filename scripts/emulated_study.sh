#!/usr/bin/env bash
# Predictions held against measured steps, on four hosts that are network namespaces of this one.
#
#   sudo scripts/emulated_study.sh [FOLDER]     about 80 minutes; default results/emulated
#
# At each speed of the links: calibrate on the hosts, measure the cells of emulated.yml and
# emulated_ring.yml on them, predict the same cells from the profile. What a shared machine computes
# in a second changes from minute to minute, so that is done in rounds, of which the median counts:
# the more of them, the more of a step is compute. The comparison of all is FOLDER/errors.csv and
# its figures. What is there already is not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/emulated}
model=(--model.name_or_path tiny --model.hidden_size 256 --model.num_attention_heads 8 --model.num_key_value_heads 4)
declare -A rounds=([none]=5 [800mbit]=3 [200mbit]=3 [50mbit]=1)
for round in 1 2 3 4 5; do
    for rate in none 800mbit 200mbit 50mbit; do
        [ "$round" -le "${rounds[$rate]}" ] || continue
        at=$folder/$rate-$round
        mkdir -p "$at"
        cluster=(bash scripts/emulate_cluster.sh --hosts 4 --ranks 1 --rate "$rate" --)
        [ -f "$at/profile.yml" ] || "${cluster[@]}" calibrate --world_size 4 "${model[@]}" --out "$at/profile.yml"
        for cells in emulated emulated_ring emulated_prefetch; do
            suffix=
            if [ "$cells" = emulated_prefetch ]; then
                [ "$rate" = 200mbit ] || continue
                suffix=-prefetch
            fi
            "${cluster[@]}" sweep --config "scripts/$cells.yml" --out "$at/measured$suffix.csv"
            python -m bench sweep --config "scripts/$cells.yml" --dry_run true \
                --hardware "$at/profile.yml" --out "$at/predicted$suffix.csv"
        done
    done
done
python -m scripts.emulated_errors "$folder"
