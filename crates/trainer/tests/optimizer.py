"""Oracle of src/optimizer: torch.optim's SGD and AdamW, clip_grad_norm_, and LARS and LAMB as their papers have them.

optimizer.py FOLDER: reads case.json (configuration, rate, segments), parameters.f32 and gradients.f32 (one row a step);
computes in fp64 and writes expected.f64, the parameters after the last step, and norms.f64, the norm before each clip.
"""

import json
import pathlib
import sys

import numpy as np
import torch

folder = pathlib.Path(sys.argv[1])
case = json.loads((folder / "case.json").read_text())
config, rate, segments = case["config"], case["rate"], case["segments"]
flat = np.fromfile(folder / "parameters.f32", "<f4").astype(np.float64)
gradients = np.fromfile(folder / "gradients.f32", "<f4").astype(np.float64).reshape(-1, len(flat))

parameters, adapts, decays = [], [], []
for segment in segments:
    values = flat[segment["offset"] : segment["offset"] + segment["len"]]
    parameters.append(torch.nn.Parameter(torch.tensor(values)))
    adapts.append(segment["weight"])
    decays.append(config["weight_decay"] if segment["weight"] or config["decay_norm_and_bias"] else 0.0)


class Lars(torch.optim.Optimizer):
    """You, Gitman & Ginsburg 2017, algorithm 1."""

    def step(self):
        for group in self.param_groups:
            for p, adapts in zip(group["params"], group["adapts"]):
                local = 1.0
                if adapts and p.norm() > 0 and p.grad.norm() > 0:
                    local = config["trust_coefficient"] * p.norm() / (p.grad.norm() + group["weight_decay"] * p.norm())
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(config["momentum"]).add_(group["lr"] * local * (p.grad + group["weight_decay"] * p))
                p.sub_(v)


class Lamb(torch.optim.Optimizer):
    """You et al. 2019, algorithm 2."""

    def step(self):
        beta1, beta2 = config["betas"]
        for group in self.param_groups:
            for p, adapts in zip(group["params"], group["adapts"]):
                s = self.state[p]
                s["t"] = s.get("t", 0) + 1
                s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * p.grad
                s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * p.grad**2
                m, v = s["m"] / (1 - beta1 ** s["t"]), s["v"] / (1 - beta2 ** s["t"])
                u = m / (v.sqrt() + config["epsilon"]) + group["weight_decay"] * p
                ratio = p.norm() / u.norm() if adapts and p.norm() > 0 and u.norm() > 0 else 1.0
                p.sub_(group["lr"] * ratio * u)


groups = [
    {"params": [p], "adapts": [a], "weight_decay": d, "lr": rate} for p, a, d in zip(parameters, adapts, decays)
]
if config["kind"] == "sgd":
    optimizer = torch.optim.SGD(
        groups, lr=rate, momentum=config["momentum"], dampening=config["dampening"], nesterov=config["nesterov"]
    )
elif config["kind"] == "adamw":
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=config["betas"], eps=config["epsilon"])
else:
    optimizer = {"lars": Lars, "lamb": Lamb}[config["kind"]](groups, {})

norms = []
for row in gradients:
    for p, segment in zip(parameters, segments):
        p.grad = torch.tensor(row[segment["offset"] : segment["offset"] + segment["len"]])
    if "clip_norm" in config:
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, config["clip_norm"]).item())
    with torch.no_grad():
        optimizer.step()

for p, segment in zip(parameters, segments):
    flat[segment["offset"] : segment["offset"] + segment["len"]] = p.detach().numpy()
flat.astype("<f8").tofile(folder / "expected.f64")
np.array(norms, "<f8").tofile(folder / "norms.f64")
