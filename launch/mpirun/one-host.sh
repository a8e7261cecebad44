#!/usr/bin/env bash
# Starts wrn-dist on this host, one rank a GPU (or a CPU slot).
#
#   bash launch/mpirun/one-host.sh RANKS COMMAND…      for example: … 4 train --config configs/paper/wrn-28-10-cifar10.yaml
#
# BINARY   the program, target/release/wrn-dist unless said otherwise

# shellcheck source=launch/mpirun/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

(($# >= 2)) || usage
ranks=$1
shift

flags+=(
    -np "$ranks"
    --oversubscribe            # more ranks than cores are allowed, as in trials on a laptop
    --mca btl 'vader,self'     # between processes of one host
)
start "$@"
