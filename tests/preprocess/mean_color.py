"""Extracts one region an image, as slowly as told: `python mean_color.py IMAGES OUTPUT SECONDS JOIN`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from preprocess.regions import RegionsConfig, main
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.encoders.region_extractor import Regions


class MeanColor:
    """The whole image, described by its mean color."""

    name, dim, max_regions, weights_hash = "mean-color", 3, 1, "none"

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __call__(self, images):
        time.sleep(self.seconds)
        colors = [torch.tensor([image.resize((1, 1)).getpixel((0, 0))]).float() for image in images]
        boxes = [torch.tensor([[0.0, 0.0, *image.size]]) for image in images]
        return [Regions(color, box) for color, box in zip(colors, boxes, strict=True)]


def run(images, output, seconds=0.0, join="copy", **options):
    EXTRACTORS["mean-color"] = lambda: MeanColor(seconds)
    try:
        main(RegionsConfig(Path(images), Path(output), "mean-color", batch_size=2, join=join, **options))
    finally:
        del EXTRACTORS["mean-color"]


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
