#!/usr/bin/env bash
# What hiding collectives saves, on two hosts that are network namespaces of this one.
#
#   sudo scripts/overlap_study.sh [FOLDER]     about 20 minutes; default results/overlap
#
# Every method with and without --zero_engine overlap and --overlap_chunks 2, at each speed of the
# links; FOLDER/summary.csv and its figure hold a step against the longer of its compute and its
# communication. Leave the machine alone meanwhile. What is there already is not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/overlap}
mkdir -p "$folder"
for rate in none 400mbit 200mbit; do
    cluster=(bash scripts/emulate_cluster.sh --hosts 2 --ranks 1 --rate "$rate" --)
    for method in tp tp_sp ulysses odysseus; do
        chunks='[1, 2]'
        [ "$method" != ulysses ] || chunks=1
        "${cluster[@]}" sweep --config scripts/overlap.yml --method "$method" \
            --overlap_chunks "$chunks" --out "$folder/$rate.csv"
    done
done
python -m scripts.overlap_summary "$folder"
