# shellcheck shell=bash
# What the scripts of this folder share; to be sourced.

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

# start COMMAND…: ends with mpirun's exit code. mpirun itself would answer Ctrl-C and SIGTERM by killing the ranks a second
# later (with odls_base_sigkill_timeout raised to T seconds it lets them wait T before they hear of it). SIGUSR1 it passes on at
# once, and the ranks save and stop. A second Ctrl-C or SIGTERM goes to it as SIGTERM: then they end at once.
start() {
    local job code signal=USR1
    set -m                     # a process group of its own, which Ctrl-C does not reach
    mpirun "${flags[@]}" "$BINARY" "$@" </dev/null &
    job=$!
    trap 'kill -"$signal" "$job" 2>/dev/null || true; signal=TERM' INT TERM
    trap 'kill -USR1 "$job" 2>/dev/null || true' USR1 USR2
    while true; do
        code=0
        wait "$job" || code=$?
        kill -0 "$job" 2>/dev/null || exit "$code"   # else a signal ended the wait
    done
}
