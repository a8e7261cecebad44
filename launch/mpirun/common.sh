# shellcheck shell=bash
# What the scripts of this folder and of ../slurm share; to be sourced.

set -Eeuo pipefail

# Prints the comment at the top of the script that was started, and ends.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BINARY=${BINARY:-${CARGO_TARGET_DIR:-$ROOT/target}/release/wrn-dist}
flags=(
    --bind-to none             # else a rank's decoder threads share one core with it
)
if ((EUID == 0)); then
    flags+=(--allow-run-as-root)
fi

# flags_of_many_hosts: NETWORK is the network that carries the gradients; EXPORT names more variables for the ranks.
flags_of_many_hosts() {
    local variable
    flags+=(
        --map-by slot              # neighbouring ranks on one host
        --mca pml ob1              # the point-to-point layer that TCP and shared memory belong to
        --mca btl '^openib'        # breaks with several threads
        # A host that is gone: mpirun finds out by asking its helper there, which Open MPI does after 300 s of silence, and nine
        # times in vain, unless told otherwise. Where comm.timeout_s is less than this minute, the ranks end first, and mpirun
        # then waits until TCP gives up, which takes minutes; kill it.
        --mca oob_tcp_keepalive_time 20
        --mca oob_tcp_keepalive_intvl 10
        --mca oob_tcp_keepalive_probes 4
    )
    if [[ -n ${NETWORK:-} ]]; then
        flags+=(--mca btl_tcp_if_include "$NETWORK" --mca oob_tcp_if_include "$NETWORK")
    fi
    for variable in PATH LD_LIBRARY_PATH RUST_LOG ${EXPORT:-}; do
        if [[ -n ${!variable:-} ]]; then
            flags+=(-x "$variable")
        fi
    done
}

# start COMMAND…: ends with mpirun's exit code. mpirun itself would answer Ctrl-C and SIGTERM by killing the ranks a second
# later (with odls_base_sigkill_timeout raised to T seconds it lets them wait T before they hear of it). SIGUSR1 it passes on at
# once, and the ranks save and stop; so they do when the terminal is closed. A second of these signals goes to it as SIGTERM: then
# they end at once.
start() {
    local job code signal=USR1
    set -m                     # a process group of its own, which Ctrl-C does not reach
    mpirun "${flags[@]}" "$BINARY" "$@" </dev/null &
    job=$!
    trap 'kill -"$signal" "$job" 2>/dev/null || true; signal=TERM' INT TERM HUP
    trap 'kill -USR1 "$job" 2>/dev/null || true' USR1 USR2
    while true; do
        code=0
        wait "$job" || code=$?
        kill -0 "$job" 2>/dev/null || exit "$code"   # else a signal ended the wait
    done
}
