"""`xmodal index`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # tyro reads the annotations
from typing import Any

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import load_model


@dataclass(frozen=True)
class BuildIndex:
    """Index images for sentences, or captions for images: a search scores few of them and is certain all the same."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    store: tyro.conf.Positional[Path]
    """Region store (.h5) with the images, or captions.jsonl to index captions."""
    output: Path | None = None
    """Folder of the index; by default STORE with the suffix .index."""
    split: str | None = None
    """Of a file of captions: only those of this split."""
    queries: Path | None = None
    """Captions file with sentences about the images, to measure the recall of inexact search by."""
    measured: int = 200
    """How many of these sentences to use, spread evenly."""
    bits: int = 8
    """Of the certificate: 8, or 4 for a small index that is only approximate."""
    cells: int = 0
    """Parts of the space by which inexact search looks images up instead of scanning all; a thousand for a million."""
    overwrite: bool = False
    """Replace an index that is there."""
    verify: bool = False
    """Build nothing: compare the files of the index that is there with their hashes."""


def build_index(config: BuildIndex) -> None:
    """Build an index and say what it takes."""
    from xmodal.data import RegionStore, load_captions
    from xmodal.search.index import Index

    output = config.output or config.store.with_suffix(".index")
    if config.verify:
        index = Index.open(output)
        index.verify(progress=sys.stderr.isatty())
        print(f"{output}: {len(index)} {index.manifest.indexed}, every file as it was written")
        return
    of_captions = config.store.suffix == ".jsonl"
    items: Any = load_captions(config.store, config.split) if of_captions else RegionStore(config.store)
    options = {"bits": config.bits, "cells": config.cells, "overwrite": config.overwrite}
    matcher = load_model(config.model)
    index = Index.build(matcher, items, output, progress=sys.stderr.isatty(), **options)
    print(f"{output}: {len(index)} {index.manifest.indexed}, {index.describe_bytes()}")
    if config.queries is not None:
        known = set(index.ids)
        sentences = [each.caption for each in load_captions(config.queries) if each.image_id in known]
        if not sentences:
            raise ValueError(f"{config.queries} has no caption of an image of {config.store}")
        some = sentences[:: max(1, len(sentences) // config.measured)][: config.measured]
        print(f"inexact search finds {index.measure(matcher, some):.1f}% of the exact top 10 ({len(some)} sentences)")
