"""Oracle of src/augment/parity.rs: torchvision's operations on Pillow images at given parameters.

Reads jobs from standard input, one JSON object a line, and writes the resulting RGB bytes one after another to the
file named as argument:
  {"image": FILE of RGB bytes or JPEG, "width": W, "height": H, "operation": NAME, "magnitude": M}   as _apply_op of autoaugment.py
  {..., "operation": "crop", "box": [top, left, height, width], "size": S, "filter": "bilinear"}
  {..., "operation": "center", "shorter": R, "size": S, "filter": "bilinear"}
and to standard output the table of magnitudes of both policies when a job's operation is "tables".
"""

import json
import sys

from PIL import Image
import torchvision.transforms as T
import torchvision.transforms.functional as F
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

FILTERS = {"bilinear": T.InterpolationMode.BILINEAR, "bicubic": T.InterpolationMode.BICUBIC}


def tables():
    spaces = {
        "wide": TrivialAugmentWide()._augmentation_space(31),
        "narrow": RandAugment()._augmentation_space(31, (224, 224)),
    }
    return {
        policy: [[name, magnitudes.tolist() if magnitudes.ndim else [0.0] * 31, signed] for name, (magnitudes, signed) in space.items()]
        for policy, space in spaces.items()
    }


def result(image, job):
    if job["operation"] == "crop":
        top, left, height, width = job["box"]
        size = [job["size"], job["size"]]
        return F.resized_crop(image, top, left, height, width, size, FILTERS[job["filter"]], antialias=True)
    if job["operation"] == "center":
        scaled = T.Resize(job["shorter"], FILTERS[job["filter"]], antialias=True)(image)
        return T.CenterCrop(job["size"])(scaled)
    return _apply_op(image, job["operation"], job["magnitude"], T.InterpolationMode.NEAREST, None)


def main():
    with open(sys.argv[1], "wb") as output:
        for line in sys.stdin:
            job = json.loads(line)
            if job["operation"] == "tables":
                print(json.dumps(tables()))
                continue
            if job["image"].lower().endswith((".jpg", ".jpeg")):
                image = Image.open(job["image"]).convert("RGB")
            else:
                with open(job["image"], "rb") as file:
                    image = Image.frombytes("RGB", (job["width"], job["height"]), file.read())
            output.write(result(image, job).tobytes())


main()
