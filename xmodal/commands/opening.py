"""What commands open: models, and the part of the data that they look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal.training.config import load_recipe


@dataclass(frozen=True)
class Split:
    """The part of the data to look at."""

    folder: Path
    """Folder with `{split}.h5` and `captions.jsonl`."""
    split: str = "test"
    """Which split."""
    images: Path | None = None
    """Folder of the photographs, for models that look at pixels; by default the one that the run was trained with."""


@dataclass(frozen=True)
class SplitOrNone:
    """The part of the data to look at, where there is no index."""

    folder: Path | None = None
    """Folder with `{split}.h5` and `captions.jsonl`."""
    split: str = "test"
    """Which split."""
    images: Path | None = None
    """Folder of the photographs, for models that look at pixels; by default the one that the run was trained with."""


def load_model(path: Path, kind: Any = None) -> Any:
    """A model, a matcher unless said otherwise."""
    from xmodal.model import Matcher

    return (kind or Matcher).from_pretrained(path)


def open_part(data: Split, matchers: dict[str, Any]) -> Any:
    """The part of the data to look at, with its images as the matchers were trained to see them."""
    from xmodal.data.split import open_split

    first, *others = [source_of(data, Path(path), matcher) for path, matcher in matchers.items()] or [{}]
    for path, source in zip(list(matchers)[1:], others, strict=True):
        if source != first:
            raise ValueError(
                f"{path} takes images of {source or 'region stores'} and {next(iter(matchers))} of "
                f"{first or 'region stores'}; evaluate together what takes the same images"
            )
    return open_split(data.folder, data.split, first)


def source_of(data: Split | SplitOrNone, path: Path, matcher: Any) -> dict[str, Any]:
    """Where a matcher takes images from: as its run did, or, of a matcher alone, as its extractor says."""
    from xmodal.data.split import SOURCES
    from xmodal.training.checkpoints import CONFIG

    run = path / CONFIG
    source = dict(load_recipe(run).data.source) if run.is_file() else {}
    if not source and isinstance(matcher.extractor, dict) and matcher.extractor["name"] in SOURCES:
        source = dict(matcher.extractor)
    return source if data.images is None else {**source, "folder": str(data.images)}
