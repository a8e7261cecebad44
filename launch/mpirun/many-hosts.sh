#!/usr/bin/env bash
# Starts wrn-dist on the hosts of a host file (lines such as `node1 slots=8`), one rank a slot. Every host has this
# clone, its libtorch and the data under the same paths, and can be reached by ssh without a password.
#
#   bash launch/mpirun/many-hosts.sh HOSTFILE COMMAND…      for example: … hosts train --config configs/paper/wrn-28-10-cifar10.yaml
#
# NETWORK  the network that carries the gradients, such as 10.0.0.0/24 or eth1; without it Open MPI tries all it finds,
#          also those of containers and virtual machines, on which it may wait for ever
# EXPORT   more variables that the ranks get from this shell, such as "CUDA_VISIBLE_DEVICES NCCL_DEBUG"
# BINARY   the program, target/release/wrn-dist unless said otherwise

# shellcheck source=launch/mpirun/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

(($# >= 2)) || usage
hosts=$1
shift

flags+=(
    --hostfile "$hosts"
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
start "$@"
