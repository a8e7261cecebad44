"""Writes SVHN-like MAT files with scipy, and what scipy reads from them as records: label, planes R, G, B row by row."""
import sys

import numpy as np
from scipy.io import loadmat, savemat

folder, compress, dtype = sys.argv[1], sys.argv[2] == "true", sys.argv[3]
rng = np.random.default_rng(5)
for name, count in [("train", 11), ("extra", 7), ("test", 4)]:
    path = f"{folder}/{name}_32x32.mat"
    images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
    labels = rng.integers(1, 11, (count, 1)).astype(dtype)
    savemat(path, {"X": images, "y": labels}, do_compression=compress)
    read = loadmat(path)
    with open(f"{folder}/{name}.expected", "wb") as expected:
        for sample in range(count):
            expected.write(bytes([int(read["y"][sample, 0]) % 10]))
            expected.write(np.ascontiguousarray(read["X"][:, :, :, sample].transpose(2, 0, 1)).tobytes())
