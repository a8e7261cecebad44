"""Networks written from their papers, and those of torchvision and timm, run in PyTorch (fp32 or, with --double, fp64;
contiguous).

Reads `arguments.txt` (see `main`) and `images.safetensors` of each folder given, and loads `weights.safetensors`,
strictly, or with --own-weights writes it. Writes `answers.safetensors`: logits, loss, the gradient of each parameter
and, with --training, the running statistics after this one step. Shares no code with the networks that they are
compared with.
"""

import argparse
import pathlib
import sys
from collections import OrderedDict

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class SqueezeExcite(nn.Module):
    """Hu et al. 2017, section 3: channels scaled by sigmoid(fc2(relu(fc1(mean)))), 1/16 of the channels between, in
    multiples of 8 and at least 8."""

    def __init__(self, channels):
        super().__init__()
        between = max(8, int(channels / 16 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, between, 1)
        self.fc2 = nn.Conv2d(between, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Preactivated(nn.Module):
    """BN-ReLU-conv, repeated, and a shortcut. `convs` holds kernel and channels of each convolution."""

    def __init__(self, inputs, convs, stride, project, raw_shortcut, squeeze):
        super().__init__()
        self.count = len(convs)
        channels = inputs
        for i, (kernel, outputs) in enumerate(convs):
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels))
            step = stride if i == 0 else 1
            self.add_module(f"conv{i}", nn.Conv2d(channels, outputs, kernel, step, kernel // 2, bias=False))
            channels = outputs
        self.convdim = nn.Conv2d(inputs, channels, 1, stride, 0, bias=False) if project else None
        self.raw_shortcut = raw_shortcut
        self.se = SqueezeExcite(channels) if squeeze else nn.Identity()

    def forward(self, x):
        activated = torch.relu(self.bn0(x))
        branch = self.conv0(activated)
        for i in range(1, self.count):
            branch = getattr(self, f"conv{i}")(torch.relu(getattr(self, f"bn{i}")(branch)))
        branch = self.se(branch)
        if self.convdim is None:
            return branch + x
        return branch + self.convdim(x if self.raw_shortcut else activated)


class PreactivatedNetwork(nn.Module):
    """conv1, three groups of blocks, BN-ReLU, average pool, classifier."""

    def __init__(self, block, blocks, classes, always_project, raw_shortcut, squeeze):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels = 16
        for group in range(3):
            convs = [(kernel, 16 * 2**group * times) for kernel, times in block]
            group_blocks = nn.Module()
            for i in range(blocks):
                project = channels != convs[-1][1] or (i == 0 and always_project)
                stride = 2 if group > 0 and i == 0 else 1
                member = Preactivated(channels, convs, stride, project, raw_shortcut, squeeze)
                group_blocks.add_module(f"block{i}", member)
                channels = convs[-1][1]
            self.add_module(f"group{group}", group_blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.conv0(x)
        for group in (self.group0, self.group1, self.group2):
            for block in group.children():
                x = block(x)
        x = torch.relu(self.bn(x))
        return self.fc(nn.functional.avg_pool2d(x, x.shape[-1]).flatten(1))


class Original(nn.Module):
    """He et al. 2015: conv-BN-ReLU-conv-BN, a shortcut without parameters, ReLU."""

    def __init__(self, inputs, outputs, stride, squeeze):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.se = SqueezeExcite(outputs) if squeeze else nn.Identity()
        self.stride = stride

    def forward(self, x):
        branch = self.se(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        missing = branch.shape[1] - x.shape[1]
        if missing:
            zeros = shortcut.new_zeros(len(x), missing, *shortcut.shape[2:])
            shortcut = torch.cat([shortcut, zeros], 1)
        return torch.relu(branch + shortcut)


class Aggregated(nn.Module):
    """Xie et al. 2016, figure 3(c): 1x1, 3x3 in `cardinality` groups, 1x1; a projection where shapes differ."""

    def __init__(self, inputs, inner, outputs, stride, cardinality, squeeze):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.se = SqueezeExcite(outputs) if squeeze else nn.Identity()
        projection = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.downsample = nn.Sequential(*projection) if inputs != outputs else nn.Identity()

    def forward(self, x):
        branch = torch.relu(self.bn1(self.conv1(x)))
        branch = torch.relu(self.bn2(self.conv2(branch)))
        return torch.relu(self.se(self.bn3(self.conv3(branch))) + self.downsample(x))


class OriginalNetwork(nn.Module):
    """conv1-BN-ReLU, three groups of blocks with batch norm after the convolutions, average pool, classifier."""

    def __init__(self, stem, blocks, make_block, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for group in range(3):
            members = []
            for i in range(blocks):
                member, channels = make_block(channels, group, 2 if group > 0 and i == 0 else 1)
                members.append(member)
            self.add_module(f"layer{group + 1}", nn.Sequential(*members))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    """Huang et al. 2016: BN-ReLU-conv1x1 to 4k channels, BN-ReLU-conv3x3 to k, appended to the input."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x):
        inner = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(inner)))], 1)


class DenseNetwork(nn.Module):
    """DenseNet-BC for small images: 2k channels, three groups of (depth - 4) / 6 layers, each transition halves channels
    and size."""

    def __init__(self, depth, growth, classes):
        super().__init__()
        channels = 2 * growth
        parts = [("conv0", nn.Conv2d(3, channels, 3, 1, 1, bias=False))]
        for group in range(1, 4):
            layers = []
            for i in range((depth - 4) // 6):
                layers.append((f"denselayer{i + 1}", DenseLayer(channels, growth)))
                channels += growth
            parts.append((f"denseblock{group}", nn.Sequential(OrderedDict(layers))))
            if group < 3:
                transition = [
                    ("norm", nn.BatchNorm2d(channels)),
                    ("relu", nn.ReLU()),
                    ("conv", nn.Conv2d(channels, channels // 2, 1, bias=False)),
                    ("pool", nn.AvgPool2d(2)),
                ]
                parts.append((f"transition{group}", nn.Sequential(OrderedDict(transition))))
                channels //= 2
        parts.append(("norm4", nn.BatchNorm2d(channels)))
        self.features = nn.Sequential(OrderedDict(parts))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


def library_name(architecture):
    """What torchvision and timm call a network: wrn-50-2-bottleneck is wide_resnet50_2, se-resnet-50 seresnet50."""
    family = "".join(part for part in architecture.split("-") if part.isalpha() and part != "bottleneck")
    numbers = "_".join(part for part in architecture.split("-") if not part.isalpha())
    return family.replace("wrn", "wide_resnet") + numbers


def torchvision_network(architecture, classes):
    """A network of torchvision, or its basic blocks with more channels."""
    from torchvision import models
    from torchvision.models import resnet

    if not architecture.endswith("-imagenet"):
        return getattr(models, library_name(architecture))(weights=None, num_classes=classes)
    _, depth, width, _ = architecture.split("-")
    width = float(width)

    class Wide(resnet.ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            return super()._make_layer(block, round(planes * width), blocks, stride, dilate)

    network = Wide(resnet.BasicBlock, {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3]}[depth])
    network.fc = nn.Linear(round(512 * width), classes)
    return network


def small_network(args):
    """One of the networks above."""
    family, *rest = args.architecture.removeprefix("se-").split("-")
    squeeze = args.architecture.startswith("se-")
    if family == "densenet":
        return DenseNetwork(int(rest[1]), int(rest[2]), args.classes)
    if family == "resnet":

        def original(inputs, group, stride):
            outputs = 16 * 2**group
            return Original(inputs, outputs, stride, squeeze), outputs

        return OriginalNetwork(16, (int(rest[0]) - 2) // 6, original, args.classes)
    if family == "resnext":
        cardinality, width = map(int, rest[1].removesuffix("d").split("x"))

        def aggregated(inputs, group, stride):
            inner, outputs = cardinality * width * 2**group, 256 * 2**group
            return Aggregated(inputs, inner, outputs, stride, cardinality, squeeze), outputs

        return OriginalNetwork(64, (int(rest[0]) - 2) // 9, aggregated, args.classes)
    if family == "preact":
        depth = int(rest[1])
        if depth <= 110:
            block, blocks = [(3, 1), (3, 1)], (depth - 2) // 6
        else:
            block, blocks = [(1, 1), (3, 1), (1, 4)], (depth - 2) // 9
    else:
        depth, width = map(int, rest[:2])
        kernels = [int(digit) for digit in rest[2][1:]] if rest[2:] else [3, 3]
        block = [(kernel, width) for kernel in kernels]
        blocks = (depth - 4) // (3 * len(kernels) if len(set(kernels)) == 1 else 6)
    return PreactivatedNetwork(block, blocks, args.classes, args.always_project, args.raw_shortcut, squeeze)


def timm_network(architecture, classes):
    import timm

    return timm.create_model(library_name(architecture), num_classes=classes)


def make_network(args):
    if args.source == "torchvision":
        return torchvision_network(args.architecture, args.classes)
    if args.source == "timm":
        return timm_network(args.architecture, args.classes)
    return small_network(args)


def randomise(network):
    """PyTorch's own initial weights, with scales, shifts and running statistics that differ from channel to channel."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.7, 1.3),
            ]:
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)


def answer(folder, args):
    torch.manual_seed(0)
    network = make_network(args)
    weights = folder / "weights.safetensors"
    if args.own_weights:
        randomise(network)
        save_file(network.state_dict(), weights)
    else:
        network.load_state_dict(load_file(weights), strict=True)
    images = load_file(folder / "images.safetensors")["images"]
    network.train(args.training)
    if args.double:
        network, images = network.double(), images.double()

    logits = network(images)
    labels = torch.arange(len(images)) * 2 + 1
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    answers = {"logits": logits.detach(), "loss": loss.detach()}
    answers |= {f"gradient.{name}": parameter.grad.contiguous() for name, parameter in network.named_parameters()}
    if args.training:
        answers |= {name: tensor for name, tensor in network.state_dict().items() if ".running_" in name}
    save_file(answers, folder / "answers.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("architecture")
    parser.add_argument("classes", type=int)
    parser.add_argument("source", choices=["description", "torchvision", "timm"])
    parser.add_argument("--raw-shortcut", action="store_true")
    parser.add_argument("--always-project", action="store_true")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--own-weights", action="store_true")
    for folder in map(pathlib.Path, sys.argv[1:]):
        answer(folder, parser.parse_args((folder / "arguments.txt").read_text().split()))


main()
