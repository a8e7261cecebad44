"""PowerSGD with error feedback in fp64, as its paper writes it (arXiv 1905.13727, algorithms 1 and 2).

usage: oracle.py FILE

FILE (safetensors) holds `gradients` [steps, ranks, rows, columns], this program's `means` [steps, rows, columns] for them
and the `q` [rank, columns] that it began with. Prints the largest relative difference between its means and these.
"""
import sys

import numpy as np
from safetensors.numpy import load_file

data = {name: values.astype(np.float64) for name, values in load_file(sys.argv[1]).items()}
q = data["q"].T
errors = np.zeros_like(data["gradients"][0])
worst = 0.0
for gradients, means in zip(data["gradients"], data["means"]):
    deltas = gradients + errors
    p, _ = np.linalg.qr(np.mean([delta @ q for delta in deltas], axis=0))
    q = np.mean([delta.T @ p for delta in deltas], axis=0)
    decompressed = p @ q.T
    errors = deltas - decompressed
    worst = max(worst, np.linalg.norm(decompressed - means) / np.linalg.norm(means))
print(f"{worst:.3e}")
