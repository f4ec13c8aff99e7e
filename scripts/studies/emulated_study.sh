#!/usr/bin/env bash
# Predictions held against measured steps, on four hosts that are network namespaces of this one.
#
#   sudo scripts/studies/emulated_study.sh [FOLDER [ROUNDS]]     over an hour a round; default results/emulated 1
#
# At each speed of the links: calibrate on the hosts, measure the cells of emulated.yml and
# emulated_ring.yml on them. What a shared machine computes in a second changes from minute to minute,
# so where most of a step is compute all but the links is calibrated again before each length; of more
# rounds the median counts. Every cell has processes of its own: one after another in the same
# processes, short cells take up to half as long again after long ones. Leave the machine alone
# meanwhile. Then the same cells are predicted from the profiles, and compared: FOLDER/rounds.csv,
# errors.csv and figures. What is there already is not measured again.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-results/emulated} rounds=${2:-1}
[[ $rounds =~ ^[1-9][0-9]*$ ]] || {
    echo "ROUNDS is $rounds; valid: 1 or more" >&2
    exit 2
}
model=(--model.name_or_path tiny --model.hidden_size 256 --model.num_attention_heads 8 --model.num_key_value_heads 4)
rates=(none 800mbit 200mbit 50mbit)
declare -A steps=([none]="--warmup_steps 3 --steps 7")
usual="1024 2048 4096"
declare -A lengths=([none]="$usual 8192") # there a fast machine has time for them

# measure SUFFIX CONFIG FLAG…: a sweep's cells on the hosts.
measure() {
    "${cluster[@]}" sweep --config "scripts/sweeps/$2.yml" "${@:3}" --out "$at/measured$1.csv"
}

# calibrate FILE FLAG…: the hosts' profile, unless it is there.
calibrate() {
    [ -f "$1" ] || "${cluster[@]}" calibrate --world_size 4 "${model[@]}" "${@:2}" --out "$1"
}

# predict SUFFIX CONFIG FLAG…: the same cells, from the profile nearest before them.
predict() {
    python -m bench sweep --config "scripts/sweeps/$2.yml" --dry_run true "${@:3}" \
        --hardware "$profile" --out "$at/predicted$1.csv"
}

for ((round = 1; round <= rounds; round++)); do
    for rate in "${rates[@]}"; do
        at=$folder/$rate-$round
        mkdir -p "$at"
        cluster=(bash scripts/cluster/emulate_cluster.sh --hosts 4 --ranks 1 --rate "$rate" --)
        read -ra more <<<"${steps[$rate]:-}"
        calibrate "$at/profile.yml"
        for length in ${lengths[$rate]:-$usual}; do
            [ "$rate" != none ] || calibrate "$at/profile-$length.yml" --links_of "$at/profile.yml"
            for method in tp tp_sp ulysses odysseus; do
                measure "" emulated --method "$method" --seq_len "$length" "${more[@]}"
            done
            measure "" emulated_ring --seq_len "$length" "${more[@]}"
        done
        [ "$rate" != 200mbit ] || {
            measure -prefetch emulated_prefetch
            measure -prefetch-reversed emulated_prefetch --zero_prefetch '[false, true]'
        }
    done
done
for at in "$folder"/*-*; do
    listed=$(python -c "import pandas, sys; print(*pandas.read_csv(sys.argv[1]).seq_len.unique())" "$at/measured.csv")
    for length in $listed; do
        profile=$at/profile-$length.yml
        [ -f "$profile" ] || profile=$at/profile.yml
        predict "" emulated --seq_len "$length"
        predict "" emulated_ring --seq_len "$length"
    done
    profile=$at/profile.yml
    for suffix in -prefetch -prefetch-reversed; do
        [ ! -f "$at/measured$suffix.csv" ] || predict "$suffix" emulated_prefetch
    done
done
python -m scripts.studies.emulated_errors "$folder"
