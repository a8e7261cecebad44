"""Images a second of our decoder pool, torchvision's DataLoader and NVIDIA DALI on the CPU, measured in turn.

All deliver normalised float32 batches of random resized crops (224 pixels, bilinear, flipped with probability one half).
Prints, for each number of threads, the median rate of each, the processor time an image, and the ratios. The rate needs
an otherwise idle machine; the processor time, of all processes and threads together, needs it less.

  data_against_peers.py WRN_DIST IMAGES SHARDS [--threads 1 2] [--rounds 5]

WRN_DIST is the binary, IMAGES a folder of class folders with JPEGs, SHARDS what `wrn-dist data prepare imagefolder` made
of them (its `train`). Peers that this Python lacks are left out, and that is said.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time

BATCH = 64
BATCHES = 30
WARM_UP = 5


def processor_seconds():
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def torchvision_batches(images, threads):
    import torch
    import torchvision.transforms as T
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    normalize = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), normalize])
    data = ImageFolder(images, transform)
    data = torch.utils.data.ConcatDataset([data] * (1 + (2 * BATCHES + WARM_UP) * BATCH // len(data)))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=threads, drop_last=True)
    return lambda: iter(loader)


def dali_batches(images, threads):
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=3)
    def pipeline():
        files, labels = fn.readers.file(file_root=images, random_shuffle=True)
        crops = fn.decoders.image_random_crop(
            files, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        crops = fn.resize(crops, resize_x=224, resize_y=224, interp_type=types.INTERP_LINEAR, antialias=True)
        mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
        flip = fn.random.coin_flip()
        return fn.crop_mirror_normalize(crops, dtype=types.FLOAT, output_layout="CHW", mirror=flip, mean=mean, std=std), labels

    built = pipeline()
    built.build()
    return lambda: iter(built.run, None)


def measure_peer(kind, images, threads):
    """In a process of its own: rate and processor milliseconds an image."""
    start = {"torchvision": torchvision_batches, "dali": dali_batches}[kind](images, threads)
    before = processor_seconds()
    batches = start()
    for _ in range(WARM_UP):
        next(batches)
    begin, processor = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
        next(batches)
    elapsed, own = time.perf_counter() - begin, time.process_time() - processor
    if kind == "torchvision":
        # The time of its workers is known when they have ended, and includes what they decoded before and ahead.
        del batches
        own = (processor_seconds() - before) * BATCHES / (WARM_UP + BATCHES + 2 * threads)
    print(json.dumps({"rate": BATCHES * BATCH / elapsed, "milliseconds": 1e3 * own / (BATCHES * BATCH)}))


def measure(kind, arguments, threads):
    if kind.startswith("wrn-dist"):
        source = arguments.shards if kind == "wrn-dist" else arguments.images
        command = [arguments.wrn_dist, "bench", "data", source, "--threads", str(threads), "--json"]
        command += ["--batch", str(BATCH), "--batches", str(BATCHES), "--rounds", "1"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return found["images_per_second"], found["processor_milliseconds"], found
    command = [sys.executable, __file__, "--peer", kind, arguments.images, str(threads)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
    return found["rate"], found["milliseconds"], found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wrn_dist")
    parser.add_argument("images")
    parser.add_argument("shards")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    kinds = ["wrn-dist", "wrn-dist without seek index"]
    for kind, module in (("torchvision", "torchvision"), ("dali", "nvidia.dali")):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found:
            kinds.append(kind)
        else:
            print(f"left out: this Python has no {module}", file=sys.stderr)
    for threads in arguments.threads:
        results = {kind: [] for kind in kinds}
        for turn in range(arguments.rounds):
            for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
                results[kind].append(measure(kind, arguments, threads))
        ours = statistics.median(rate for rate, _, _ in results["wrn-dist"])
        ours_processor = statistics.median(milliseconds for _, milliseconds, _ in results["wrn-dist"])
        print(f"{threads} thread(s), median of {arguments.rounds} rounds of {BATCHES * BATCH} images")
        for kind, found in results.items():
            rate = statistics.median(rate for rate, _, _ in found)
            processor = statistics.median(milliseconds for _, milliseconds, _ in found)
            print(
                f"  {kind:<30}{rate:>8.0f} images/s{processor:>8.3f} ms of processor time an image; "
                f"wrn-dist {ours / rate:.2f}x the rate, {processor / ours_processor:.2f}x less processor time"
            )
        stages = results["wrn-dist"][-1][2]
        print(f"  decoder thread, ms an image: {stages['decoder_milliseconds']}; limit: {stages['limit']}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        measure_peer(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
