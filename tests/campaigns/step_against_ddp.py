"""Training steps of wrn-dist beside PyTorch DDP over gloo: two ranks, one thread each, WRN-16-1, 64 images a rank, bf16, channels_last.

usage, in a shell with launch/env.sh: python3 tests/campaigns/step_against_ddp.py DDP_SCRIPT [ROUNDS]

DDP_SCRIPT takes `16 1 64 --channels-last --bf16 --steps N [--no-sync]` and prints `… median M ms, …`. All variants run once a
round, in turning order, so that the moods of the machine strike all alike. Prints medians over the rounds, and ratios.
"""
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = "30"
IMAGES = 128

OURS = ["mpirun", "-np", "2", "--bind-to", "none", "wrn-dist", "bench", "step", "--json", "--steps", STEPS]
OURS += ["--config", str(ROOT / "configs/demo/fashion-mnist.yaml"), "--set", "train.threads=1"]
ACCUMULATE = ["--set", "train.micro_batch=16"]  # four micro batches a rank
WORLD = ["--set", "train.determinism=world"]
MPI = ["--set", "comm.reduce=mpi"]


def run(command, result, cwd=None):
    # gloo's processes sometimes abort one another at start or while they part: then what was printed before counts, or another try.
    for _ in range(5):
        outcome = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        if found := re.search(result, outcome.stdout):
            return found[1]
    sys.exit(f"{' '.join(command)} failed:\n{outcome.stderr}")


def ours(*more):
    def measure():
        bench = json.loads(run(OURS + list(more), r"(\{.*\})"))
        with_exchange, without = bench["with_exchange"], bench["without_exchange"]
        return {
            "ms": 1e3 * with_exchange["step"],
            "ms without exchange": 1e3 * without["step"],
            "exposed ms": 1e3 * with_exchange["exposed_communication"],
        }

    return measure


def ddp(*more):
    script = pathlib.Path(sys.argv[1]).resolve()

    def measure():
        command = ["torchrun", "--standalone", "--nproc-per-node", "2", script.name, "16", "1", "64"]
        command += ["--channels-last", "--bf16", "--steps", STEPS, *more]
        return {"ms": float(run(command, r"median ([0-9.]+) ms", script.parent))}

    return measure


VARIANTS = {
    "wrn-dist, ordered": ours(),
    "wrn-dist, mpi": ours(*MPI),
    "wrn-dist, 4 micro batches, mpi": ours(*ACCUMULATE, *MPI),
    "wrn-dist, 4 micro batches, determinism world": ours(*ACCUMULATE, *WORLD),
    "PyTorch DDP": ddp(),
    "PyTorch, no exchange": ddp("--no-sync"),
}

rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
results = {name: [] for name in VARIANTS}
names = list(VARIANTS)
for turn in range(rounds):
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        results[name].append(VARIANTS[name]())
        print(f"round {turn + 1}: {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in results[name][-1].items()), flush=True)


def median(name, key="ms"):
    return statistics.median(result[key] for result in results[name])


print(f"\nload average {os.getloadavg()[0]:.2f}; medians over {rounds} rounds of medians over {STEPS} steps")
for name in names:
    print(f"{name:<48}{median(name):8.2f} ms {1e3 * IMAGES / median(name):9.1f} images/s")
own, floor = median("wrn-dist, ordered"), median("wrn-dist, ordered", "ms without exchange")
print(f"images/s against PyTorch DDP          {median('PyTorch DDP') / own:.3f}x")
print(f"exchange makes our step longer by     {100 * (own / floor - 1):.2f} %  (exposed {median('wrn-dist, ordered', 'exposed ms'):.2f} ms)")
print(f"exchange makes PyTorch's longer by    {100 * (median('PyTorch DDP') / median('PyTorch, no exchange') - 1):.2f} %")
print(
    "determinism world against reduce mpi  "
    f"{median('wrn-dist, 4 micro batches, determinism world') / median('wrn-dist, 4 micro batches, mpi'):.3f}x the step time"
)
