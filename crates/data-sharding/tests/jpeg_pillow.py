"""Decodes the images named on standard input with Pillow, one path a line, as data sets' loaders do.

For each, beside it: PATH.pillow with "width height\n" and the RGB bytes, or "error: ..." where Pillow refuses.
"""

import sys

from PIL import Image

for line in sys.stdin:
    path = line.rstrip("\n")
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        result = f"{rgb.width} {rgb.height}\n".encode() + rgb.tobytes()
    except Exception as error:  # Whatever Pillow finds wrong is its answer.
        result = f"error: {error}\n".encode()
    with open(path + ".pillow", "wb") as file:
        file.write(result)
