"""For how long training stands still for a save, and how much slower the steps are beside which it is written.

usage, in a shell with launch/env.sh: python3 tests/campaigns/save_stall.py [ARCH [SAVES [THREADS]]]

Trains two images a step and saves every tenth step; reads everything from the run's own metrics.
"""
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

arch = sys.argv[1] if len(sys.argv) > 1 else "wrn-28-10"
saves = int(sys.argv[2]) if len(sys.argv) > 2 else 8
threads = sys.argv[3] if len(sys.argv) > 3 else str(len(os.sched_getaffinity(0)))
EVERY = 10
BATCH = 2

folder = pathlib.Path(tempfile.mkdtemp(prefix="save-stall-"))
(folder / "run.yaml").write_text(
    f"""model: {{arch: {arch}}}
data: {{kind: fashion-mnist, path: /usr/share/datasets/fashion-mnist, pad_to: 32, channels: 3, class_fraction: 0.02}}
train: {{epochs: 1, global_batch: {BATCH}, threads: {threads}}}
schedule: {{kind: constant, rate: 0.01}}
checkpoint: {{every_steps: {EVERY}}}
"""
)
command = ["wrn-dist", "train", "--config", str(folder / "run.yaml"), "--out", str(folder / "run")]
outcome = subprocess.run(command + ["--stop-after", f"step:{saves * EVERY + EVERY // 2}"], capture_output=True, text=True)
if outcome.returncode != 75:
    sys.exit(f"it ended with {outcome.returncode}:\n{outcome.stderr}")
lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
records = [line for line in lines if line["kind"] == "checkpoint" and line["step"] % EVERY == 0]
steps = {line["step"]: line["seconds"]["step"] for line in lines if line["kind"] == "step"}

for record in records:
    print(f"after step {record['step']}: stall {1e3 * record['stall_seconds']:.1f} ms, written in {record['write_seconds']:.2f} s")
stalls = [record["stall_seconds"] for record in records]
stall = statistics.median(stalls)
# The first step after a save runs beside it, the last ones before the next one do not.
beside = statistics.median(steps[record["step"] + 1] for record in records)
alone = statistics.median(steps[record["step"] - back] for record in records[1:] for back in range(3))
write = statistics.median(record["write_seconds"] for record in records)
slower = max(0.0, 1 - alone / beside) * write
print(
    f"{arch}, {records[0]['bytes'] / 1e6:.0f} MB, {threads} thread(s), {len(records)} saves: stall {1e3 * stall:.0f} ms (median),"
    f" {1e3 * max(stalls):.0f} ms at most, {100 * stall / 60:.2f} % at one save a minute; written in {write:.2f} s"
)
print(
    f"a step of {BATCH} images takes {1e3 * beside:.0f} ms beside a save and {1e3 * alone:.0f} ms otherwise;"
    f" with that, a save costs about {1e3 * (stall + slower):.0f} ms, {100 * (stall + slower) / 60:.2f} % at one a minute"
)
shutil.rmtree(folder)
