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

# start COMMAND…: in place of this shell.
start() {
    exec mpirun "${flags[@]}" "$BINARY" "$@"
}
