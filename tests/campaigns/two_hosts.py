"""Training steps over a slow link: two hosts (network namespaces) with one rank each, with overlap, without, and compressed.

usage, as root in a shell with launch/env.sh: python3 tests/campaigns/two_hosts.py [ROUNDS [RATE [ARCH IMAGES_A_RANK]]]

Runs `wrn-dist bench step` by `two-hosts` with the architecture (WRN-16-1, 64 images a rank, when absent) on the Fashion-MNIST
demonstration's data, all variants once a round, in turning order. Prints medians, and how much of the exchange overlap hides: the exchange lasts as long as the step
without overlap is longer than the step without exchange; at most backward's length of it can be hidden.
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
ARCH, IMAGES = sys.argv[3:5] if sys.argv[4:] else ("wrn-16-1", "64")

COMMAND = [str(ROOT / "target/release/two-hosts"), "1", RATE, "bench", "step", "--json", "--steps", "20"]
COMMAND += ["--config", str(ROOT / "configs/demo/fashion-mnist.yaml"), "--set", "train.threads=1", "--set", f"model.arch={ARCH}"]
COMMAND += ["--set", f"train.global_batch={2 * int(IMAGES)}", "--set", f"train.micro_batch={IMAGES}"]
SMALL_BUCKETS = ["--set", "comm.first_bucket_kib=32", "--set", "comm.bucket_kib=128"]
VARIANTS = {
    "overlap": SMALL_BUCKETS,
    "no overlap": [*SMALL_BUCKETS, "--set", "comm.overlap=false"],
    "overlap, bf16": [*SMALL_BUCKETS, "--set", "comm.compression=bf16"],
    "no overlap, bf16": [*SMALL_BUCKETS, "--set", "comm.overlap=false", "--set", "comm.compression=bf16"],
}


def measure(arguments):
    outcome = subprocess.run(COMMAND + arguments, capture_output=True, text=True)
    found = re.search(r"\{.*\}", outcome.stdout)
    if not found:
        sys.exit(f"{' '.join(COMMAND + arguments)} failed:\n{outcome.stdout}\n{outcome.stderr}")
    bench = json.loads(found[0])
    return bench["with_exchange"]["step"], bench["without_exchange"]["step"], bench["without_exchange"]["backward"]


results = {name: [] for name in VARIANTS}
for turn in range(ROUNDS):
    names = list(VARIANTS)
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        results[name].append(measure(VARIANTS[name]))

medians = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in results.items()}
print(f"{ARCH} on two hosts, one rank each, {RATE}, medians of {ROUNDS} runs in ms")
for name, (step, alone, _) in medians.items():
    print(f"{name:<20}step {1e3 * step:8.2f}   without exchange {1e3 * alone:8.2f}   exposed {100 * (step / alone - 1):6.1f} %")
for suffix in ("", ", bf16"):
    # Each variant against the step without exchange of its own runs, so that the moods of the machine cancel.
    exposed = {kind: medians[kind + suffix][0] - medians[kind + suffix][1] for kind in ("overlap", "no overlap")}
    could = min(exposed["no overlap"], medians["overlap" + suffix][2])
    hidden = exposed["no overlap"] - exposed["overlap"]
    print(f"overlap{suffix} hides {1e3 * hidden:.2f} of {1e3 * could:.2f} ms that backward could hide: {100 * hidden / could:.0f} %")
