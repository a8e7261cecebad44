"""`wrn-dist bench allreduce` beside a plain C loop of MPI_Allreduce and gloo, from 4 KB to 64 MB.

usage, in a shell with launch/env.sh: python3 tests/campaigns/all_reduce.py [RANKS] [ROUNDS]

All variants run once a round, in turning order. Prints the medians over the rounds of each run's median, in microseconds.
"""
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
RANKS = sys.argv[1] if sys.argv[1:] else "2"
ROUNDS = int(sys.argv[2]) if sys.argv[2:] else 5
ITERATIONS = 20
SIZES = [4096 * 4**power for power in range(8)]

MPIRUN = ["mpirun", "-np", RANKS, "--bind-to", "none", "--oversubscribe"]
OURS = [*MPIRUN, "wrn-dist", "bench", "allreduce", "--json", "--iterations", str(ITERATIONS)]

GLOO = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
for bytes in %s:
    values = torch.zeros(bytes // 4)
    times = []
    for i in range(3 + %d):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - begin)
    if dist.get_rank() == 0:
        print(bytes, 1e6 * sorted(times[3:])[len(times[3:]) // 2], flush=True)
dist.destroy_process_group()
""" % (SIZES, ITERATIONS)


def output(command, cwd=None):
    # gloo's processes sometimes abort one another while they part; what was printed before counts.
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True).stdout


def ours(*more):
    def measure(_):
        bench = json.loads(re.search(r"\{.*\}", output([*OURS, *more]))[0])
        assert all(row["wrong"] == 0 for row in bench["rows"])
        return {row["bytes"]: 1e6 * row["median_seconds"] for row in bench["rows"]}

    return measure


def lines(command, cwd):
    return {int(size): float(time) for size, time in re.findall(r"^(\d+) ([0-9.]+)$", output(command, cwd), re.M)}


def c_loop(folder):
    return lines([*MPIRUN, "./all_reduce", str(SIZES[0]), str(SIZES[-1]), str(ITERATIONS)], folder)


def gloo(folder):
    return lines(["torchrun", "--standalone", "--nproc-per-node", RANKS, "gloo.py"], folder)


VARIANTS = {
    "C loop": c_loop,
    "mpi": ours("--reduce", "mpi"),
    "ordered": ours("--reduce", "ordered"),
    "ordered, bf16": ours("--reduce", "ordered", "--compression", "bf16"),
    "gloo": gloo,
}

with tempfile.TemporaryDirectory() as folder:
    subprocess.run(["mpicc", "-O2", "-o", f"{folder}/all_reduce", HERE / "all_reduce.c"], check=True)
    pathlib.Path(folder, "gloo.py").write_text(GLOO)
    results = {name: [] for name in VARIANTS}
    for turn in range(ROUNDS):
        names = list(VARIANTS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(VARIANTS[name](folder))

print(f"{RANKS} ranks, medians of {ROUNDS} runs in microseconds")
print(f"{'bytes':>12}" + "".join(f"{name:>16}" for name in VARIANTS) + f"{'mpi / C loop':>16}")
for size in SIZES:
    medians = {name: statistics.median([run[size] for run in runs if size in run] or [float("nan")]) for name, runs in results.items()}
    print(f"{size:>12}" + "".join(f"{time:>16.1f}" for time in medians.values()) + f"{medians['mpi'] / medians['C loop']:>16.2f}")
