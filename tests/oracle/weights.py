"""Weights as other programs store them, for tests of `wrn-dist model import` and `export`.

    write NAME FILE [FORMAT]    random weights of NAME in that program's own names
    compare NAME FILE ORIGINAL  FILE, which was exported, loads strictly and holds what ORIGINAL does

NAME is `official:DEPTH-WIDTH` (the flat dictionary of the authors' code), `torchvision:MODEL` or `timm:MODEL`. FORMAT is
float16, bfloat16, float32 (as when absent) or float64.
"""

import sys

import torch
from safetensors.torch import load_file, save_file


def official(depth, width, classes=10):
    """Names and shapes as in resnet.py of szagoruyko/wide-residual-networks, folder pytorch."""
    tensors = {}

    def conv(name, inputs, outputs, kernel):
        tensors[name] = torch.randn(outputs, inputs, kernel, kernel)

    def norm(name, channels):
        tensors[f"{name}.weight"] = torch.rand(channels)
        tensors[f"{name}.bias"] = torch.randn(channels)
        tensors[f"{name}.running_mean"] = torch.randn(channels)
        tensors[f"{name}.running_var"] = torch.rand(channels) + 0.5

    conv("conv0", 3, 16, 3)
    channels = 16
    for group in range(3):
        outputs = 16 * 2**group * width
        for i in range((depth - 4) // 6):
            block = f"group{group}.block{i}"
            conv(f"{block}.conv0", channels, outputs, 3)
            conv(f"{block}.conv1", outputs, outputs, 3)
            norm(f"{block}.bn0", channels)
            norm(f"{block}.bn1", outputs)
            if channels != outputs:
                conv(f"{block}.convdim", channels, outputs, 1)
            channels = outputs
    norm("bn", channels)
    tensors["fc.weight"] = torch.randn(classes, channels)
    tensors["fc.bias"] = torch.randn(classes)
    return tensors


def library(program, model):
    """A network with running statistics that are not the initial ones."""
    if program == "torchvision":
        import torchvision

        network = getattr(torchvision.models, model)(weights=None)
    else:
        import timm

        network = timm.create_model(model)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return network


def write(name, path, number_format="float32"):
    torch.manual_seed(0)
    program, _, model = name.partition(":")
    tensors = official(*map(int, model.split("-"))) if program == "official" else library(program, model).state_dict()
    dtype = getattr(torch, number_format)
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, path)


def compare(name, path, original):
    found, expected = load_file(path), load_file(original)
    assert set(found) == set(expected), sorted(set(found) ^ set(expected))
    for key, tensor in expected.items():
        # Everything but the counters of batches is what it was, but for the format of its numbers.
        if tensor.is_floating_point():
            assert found[key].shape == tensor.shape, key
            assert torch.equal(found[key], tensor.to(found[key].dtype)), key
        else:
            assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape, key
    program, _, model = name.partition(":")
    if program != "official":
        library(program, model).load_state_dict(found, strict=True)


{"write": write, "compare": compare}[sys.argv[1]](*sys.argv[2:])
