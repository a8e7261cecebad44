"""Compares the averaged weights of wrn-dist with those of torch.optim.swa_utils, step by step.

usage: averaging.py CHECKPOINTS DECAY EVERY_STEPS WARMUP_STEPS

CHECKPOINTS has a checkpoint of every step from the first. As in torchvision's references, a model with batch norm is
averaged with its buffers, and after an update within the warm-up the next one copies again.
"""
import pathlib
import sys

import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

TOLERANCE = 1e-6  # relative to the largest value of each tensor

folder, decay, every_steps, warmup_steps = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
checkpoints = sorted(pathlib.Path(folder).glob("step-*"))


class Weights(torch.nn.Module):
    """Tensors by name: statistics as buffers, everything else as parameters."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            place = name.replace(".", "/")
            if "running" in name:
                self.register_buffer(place, tensor.clone())
            else:
                self.register_parameter(place, torch.nn.Parameter(tensor.clone(), requires_grad=False))


worst, compared = 0.0, 0
average = None
for step, checkpoint in enumerate(checkpoints, 1):
    model = Weights(load_file(checkpoint / "weights.safetensors"))
    if average is None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    if step % every_steps == 0:
        average.update_parameters(model)
        if step <= warmup_steps:
            average.n_averaged.fill_(0)
    elif step < every_steps:
        continue  # initial weights, which no checkpoint holds
    theirs = {name.removeprefix("module.").replace("/", "."): tensor for name, tensor in average.state_dict().items()}
    ours = load_file(checkpoint / "averaged.safetensors")
    assert theirs.keys() - {"n_averaged"} == ours.keys()
    for name, tensor in ours.items():
        difference = (tensor - theirs[name]).abs().max() / theirs[name].abs().max().clamp_min(1e-12)
        worst, compared = max(worst, difference.item()), compared + 1
print(f"{compared} tensors of {len(checkpoints)} steps, largest relative difference {worst:.2e}")
sys.exit(worst > TOLERANCE or compared == 0)
