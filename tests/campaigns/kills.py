"""Kills random ranks of a run, again and again, and compares what it comes to with an undisturbed run.

usage, in a shell with launch/env.sh: python3 tests/campaigns/kills.py [KILLS [RANKS [SEED]]]

Each life of the run ends by `kill -9` of one rank: after a random time, or, every second time, at a random moment of a save, which
then is rank 0's or another's. The same command then starts it again. Prints for each kill how far the run was, and how many steps were
lost. In the end weights, optimizer and every line of metrics but for times must be those of the run that nobody killed.
"""
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
ranks = int(sys.argv[2]) if len(sys.argv) > 2 else 2
seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1

STEPS_A_LIFE = 40
STEPS_AN_EPOCH = 37  # no multiple of the steps between checkpoints
TIMES = {"images_per_second", "seconds", "exchange", "train_seconds", "test_seconds", "stragglers"}
DATA = "/usr/share/datasets/fashion-mnist"

CONFIG = f"""seed: 3
model: {{arch: wrn-10-1, dropout: 0.3, shortcut_dropout: 0.1, stochastic_depth: 0.5}}
data: {{kind: fashion-mnist, path: {DATA}, class_fraction: 0.02, pad_to: 32, channels: 3, workers: 1, mixup: 0.4, cutmix: 1.0}}
train: {{epochs: {kills * STEPS_A_LIFE // STEPS_AN_EPOCH + 1}, global_batch: 32, micro_batch: 8, threads: 1, evaluate_every_epochs: 5}}
schedule: {{kind: cosine, rate: 0.1, warmup_epochs: 1}}
checkpoint: {{every_steps: 5, every_epochs: 3}}
"""


def start(run):
    command = ["wrn-dist", "train", "--config", str(folder / "run.yaml"), "--out", str(run)]
    if ranks > 1:
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)] + command
    log = open(folder / f"{run.name}.log", "a")
    return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def rank_ids(job):
    """Process ids by rank."""
    if ranks == 1:
        return [job.pid]
    found = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == job.pid:
                variables = (process / "environ").read_bytes().split(b"\0")
                rank = next(v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK="))
                found[int(rank.split(b"=")[1])] = int(process.name)
        except (OSError, StopIteration):
            pass
    return [found[rank] for rank in sorted(found)]


def lines(run):
    try:
        texts = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for text in texts:
        try:
            records.append(json.loads(text))
        except ValueError:
            pass  # being written
    return records


def step_of(run):
    return max((line["step"] for line in lines(run) if line["kind"] == "step"), default=0)


def saved_step(run):
    try:
        return int((run / "checkpoints" / "latest").read_text().removeprefix("step-"))
    except FileNotFoundError:
        return 0


def result(run):
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
    files = {name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in ["weights.safetensors", "optimizer.safetensors"]}
    kept = [line for line in lines(run) if line["kind"] != "checkpoint"]
    return files, [{key: value for key, value in line.items() if key not in TIMES} for line in kept]


def is_saving(run):
    return any(name.endswith(".partial") for name in os.listdir(run / "checkpoints")) if (run / "checkpoints").exists() else False


def wait(job, condition, at_most):
    """Whether the condition came true while the job ran."""
    begin = time.monotonic()
    while not condition():
        if job.poll() is not None or time.monotonic() - begin > at_most:
            return False
        time.sleep(0.0005)
    return True


random.seed(seed)
folder = pathlib.Path(tempfile.mkdtemp(prefix="kills-"))
(folder / "run.yaml").write_text(CONFIG)
print(f"{kills} kills, {ranks} rank(s), seed {seed}, in {folder}", flush=True)

whole, killed = folder / "whole", folder / "killed"
job = start(whole)
if job.wait() != 0:
    sys.exit(f"the undisturbed run failed:\n{(folder / 'whole.log').read_text()}")
print(f"undisturbed: {step_of(whole)} steps", flush=True)

done, lost, in_saves = 0, [], 0
while done < kills:
    before = step_of(killed)
    job = start(killed)
    if not wait(job, lambda: saved_step(killed) > 0 and job.poll() is None and step_of(killed) not in (0, before), 120):
        sys.exit(f"the run ended before kill {done + 1}; its log is {folder / 'killed.log'}")
    time.sleep(random.uniform(0, 1.5))
    in_save = done % 2 == 0 and wait(job, lambda: is_saving(killed), 10)
    if in_save:
        time.sleep(random.uniform(0, 0.02))
    ids = rank_ids(job)
    if job.poll() is not None or len(ids) != ranks:
        sys.exit(f"the run ended before kill {done + 1}; its log is {folder / 'killed.log'}")
    victim = 0 if in_save and random.random() < 0.75 else random.randrange(ranks)
    os.kill(ids[victim], signal.SIGKILL)
    code = job.wait()
    partial = is_saving(killed)
    reached, saved = step_of(killed), saved_step(killed)
    done, in_saves = done + 1, in_saves + partial
    lost.append(reached - saved)
    print(
        f"kill {done}: rank {victim}{' while saving' if in_save else ''}, code {code}; at step {reached}, newest checkpoint {saved}:"
        f" {reached - saved} steps lost{'; a save is left half-done' if partial else ''}",
        flush=True,
    )

job = start(killed)
if job.wait() != 0:
    sys.exit(f"the run could not be finished; its log is {folder / 'killed.log'}")
expected, found = result(whole), result(killed)
print(
    f"{done} kills, {in_saves} of them left a save half-done; steps lost: {sum(lost)} in all, {max(lost)} at most,"
    f" {sum(lost) / len(lost):.1f} on average, with a checkpoint every 5 steps"
)
print(f"weights and optimizer equal: {expected[0] == found[0]}; all {len(expected[1])} lines of metrics equal: {expected[1] == found[1]}")
if expected != found:
    sys.exit(1)
shutil.rmtree(folder)
