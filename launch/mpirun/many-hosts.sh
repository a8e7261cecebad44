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

flags+=(--hostfile "$hosts")
flags_of_many_hosts
start "$@"
