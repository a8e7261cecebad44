"""Does compression of gradients cost accuracy? The Fashion-MNIST demonstration with two ranks, by kind of compression.

usage, in a shell with launch/env.sh: python3 tests/campaigns/compression.py [SEEDS [OUT]]

Trains configs/demo/fashion-mnist.yaml to its end for each kind and each of SEEDS seeds (default 1) into OUT (default
runs/compression), and prints the last epoch's test accuracy, its difference to none with the same seed, and the bytes that a
rank exchanged. Runs that are already there are not repeated, and one that was interrupted goes on. Ends with 1 when a mean over
the seeds lies more than 0.3 points below that of none. About five minutes a run on two quiet cores.
"""
import json
import pathlib
import statistics
import subprocess
import sys

CONFIG = "configs/demo/fashion-mnist.yaml"
TOLERANCE = 0.3  # points
KINDS = {
    "none": [],
    "bf16": ["comm.compression=bf16"],
    "power-sgd": ["comm.compression=power-sgd"],
    "power-sgd, rank 4, from step 200": [
        "comm.compression=power-sgd",
        "comm.power_sgd_rank=4",
        "comm.power_sgd_start_step=200",
    ],
}


def run(kind, seed, out):
    folder = out / f"{kind.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    sets = [argument for key in [f"seed={seed}", *KINDS[kind]] for argument in ("--set", key)]
    command = ["mpirun", "-np", "2", "--bind-to", "none", "wrn-dist", "train", "--config", CONFIG, "--out", folder, *sets]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode != 0:
        sys.exit(f"{kind}, seed {seed}: exit code {outcome.returncode}\n{outcome.stderr}")
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    error = [line["test_top1_error"] for line in lines if line["kind"] == "epoch"][-1]
    gigabytes = sum(line["exchange"]["bytes"] for line in lines if line["kind"] == "step") / 1e9
    return 100 * (1 - error), gigabytes


seeds = range(1, 1 + int(sys.argv[1]) if len(sys.argv) > 1 else 2)
out = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "runs/compression")
accuracy = {}
print(f"{'compression':<36}{'seed':>6}{'accuracy':>12}{'difference':>12}{'GB a rank':>12}")
for seed in seeds:
    for kind in KINDS:
        accuracy[kind, seed], gigabytes = run(kind, seed, out)
        difference = accuracy[kind, seed] - accuracy["none", seed]
        print(f"{kind:<36}{seed:>6}{accuracy[kind, seed]:>12.2f}{difference:>+12.2f}{gigabytes:>12.2f}", flush=True)
means = {kind: statistics.mean(accuracy[kind, seed] for seed in seeds) for kind in KINDS}
worse = [kind for kind in KINDS if means[kind] < means["none"] - TOLERANCE]
print(f"more than {TOLERANCE} points below none: {', '.join(worse) or 'nothing'}")
sys.exit(bool(worse))
