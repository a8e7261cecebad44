# shellcheck shell=bash
# Sourced by the job scripts of this folder. Starts one rank a task of the job, passes on Slurm's request to stop, and
# puts the job back into the queue when the run has saved and stopped (exit code 75). The same command then goes on.
#
# LAUNCHER  srun (default): ranks find each other through Slurm's variables and talk over TCP, without MPI;
#           mpirun: Open MPI starts them within the allocation
# SRUN_MPI  for srun, none (default), or pmix: ranks find each other through MPI, if it was built for that
# NETWORK   for mpirun, the network that carries the gradients, such as 10.0.0.0/24 or ib0
# EXPORT    for mpirun, more variables that the ranks get from the job's shell
# WRN_DIST_ROOT  the clone, for sbatch in another folder
# BINARY    the program, target/release/wrn-dist of this clone unless said otherwise

# shellcheck source=launch/mpirun/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../mpirun/common.sh"

SAVED_AND_STOPPED=75

start_by_srun() {
    local flags=(--mpi="${SRUN_MPI:-none}")
    # srun no longer takes this from sbatch since Slurm 22.05.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        flags+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    fi
    # Every rank sees all GPUs of its node and takes the one of its local rank, so that NCCL finds the shortest way to the
    # others'. Ranks that are shown one GPU each take that, too.
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
        flags+=(--gpu-bind=none)
    fi
    exec srun "${flags[@]}" "$BINARY" "$@"
}

start_by_mpirun() {
    flags_of_many_hosts
    exec mpirun "${flags[@]}" "$BINARY" "$@"
}

# requeue: back into the queue. Of an array only this task: the id of its last task is also that of the whole array.
requeue() {
    local job=$SLURM_JOB_ID
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    fi
    echo "job.sh: saved and stopped; job $job goes back into the queue" >&2
    scontrol requeue "$job" ||
        echo "job.sh: Slurm does not requeue job $job; submit the same command again to go on" >&2
}

# run_and_requeue COMMAND…: the job, from here to its end.
run_and_requeue() {
    local launcher=${LAUNCHER:-srun} child code=0
    case $launcher in
        srun | mpirun) ;;
        *) echo "job.sh: LAUNCHER=$launcher: expected srun or mpirun" >&2; exit 2 ;;
    esac
    "start_by_$launcher" "$@" &
    child=$!
    # Both pass SIGUSR2 on to all ranks. A trap ends the wait, so it is repeated until there is no child.
    trap 'kill -USR2 "$child" 2>/dev/null || true' USR2
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" || true
    done
    wait "$child" || code=$?
    if ((code == SAVED_AND_STOPPED)); then
        requeue
    fi
    exit "$code"
}
