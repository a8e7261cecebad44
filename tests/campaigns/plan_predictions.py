"""Steps that `wrn-dist plan` foretells, beside those then measured: 1, 2 and 4 ranks of this host, and two hosts with a slow link.

usage, in a shell with launch/env.sh: python3 tests/campaigns/plan_predictions.py [ROUNDS [RATE]]

For each number of ranks, `bench allreduce` gives the latency and rate of the connection, and `bench step` the step without exchange
and the share of backward in it: what `plan --step-ms` is told. The step that it then foretells is compared with the step with
exchange of the same runs. Over two hosts (network namespaces, as root) plan is told RATE (1gbit) itself and 50 us. Prints medians.
"""
import json
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROUNDS = int(sys.argv[1]) if sys.argv[1:] else 5
RATE = sys.argv[2] if sys.argv[2:] else "1gbit"
CONFIG = ["--config", str(ROOT / "configs/demo/fashion-mnist.yaml")]
# Architecture, images a rank, steps of a run, further settings.
CASES = [
    ("wrn-16-1", 64, 20, []),
    ("wrn-16-4", 16, 6, []),
    ("wrn-16-4", 16, 6, ["comm.overlap=false"]),
]


def output(command):
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{outcome.stdout}\n{outcome.stderr}")
    return outcome.stdout


def settings(case, ranks):
    arch, images, _, more = case
    keys = [f"model.arch={arch}", f"train.global_batch={ranks * images}", f"train.micro_batch={images}", "train.threads=1", *more]
    return CONFIG + [argument for key in keys for argument in ("--set", key)]


def bench_step(launcher, case, ranks):
    found = output([*launcher, "bench", "step", "--json", "--steps", str(case[2]), *settings(case, ranks)])
    bench = json.loads(re.search(r"\{.*\}", found)[0])
    return bench["without_exchange"], bench["with_exchange"]["step"]


def link(launcher, ranks):
    """Microseconds and Gbit/s, such that small and large ordered sums last 2 latency + 2 (n-1)/n bytes / rate."""
    found = output([*launcher, "bench", "allreduce", "--json", "--iterations", "20", "--min-kib", "4", "--max-kib", str(16 << 10)])
    rows = json.loads(re.search(r"\{.*\}", found)[0])["rows"]
    small, large = rows[0], rows[-1]
    rate = 2 * (ranks - 1) / ranks * (large["bytes"] - small["bytes"]) / (large["median_seconds"] - small["median_seconds"])
    return 1e6 * small["median_seconds"] / 2, 8e-9 * rate


def foretold(case, ranks, ranks_a_host, without, links):
    share = without["backward"] / without["step"]
    command = ["wrn-dist", "plan", *settings(case, ranks), "--ranks", str(ranks), "--step-ms", str(1e3 * without["step"])]
    command += ["--backward-share", str(share), "--ranks-a-host", str(ranks_a_host), *links]
    return next(float(row[2]) for row in map(str.split, output(command).splitlines()) if len(row) == 5 and row[0] == str(ranks))


def mpirun(ranks):
    return ["mpirun", "-np", str(ranks), "--bind-to", "none", "--oversubscribe", "wrn-dist"]


def compare(name, launcher, case, ranks, ranks_a_host, links):
    pairs = []
    for _ in range(ROUNDS):
        without, measured = bench_step(launcher, case, ranks)
        pairs.append((foretold(case, ranks, ranks_a_host, without, links), 1e3 * measured, 1e3 * without["step"]))
    foretells, measures, without = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(foretells / measured for foretells, measured, _ in pairs)
    what = " ".join([case[0], *case[3]])
    print(f"{name:<22}{what:<30}{without:10.2f}{foretells:12.2f}{measures:12.2f}{100 * (ratio - 1):+10.1f} %", flush=True)


print(f"{'':<52}{'alone, ms':>10}{'plan, ms':>12}{'measured':>12}{'off by':>12}")
for ranks in (1, 2, 4):
    launcher = mpirun(ranks)
    latency, rate = link(launcher, ranks) if ranks > 1 else (1.0, 1.0)
    for case in CASES:
        within = ["--host-latency-us", str(latency), "--host-gbit", str(rate)]
        compare(f"{ranks} rank(s)", launcher, case, ranks, ranks, within)
two_hosts = [str(ROOT / "target/release/two-hosts"), "1", RATE]
number, unit = re.fullmatch(r"([0-9.]+)([mg])bit", RATE).groups()
between = ["--latency-us", "50", "--gbit", str(float(number) * {"m": 1e-3, "g": 1}[unit])]
for case in CASES:
    compare(f"two hosts, {RATE}", two_hosts, case, 2, 1, between)
