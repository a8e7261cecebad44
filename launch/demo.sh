#!/usr/bin/env bash
# The demonstration: sets up, trains a small Wide ResNet on Fashion-MNIST with two ranks under mpirun, and says
# how to go on. Each run has a folder of its own under runs/.

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

CONFIG=configs/demo/fashion-mnist.yaml

# Physical cores that this process may use; mpirun offers as many slots.
cores() {
    local physical
    physical=$(lscpu --parse=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
    echo $((physical < $(nproc) ? physical : $(nproc)))
}

# GPUs that libtorch can use here.
gpus() { wrn-dist doctor | awk '$1 == "GPUs" && $2 + 0 > 0 { count = $2 } END { print count + 0 }'; }

set_up

RUN=runs/fashion-mnist-$(date +%Y%m%d-%H%M%S)
RANKS=2
stage "Training"
if (($(gpus) == 1)); then
    RANKS=1
    say "one GPU here, so one rank instead of two: each rank needs its own"
fi
LAUNCH=(mpirun -np "$RANKS" --bind-to none)
if (($(cores) < RANKS)); then
    LAUNCH+=(--oversubscribe)
    say "fewer cores than ranks: it will take longer"
fi
LAUNCH+=(wrn-dist train --config "$CONFIG" --out "$RUN")
say "about five minutes on two quiet CPU cores:"
say "${LAUNCH[*]}"
code=0
"${LAUNCH[@]}" || code=$?
# 75: stopped on request, after saving.
((code != 75)) || fail "training was interrupted and is saved; to go on: source launch/env.sh, and the same command"
((code == 0)) || fail "training failed with exit code $code; the reason stands above"
end_stage

# The last epoch's line of the metrics.
error=$(sed -n '/"kind":"epoch"/ s/.*"test_top1_error":\([0-9.e-]*\).*/\1/p' "$RUN/metrics.jsonl" | tail -n 1)
[[ -n $error ]] || fail "the run ended without a test accuracy; see $RUN/metrics.jsonl"

cat <<END

Test accuracy  $(awk -v error="$error" 'BEGIN { printf "%.2f", 100 * (1 - error) }') %
Curves         $ROOT/$RUN/report/curves.svg
Everything     $ROOT/$RUN (config.yaml, run.json, metrics.jsonl, checkpoints)

How to go on, in a shell with: source $ROOT/launch/env.sh; cd $ROOT
  CIFAR-10       Unpack the authors' "binary version" (cifar-10-binary.tar.gz), then
                 mpirun -np 2 --bind-to none wrn-dist train --config configs/paper/wrn-16-8-cifar10.yaml \\
                   --set data.path=FOLDER     (the folder that holds data_batch_1.bin)
                 At full length this is work for GPUs; wrn-dist plan --config … says what a run does.
  A GPU machine  The same binary uses its GPUs, one rank each: mpirun -np GPUS …
                 wrn-dist doctor says what it finds.
  Slurm          sbatch -n RANKS --wrap 'mpirun --bind-to none wrn-dist train --config …' from such a shell,
                 in a clone and a home directory that the nodes share.
END
