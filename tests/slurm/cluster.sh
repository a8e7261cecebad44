#!/usr/bin/env bash
# A Slurm cluster of two nodes, n1 and n2, on this machine: munged, slurmctld and two slurmd, with all their files in
# one folder and their own ports on the loopback interface. Takes root and Debian's packages slurmctld, slurmd,
# slurm-client and munge.
#
#   bash cluster.sh start FOLDER CONTROLLER_PORT PORT_OF_N1 PORT_OF_N2
#   SLURM_CONF=FOLDER/slurm.conf sbatch …
#   bash cluster.sh stop FOLDER
#
# Exit code 3 says that this machine cannot, with the reason; the daemons' logs are in the folder.

set -Eeuo pipefail

cannot() {
    echo "$*" >&2
    exit 3
}

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
    local tries=$(($1 * 10))
    shift
    while ((tries-- > 0)); do
        if "$@" >/dev/null 2>&1; then
            return 0
        fi
        sleep 0.1
    done
    return 1
}

both_nodes_are_idle() { [[ $(sinfo --noheader --format=%D --states=idle) == 2 ]]; }

write_configuration() {
    local folder=$1 host
    host=$(hostname)
    # A requeued job waits until its earlier credential has expired, two minutes unless said otherwise.
    cat >"$folder/slurm.conf" <<CONFIGURATION
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$2
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
TmpFS=$folder/tmp-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=600
KillWait=20
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$3 CPUs=4 Gres=gpu:8 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$4 CPUs=4 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONFIGURATION
    # Numbers only, without devices: for scripts that ask for GPUs.
    echo "Name=gpu Count=8" >"$folder/gres.conf"
}

start() {
    local folder=$1 program node
    ((EUID == 0)) || cannot "slurmd runs jobs as their users, which takes root"
    for program in munged slurmctld slurmd sbatch srun; do
        command -v "$program" >/dev/null || cannot "$program is not installed"
    done
    mkdir -p "$folder"/{state,spool-n1,spool-n2,tmp-n1,tmp-n2}
    chmod 755 "$folder"
    write_configuration "$@"
    export SLURM_CONF=$folder/slurm.conf

    (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=1 count=1024 status=none)
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" || cannot "munged does not start"
    slurmctld || cannot "slurmctld does not start"
    for node in n1 n2; do
        slurmd -N "$node" || cannot "slurmd does not start as $node"
    done
    wait_for 30 both_nodes_are_idle || cannot "the two nodes do not become idle; see the logs in $folder"
}

stop() {
    local folder=$1 file pid
    for file in "$folder"/slurmd-n1.pid "$folder"/slurmd-n2.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
        pid=$(cat "$file" 2>/dev/null || true)
        if [[ -n $pid ]]; then
            kill "$pid" 2>/dev/null || true
            wait_for 10 eval "! kill -0 $pid" || kill -9 "$pid" 2>/dev/null || true
        fi
    done
}

case ${1:-}:$# in
    start:5 | stop:2) "$@" ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
