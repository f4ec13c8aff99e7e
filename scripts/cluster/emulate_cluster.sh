#!/usr/bin/env bash
# Run a cell on several emulated hosts: network namespaces of this machine, each behind a throttled link.
#
#   sudo scripts/cluster/emulate_cluster.sh --hosts 2 --ranks 2 --rate 200mbit -- run --method ulysses …
#
#   --hosts H      namespaces, one torchrun agent each (default 2)
#   --ranks R      ranks per host (default 2)
#   --rate RATE    rate of each host's link in each direction, as tc writes it: 50mbit, 1gbit; none is not throttled
#                  (default none)
#   --             arguments after it go to python -m bench on every rank
#
# Needs root, iproute2 (ip, tc) and the active Python environment. Ranks are pinned to the cores that
# this shell may use, in turn. Hosts are 10.77.0.1 and up, behind a bridge in its own namespace. Nothing
# outside the namespaces is changed, and all of them are removed at the end, also on Ctrl-C. Those of a run
# that was killed are removed by the next one.
set -euo pipefail

fail() {
    echo "emulate_cluster: $1" >&2
    exit 2
}

hosts=2 ranks=2 rate=none
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ $# -ge 2 ] || fail "$1 has no value"
    case "$1" in
        --hosts) hosts=$2 ;;
        --ranks) ranks=$2 ;;
        --rate) rate=$2 ;;
        *) fail "$1 is no option; valid: --hosts, --ranks, --rate, and -- before what is to run" ;;
    esac
    shift 2
done
{ [ "${1:-}" = -- ] && [ $# -ge 2 ]; } || fail "nothing to run; give it after --, as in: -- run --method tp"
shift
[[ "$hosts" =~ ^[1-9][0-9]?$ ]] || fail "--hosts is '$hosts'; valid: 1 to 99"
[[ "$ranks" =~ ^[1-9][0-9]?$ ]] || fail "--ranks is '$ranks'; valid: 1 to 99"
[[ "$rate" =~ ^(none|[1-9][0-9]*[kmg]bit)$ ]] || fail "--rate is '$rate'; valid: none, or like 200mbit"
[ "$(id -u)" = 0 ] || fail "network namespaces need root"
for tool in ip tc taskset python; do
    command -v "$tool" >/dev/null || fail "$tool is not installed (ip and tc are iproute2's)"
done

# End what runs in a run's namespaces, and remove them. $1 is the run's name.
remove() {
    local namespaces
    namespaces=$(ip netns list | grep -oE "^$1(-[0-9]+)?\b" || true)
    for namespace in $namespaces; do
        # Agents end their workers on TERM; processes left after 10 s are killed.
        ip netns pids "$namespace" 2>/dev/null | xargs -r kill -TERM 2>/dev/null || true
    done
    for _ in $(seq 100); do
        [ -n "$(for namespace in $namespaces; do ip netns pids "$namespace" 2>/dev/null; done)" ] || break
        sleep 0.1
    done
    for namespace in $namespaces; do
        ip netns pids "$namespace" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
        ip netns delete "$namespace" 2>/dev/null || true
    done
}

# A run that was killed could not clean up. Its name holds its process's number.
for left in $(ip netns list | grep -oE '^odysseus-[0-9]+\b' | sort -u || true); do
    grep -qs emulate_cluster "/proc/${left#odysseus-}/cmdline" || remove "$left"
done

name=odysseus-$$
# shellcheck disable=SC2317,SC2329 # the traps call it
clean() {
    trap '' INT TERM # ignore a second Ctrl-C
    trap - EXIT
    remove "$name"
    wait 2>/dev/null || true
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# With BBR in the kernel, TCP measures a throttled link's rate and keeps its queue short. A link that is not
# throttled has no rate: BBR would measure the pace of the hosts' computing and send at that pace.
control=reno
[ "$rate" = none ] || ! grep -qw bbr /proc/sys/net/ipv4/tcp_available_congestion_control || control=bbr

ip netns add "$name"
ip -n "$name" link add bridge type bridge
ip -n "$name" link set bridge up
for host in $(seq "$hosts"); do
    ip netns add "$name-$host"
    ip -n "$name" link add "to-$host" type veth peer name eth0 netns "$name-$host"
    ip -n "$name" link set "to-$host" master bridge up
    ip -n "$name-$host" link set lo up
    ip -n "$name-$host" address add "10.77.0.$host/24" dev eth0
    ip -n "$name-$host" link set eth0 up
    ip netns exec "$name-$host" tee /proc/sys/net/ipv4/tcp_congestion_control <<<"$control" >/dev/null
    ip netns exec "$name-$host" tee /proc/sys/net/ipv4/tcp_slow_start_after_idle <<<0 >/dev/null
    if [ "$rate" != none ]; then
        # The rate holds in both directions; bursts of 64 KiB, the largest packet.
        tc -n "$name-$host" qdisc add dev eth0 root tbf rate "$rate" burst 64kb latency 1s
        tc -n "$name" qdisc add dev "to-$host" root tbf rate "$rate" burst 64kb latency 1s
    fi
done

mapfile -t cores < <(python -c "import os; print(*sorted(os.sched_getaffinity(0)), sep='\n')")
export GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1
# Let glibc keep freed memory for the next tensor, as CUDA's caching allocator does. Pages that the kernel
# has to clear again cost up to a tenth of a step.
export MALLOC_MMAP_THRESHOLD_=$((2 ** 25)) MALLOC_TRIM_THRESHOLD_=$((2 ** 32)) MALLOC_TOP_PAD_=$((2 ** 26))
agents=()
for host in $(seq "$hosts"); do
    host_cores=()
    for rank in $(seq $(((host - 1) * ranks)) $((host * ranks - 1))); do
        host_cores+=("${cores[rank % ${#cores[@]}]}")
    done
    ip netns exec "$name-$host" taskset -c "$(IFS=,; echo "${host_cores[*]}")" python -m torch.distributed.run \
        --nnodes "$hosts" --nproc_per_node "$ranks" --rdzv_backend c10d --rdzv_id "$name" \
        --rdzv_endpoint 10.77.0.1:29500 --rdzv_conf "is_host=$((host == 1))" --local_addr "10.77.0.$host" -m bench "$@" &
    agents+=($!)
done
status=0
for agent in "${agents[@]}"; do
    wait "$agent" || status=$?
done
exit "$status"
