#!/usr/bin/env bash
# What hiding collectives saves, on two hosts that are network namespaces of this one.
#
#   sudo scripts/studies/overlap_study.sh [FOLDER]     about 20 minutes; default results/overlap
#
# Every method as it is and with all that hides collectives in it, odysseus with each, at each speed
# of the links; FOLDER/summary.csv and its figure hold a step against the longer of its compute and
# its communication. Leave the machine alone meanwhile. What is there already is not measured again.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-results/overlap}
mkdir -p "$folder"
for rate in none 400mbit 200mbit; do
    cluster=(bash scripts/cluster/emulate_cluster.sh --hosts 2 --ranks 1 --rate "$rate" --)
    for method in tp tp_sp ulysses odysseus; do
        ways=("fsdp2 1" "overlap 2")
        [ "$method" != odysseus ] || ways+=("overlap 1" "fsdp2 2")
        [ "$method" != ulysses ] || ways=("fsdp2 1" "overlap 1")
        for way in "${ways[@]}"; do
            read -r engine chunks <<<"$way"
            "${cluster[@]}" sweep --config scripts/sweeps/overlap.yml --method "$method" \
                --zero_engine "$engine" --overlap_chunks "$chunks" --out "$folder/$rate.csv"
        done
    done
done
python -m scripts.studies.overlap_summary "$folder"
