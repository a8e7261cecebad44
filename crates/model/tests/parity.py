"""A Wide ResNet written from the paper, run in PyTorch (fp32, contiguous) on the weights and images of each folder given.

Reads `arguments.txt` (see `main`), `tensors.txt` (a line for each tensor: name and shape) and `NAME.f32`; writes `answer.NAME.f32`: logits, loss, the gradient of
each parameter, and with --training the mean and unbiased variance of what each batch norm reads. Shares no code with
the network that it is compared with.
"""

import argparse
import math
import pathlib
import struct
import sys

import torch
from torch import nn


class Block(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv and a shortcut."""

    def __init__(self, inputs, outputs, stride, project, raw_shortcut):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(inputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convdim = nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False) if project else None
        self.raw_shortcut = raw_shortcut

    def forward(self, x):
        activated = torch.relu(self.bn0(x))
        branch = self.conv1(torch.relu(self.bn1(self.conv0(activated))))
        if self.convdim is None:
            return branch + x
        return branch + self.convdim(x if self.raw_shortcut else activated)


class WideResNet(nn.Module):
    """conv1, three groups of (depth - 4) / 6 blocks, BN-ReLU, average pool, classifier."""

    def __init__(self, depth, width, classes, always_project, raw_shortcut):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels = 16
        for group in range(3):
            outputs = 16 * 2**group * width
            blocks = nn.Module()
            for i in range((depth - 4) // 6):
                project = channels != outputs or (i == 0 and always_project)
                stride = 2 if group > 0 and i == 0 else 1
                blocks.add_module(f"block{i}", Block(channels, outputs, stride, project, raw_shortcut))
                channels = outputs
            self.add_module(f"group{group}", blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.conv0(x)
        for group in (self.group0, self.group1, self.group2):
            for block in group.children():
                x = block(x)
        x = torch.relu(self.bn(x))
        return self.fc(nn.functional.avg_pool2d(x, x.shape[-1]).flatten(1))


def answer(folder, args):
    tensors = {}
    for line in (folder / "tensors.txt").read_text().splitlines():
        name, *shape = line.split()
        shape = [int(side) for side in shape]
        data = bytearray((folder / f"{name}.f32").read_bytes())
        tensors[name] = torch.frombuffer(data, dtype=torch.float32, count=math.prod(shape)).reshape(shape)
    images = tensors.pop("images")

    _, depth, width = args.architecture.split("-")
    network = WideResNet(int(depth), int(width), args.classes, args.always_project, args.raw_shortcut)
    expected = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    if expected != set(tensors):
        sys.exit(f"other tensors than PyTorch's: {sorted(expected ^ set(tensors))}")
    network.load_state_dict(tensors, strict=False)
    network.train(args.training)

    answers = {}

    def record(name):
        def hook(_, inputs):
            read = inputs[0].detach().double().transpose(0, 1).flatten(1)
            answers[f"mean.{name}"] = read.mean(1)
            answers[f"variance.{name}"] = read.var(1, unbiased=True)

        return hook

    if args.training:
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(record(name))

    logits = network(images)
    labels = torch.arange(len(images)) * 2 + 1
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    answers |= {"logits": logits, "loss": loss}
    answers |= {f"gradient.{name}": parameter.grad for name, parameter in network.named_parameters()}
    for name, tensor in answers.items():
        values = tensor.detach().float().flatten().tolist()
        (folder / f"answer.{name}.f32").write_bytes(struct.pack(f"<{len(values)}f", *values))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("architecture")
    parser.add_argument("classes", type=int)
    parser.add_argument("--raw-shortcut", action="store_true")
    parser.add_argument("--always-project", action="store_true")
    parser.add_argument("--training", action="store_true")
    for folder in map(pathlib.Path, sys.argv[1:]):
        answer(folder, parser.parse_args((folder / "arguments.txt").read_text().split()))


main()
