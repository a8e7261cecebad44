"""Compares the gradient that one step of wrn-dist left in a checkpoint with PyTorch's.

usage: gradient.py micro-batches|whole-batch|synchronized-norm DATA CHECKPOINT

With synchronized-norm, batch norm is over the whole batch, everything is computed in double precision here, and the running
statistics after the step are compared as well.

The step had rate 0, so the weights are the initial ones; with no decay its momentum is the averaged gradient.

Pixels are normalised with the same roundings and images and weights lie in channels_last order here, too: among millions of
activations some lie within a rounding of zero, and there a ReLU that falls to the other side changes a gradient by more
than the tolerance.
"""
import gzip
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

TOLERANCE = 1e-5  # relative, L2 of each parameter
MICRO_BATCH = 16

mode, data, checkpoint = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
torch.set_num_threads(1)

pixels = np.frombuffer(gzip.open(data / "train-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
labels = np.frombuffer(gzip.open(data / "train-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
images = np.pad(pixels.reshape(-1, 1, 28, 28), ((0, 0), (0, 0), (2, 2), (2, 2))).repeat(3, axis=1)
images = (torch.tensor(images).float() - torch.tensor(72.94)) * torch.tensor(1 / 90.02)
images = images.contiguous(memory_format=torch.channels_last)
labels = torch.tensor(labels.astype(np.int64))

weights = load_file(checkpoint / "weights.safetensors")
gradients = load_file(checkpoint / "optimizer.safetensors")
parameters = {name: weights[name].clone() for name in gradients}
if mode == "synchronized-norm":
    images = images.double()
    parameters = {name: parameter.double() for name, parameter in parameters.items()}
for name, parameter in parameters.items():
    if parameter.dim() == 4:
        parameters[name] = parameter.contiguous(memory_format=torch.channels_last)
    parameters[name].requires_grad_()
blocks = 1 + max(int(name.split("block")[1].split(".")[0]) for name in parameters if "block" in name)
running = {}


def norm(x, name):
    if mode == "whole-batch":  # running statistics as they begin
        zeros = torch.zeros(x.shape[1])
        return F.batch_norm(x, zeros, zeros + 1, parameters[name + ".weight"], parameters[name + ".bias"])
    mean, variance = running[name] = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return F.batch_norm(x, mean, variance, parameters[name + ".weight"], parameters[name + ".bias"], training=True)


def network(x):
    x = F.conv2d(x, parameters["conv0.weight"], padding=1)
    for group in range(3):
        for block in range(blocks):
            name = f"group{group}.block{block}"
            stride = 2 if group > 0 and block == 0 else 1
            o = F.relu(norm(x, name + ".bn0"))
            y = F.conv2d(o, parameters[name + ".conv0.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, name + ".bn1")), parameters[name + ".conv1.weight"], padding=1)
            projection = parameters.get(name + ".convdim.weight")
            x = y + (x if projection is None else F.conv2d(o, projection, stride=stride))
    x = F.relu(norm(x, "bn")).mean((2, 3))
    return F.linear(x, parameters["fc.weight"], parameters["fc.bias"])


step = MICRO_BATCH if mode == "micro-batches" else len(images)
portions = len(images) // step
for begin in range(0, len(images), step):
    loss = F.cross_entropy(network(images[begin : begin + step]), labels[begin : begin + step])
    (loss / portions).backward()

worst, where = 0.0, ""
pairs = {name: (ours, parameters[name].grad) for name, ours in gradients.items()}
if mode == "synchronized-norm":
    for name, (mean, variance) in running.items():
        pairs[name + ".running_mean"] = weights[name + ".running_mean"], mean
        pairs[name + ".running_var"] = weights[name + ".running_var"], variance
for name, (ours, theirs) in pairs.items():
    difference = ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item()
    if difference > worst:
        worst, where = difference, name
print(f"{len(pairs)} tensors, largest relative difference {worst:.2e} ({where})")
sys.exit(worst > TOLERANCE)
