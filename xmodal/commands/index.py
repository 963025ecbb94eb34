"""`xmodal index`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # tyro reads the annotations
from typing import TYPE_CHECKING, Any

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import load_model

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    from xmodal.data.atomic import refuse_inputs
    from xmodal.numerics import check_count
    from xmodal.search.index import Index

    output = config.output or config.store.with_suffix(".index")
    if config.verify:
        index = Index.open(output)
        index.verify(progress=sys.stderr.isatty())
        print(f"{output}: {len(index)} {index.manifest.indexed}, every file as it was written")
        return
    refuse_inputs(output, [config.model, config.store, config.queries])
    check_count("measured", config.measured)
    of_captions = config.store.suffix == ".jsonl"
    if config.split is not None and not of_captions:
        raise ValueError(f"--split is for a file of captions (.jsonl); {config.store} is indexed whole")
    if config.queries is not None and of_captions:
        raise ValueError(
            f"--queries are sentences, which find images; {config.store} holds captions: index a region store"
        )
    items: Any = load_captions(config.store, config.split) if of_captions else RegionStore(config.store)
    sentences = [] if config.queries is None else _sentences(config, config.queries, items.image_id)
    options = {"bits": config.bits, "cells": config.cells, "overwrite": config.overwrite, "queries": sentences}
    matcher = load_model(config.model)
    index = Index.build(matcher, items, output, progress=sys.stderr.isatty(), **options)
    print(f"{output}: {len(index)} {index.manifest.indexed}, {index.describe_bytes()}")
    if index.manifest.recall is not None:
        found = index.manifest.recall["percent"]
        print(f"inexact search finds {found:.1f}% of the exact top 10 ({len(sentences)} sentences)")


def _sentences(config: BuildIndex, file: Path, images: Iterable[str]) -> list[str]:
    """Some sentences about the images, spread evenly over the file."""
    from xmodal.data import load_captions

    known = set(images)
    sentences = [each.caption for each in load_captions(file) if each.image_id in known]
    if not sentences:
        raise ValueError(f"{file} has no caption of an image of {config.store}")
    count = min(config.measured, len(sentences))
    return [sentences[number * len(sentences) // count] for number in range(count)]
