"""`xmodal index`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # tyro reads the annotations

import tyro  # noqa: TC002  # what options are annotated with is read at run time


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
    refuse_inputs(output, [config.model, config.store, config.queries])
