"""Memory and time of a training step with and without optimizer.shard, on this machine.

usage: sharded_memory.py [--arch wrn-28-10] [--ranks 2,4] [--steps 4] [--optimizer sgd] [--images-a-rank 4]

Trains on Fashion-MNIST (Debian's dataset-fashion-mnist) without saving and prints, for each rank count and both settings
in turn: the least and the largest resident memory of a rank after its last step, the median step and the optimizer's
part of it. `wrn-dist` and `mpirun` must be on PATH. The resident memory is read from /proc while the run is under way.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--arch", default="wrn-28-10")
parser.add_argument("--ranks", default="2,4")
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--optimizer", default="sgd")
parser.add_argument("--images-a-rank", type=int, default=4)
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
arguments = parser.parse_args()


def resident_of_ranks(out):
    """MiB of each process that trains into `out`."""
    found = []
    for process in pathlib.Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"wrn-dist") and str(out).encode() in command:
                status = (process / "status").read_text()
                found.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
        except (OSError, IndexError):
            continue
    return found


def steps_of(out):
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run(ranks, shard):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        out = folder / "run"
        config = folder / "run.yaml"
        config.write_text(
            f"""model: {{arch: {arguments.arch}}}
data: {{kind: fashion-mnist, path: {arguments.data}, pad_to: 32, channels: 3, workers: 1}}
train: {{epochs: 1, global_batch: {ranks * arguments.images_a_rank}, micro_batch: {arguments.images_a_rank}, threads: 1}}
schedule: {{kind: constant, rate: 0.01}}
optimizer: {{kind: {arguments.optimizer}, shard: {str(shard).lower()}}}
"""
        )
        command = ["mpirun", "-np", str(ranks), "--bind-to", "none", "--oversubscribe"]
        command += ["wrn-dist", "train", "--config", str(config), "--out", str(out)]
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while len(steps_of(out)) < arguments.steps:
                if job.poll() is not None:
                    raise SystemExit(f"the run ended with {job.returncode}")
                time.sleep(0.2)
            resident = resident_of_ranks(out)
        finally:
            job.kill()
            job.wait()
            # mpirun's own end brings its ranks down; the folder must not vanish before.
            while resident_of_ranks(out):
                time.sleep(0.2)
        seconds = [step["seconds"] for step in steps_of(out)[1:]]
        median = lambda part: statistics.median(step[part] for step in seconds)
        return min(resident), max(resident), median("step"), median("optimizer")


print(f"{arguments.arch}, {arguments.optimizer}, {arguments.images_a_rank} images a rank")
print(f"{'ranks':>5} {'shard':>6} {'least MiB':>10} {'most MiB':>10} {'step s':>8} {'optimizer s':>12}")
for ranks in map(int, arguments.ranks.split(",")):
    for shard in (False, True):
        least, most, step, optimizer = run(ranks, shard)
        print(f"{ranks:>5} {str(shard).lower():>6} {least:>10.0f} {most:>10.0f} {step:>8.3f} {optimizer:>12.3f}", flush=True)
