"""Training steps of wrn-dist beside PyTorch DDP over gloo: two ranks, one thread each, bf16, channels_last.

usage, in a shell with launch/env.sh: python3 tests/campaigns/step_against_ddp.py DDP_SCRIPT [ROUNDS [NETWORK...]]

NETWORK is DEPTH-WIDTH-IMAGES-STEPS: a wide residual network, images a rank, steps of each run; 16-1-64-30 (64 images a rank) when
absent. DDP_SCRIPT takes `DEPTH WIDTH IMAGES --channels-last --bf16 --steps N [--no-sync]` and prints `… median M ms, …`. All
variants run once a round, in turning order, so that the moods of the machine strike all alike. Prints medians over the rounds, and
ratios.
"""
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
NETWORKS = sys.argv[3:] or ["16-1-64-30"]
RANKS = 2

OURS = ["mpirun", "-np", str(RANKS), "--bind-to", "none", "wrn-dist", "bench", "step", "--json"]
OURS += ["--config", str(ROOT / "configs/demo/fashion-mnist.yaml"), "--set", "train.threads=1"]
WORLD = ["--set", "train.determinism=world"]
MPI = ["--set", "comm.reduce=mpi"]


def run(command, result, cwd=None):
    # gloo's processes sometimes abort one another at start or while they part: then what was printed before counts, or another try.
    for _ in range(5):
        outcome = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        if found := re.search(result, outcome.stdout):
            return found[1]
    sys.exit(f"{' '.join(command)} failed:\n{outcome.stderr}")


def ours(network, *more):
    depth, width, images, steps = network.split("-")
    command = [*OURS, "--steps", steps, "--set", f"model.arch=wrn-{depth}-{width}", "--set", f"train.global_batch={RANKS * int(images)}"]
    command += ["--set", f"train.micro_batch={images}"]

    def measure():
        bench = json.loads(run(command + list(more), r"(\{.*\})"))
        with_exchange, without = bench["with_exchange"], bench["without_exchange"]
        return {
            "ms": 1e3 * with_exchange["step"],
            "ms without exchange": 1e3 * without["step"],
            "exposed ms": 1e3 * with_exchange["exposed_communication"],
        }

    return measure


def ddp(network, *more):
    script = pathlib.Path(sys.argv[1]).resolve()
    depth, width, images, steps = network.split("-")

    def measure():
        command = ["torchrun", "--standalone", "--nproc-per-node", str(RANKS), script.name, depth, width, images]
        command += ["--channels-last", "--bf16", "--steps", steps, *more]
        return {"ms": float(run(command, r"median ([0-9.]+) ms", script.parent))}

    return measure


def compare(network):
    images = RANKS * int(network.split("-")[2])
    four = ["--set", f"train.micro_batch={images // RANKS // 4}"]
    variants = {
        "wrn-dist, ordered": ours(network),
        "wrn-dist, mpi": ours(network, *MPI),
        "wrn-dist, 4 micro batches, mpi": ours(network, *four, *MPI),
        "wrn-dist, 4 micro batches, determinism world": ours(network, *four, *WORLD),
        "PyTorch DDP": ddp(network),
        "PyTorch, no exchange": ddp(network, "--no-sync"),
    }
    names = list(variants)
    results = {name: [] for name in names}
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(variants[name]())
            found = ", ".join(f"{key} {value:.2f}" for key, value in results[name][-1].items())
            print(f"{network}, round {turn + 1}: {name}: {found}", flush=True)

    def median(name, key="ms"):
        return statistics.median(result[key] for result in results[name])

    print(f"\nWRN-{network}: load average {os.getloadavg()[0]:.2f}; medians over {ROUNDS} rounds")
    for name in names:
        print(f"{name:<48}{median(name):9.2f} ms {1e3 * images / median(name):9.1f} images/s")
    own = median("wrn-dist, ordered")
    longer = statistics.median(100 * (run["ms"] / run["ms without exchange"] - 1) for run in results["wrn-dist, ordered"])
    theirs = zip(results["PyTorch DDP"], results["PyTorch, no exchange"])
    theirs = statistics.median(100 * (ddp["ms"] / alone["ms"] - 1) for ddp, alone in theirs)
    exposed = median("wrn-dist, ordered", "exposed ms")
    world = median("wrn-dist, 4 micro batches, determinism world") / median("wrn-dist, 4 micro batches, mpi")
    print(f"images/s against PyTorch DDP          {median('PyTorch DDP') / own:.3f}x")
    print(f"exchange makes our step longer by     {longer:.2f} %  (exposed {exposed:.2f} ms)")
    print(f"exchange makes PyTorch's longer by    {theirs:.2f} %")
    print(f"determinism world against reduce mpi  {world:.3f}x the step time\n", flush=True)


for network in NETWORKS:
    compare(network)
