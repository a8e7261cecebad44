#!/usr/bin/env bash
# Starts wrn-dist on this host, one rank a GPU (or a CPU slot).
#
#   bash launch/mpirun/one-host.sh RANKS COMMAND…      for example: … 4 train --config configs/paper/wrn-28-10.yaml
#
# BINARY   the program, target/release/wrn-dist unless said otherwise

set -Eeuo pipefail

if (($# < 2)); then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BINARY=${BINARY:-${CARGO_TARGET_DIR:-$ROOT/target}/release/wrn-dist}
ranks=$1
shift

flags=(
    -np "$ranks"
    --bind-to none             # else two ranks get one core each, decoder threads included
    --oversubscribe            # more ranks than cores are allowed, as in trials on a laptop
    --mca btl 'vader,self'     # between processes of one host
)
if ((EUID == 0)); then
    flags+=(--allow-run-as-root)
fi
exec mpirun "${flags[@]}" "$BINARY" "$@"
