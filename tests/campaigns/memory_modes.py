"""Peak memory and time of a training step in each memory mode, beside PyTorch eager: WRN-28-10 batch 16 and WRN-40-4 batch 64.

usage, in a shell with launch/env.sh: python3 tests/campaigns/memory_modes.py PYTORCH_SCRIPT [ROUNDS [THREADS [DTYPE]]]

PYTORCH_SCRIPT takes `28 10 16 --channels-last --steps N --threads T [--bf16]` and prints `… median M ms, min M ms, …`. Every variant
is a process of its own; all run once a round, in turning order, so that the moods of the machine strike all alike. Memory is the
growth of the process (high-water mark of its resident memory) from when the libraries are loaded, with weights, gradients and
momentum; `kept` are the tensors that forward leaves for backward. Processor time, with one thread, tells more than the clock on a
busy machine. Prints medians over the rounds; ratios to plain are those of the same round.
"""
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

NETWORKS = [("wrn-28-10", 16), ("wrn-40-4", 64)]
MODES = ["plain", "recompute", "checkpoint"]
STEPS = "5"
MIB = 1 << 20

# Runs the script, and then prints by how many KiB the process grew since torch was loaded.
WATCHED = """
import runpy, sys, torch, torch.nn.functional
def kib(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
if THREADS == "1":  # processor time instead of the clock's
    import time
    time.perf_counter = time.process_time
runpy.run_path(sys.argv[0], run_name="__main__")
print("grew", kib("VmHWM") - before, "KiB")
"""


def run(command):
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{outcome.stderr}")
    return outcome.stdout


def ours(arch, batch, mode):
    command = ["wrn-dist", "bench", "model", arch, "--batch", str(batch), "--memory", mode, "--steps", STEPS, "--json"]
    row = json.loads(run(command + ["--threads", threads, "--dtype", dtype]))[0]
    return {
        "MiB": row["process_peak_bytes"] / MIB,
        "kept MiB": row["activation_bytes"] / MIB,
        "tensors MiB": row["peak_bytes"] / MIB,
        "ms": 1e3 * row["step_seconds"],
        "fastest ms": 1e3 * row["fastest_step_seconds"],
        "processor ms": 1e3 * row["cpu_seconds"],
    }


def pytorch(arch, batch):
    _, depth, width = arch.split("-")
    watched = WATCHED.replace("THREADS", repr(threads))
    command = [sys.executable, "-c", watched, str(script), depth, width, str(batch), "--channels-last", "--steps", STEPS]
    text = run(command + ["--threads", threads] + (["--bf16"] if dtype == "bf16" else []))
    median, fastest = re.search(r"median ([0-9.]+) ms, min ([0-9.]+) ms", text).groups()
    times = {"processor ms": float(median)} if threads == "1" else {"ms": float(median), "fastest ms": float(fastest)}
    return {"MiB": int(re.search(r"grew (\d+) KiB", text)[1]) / 1024} | times


script = pathlib.Path(sys.argv[1]).resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
threads = sys.argv[3] if len(sys.argv) > 3 else str(len(os.sched_getaffinity(0)))
dtype = sys.argv[4] if len(sys.argv) > 4 else "fp32"

for arch, batch in NETWORKS:
    variants = {mode: lambda mode=mode: ours(arch, batch, mode) for mode in MODES} | {"PyTorch eager": lambda: pytorch(arch, batch)}
    names = list(variants)
    results = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(variants[name]())
            print(f"round {turn + 1}: {arch}, {name}: " + ", ".join(f"{k} {v:.1f}" for k, v in results[name][-1].items()), flush=True)
    print(f"\n{arch}, {batch} images, {dtype}, {threads} thread(s), load average {os.getloadavg()[0]:.1f}; medians over {rounds} rounds")
    print(f"{'':<16}{'process MiB':>12}{'':>7}{'tensors MiB':>12}{'':>7}{'kept MiB':>10}{'':>7}{'step ms':>10}{'':>7}{'fastest ms':>12}{'':>7}{'processor ms':>14}")
    for name in names:

        def median(key):
            values = [result[key] for result in results[name] if key in result]
            return statistics.median(values) if values else None

        def ratio(key):
            pairs = [result[key] / plain[key] for result, plain in zip(results[name], results["plain"]) if key in result]
            return f"{statistics.median(pairs):.2f}x" if pairs else ""

        line = f"{name:<16}"
        for key, width in [("MiB", 12), ("tensors MiB", 12), ("kept MiB", 10), ("ms", 10), ("fastest ms", 12), ("processor ms", 14)]:
            value = median(key)
            line += (f"{value:>{width}.1f}" if value is not None else " " * width) + f"{ratio(key):>7}"
        print(line)
    print()
