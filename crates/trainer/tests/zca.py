"""Oracle of src/input/whitening.rs: pylearn2's GlobalContrastNormalization(scale=55.) and ZCA(), in numpy.

zca.py IMAGES COUNT OUTPUT: reads COUNT flattened images of bytes, writes the whitened images as little-endian doubles.
"""

import sys

import numpy as np

images, count, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
x = np.fromfile(images, np.uint8).reshape(count, -1).astype(np.float64)
# pylearn2/expr/preprocessing.py: global_contrast_normalize
x = x - x.mean(axis=1)[:, np.newaxis]
normalizers = np.sqrt((x**2).sum(axis=1)) / 55.0
normalizers[normalizers < 1e-8] = 1.0
x /= normalizers[:, np.newaxis]
# pylearn2/datasets/preprocessing.py: ZCA.fit and ZCA.apply
mean = x.mean(axis=0)
x -= mean
eigenvalues, eigenvectors = np.linalg.eigh(np.dot(x.T, x) / x.shape[0] + 0.1 * np.identity(x.shape[1]))
matrix = np.dot(eigenvectors * np.sqrt(1.0 / eigenvalues), eigenvectors.T)
np.dot(x, matrix).astype("<f8").tofile(output)
