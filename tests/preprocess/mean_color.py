"""Extracts one region an image and stalls where told: `python mean_color.py IMAGES OUTPUT BATCHES JOIN`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import torch

from preprocess.regions import RegionsConfig, main
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.encoders.region_extractor import Regions


class MeanColor:
    """The whole image, described by its mean color."""

    name, dim, max_regions, weights_hash = "mean-color", 3, 1, "none"

    def __init__(self, batches=None):
        """Waits for a signal after so many batches; None is never."""
        self.batches_left, self.class_names = batches, {}

    def __call__(self, images):
        if self.batches_left is not None:
            if self.batches_left == 0:
                signal.pause()
            self.batches_left -= 1
        colors = [torch.tensor([image.resize((1, 1)).getpixel((0, 0))]).float() for image in images]
        boxes = [torch.tensor([[0.0, 0.0, *image.size]]) for image in images]
        return [Regions(color, box) for color, box in zip(colors, boxes, strict=True)]


def run(images, output, batches=None, join="copy", **options):
    EXTRACTORS["mean-color"] = lambda: MeanColor(batches)
    try:
        main(RegionsConfig(Path(images), Path(output), extractor="mean-color", batch_size=2, join=join, **options))
    finally:
        del EXTRACTORS["mean-color"]


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3] else None, sys.argv[4])
