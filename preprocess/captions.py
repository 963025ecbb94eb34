"""Make a captions file (JSON lines: image_id, caption_id, caption, split) of what people have.

    python -m preprocess.captions karpathy --input dataset_flickr30k.json --output DIR/captions.jsonl
    python -m preprocess.captions coco --input captions_val2017.json --split test --output DIR/captions.jsonl
    python -m preprocess.captions flickr --input results_20130124.token --output DIR/captions.jsonl \\
        --split-lists train train.txt dev dev.txt test test.txt
    python -m preprocess.captions table --input mine.csv --output DIR/captions.jsonl
    python -m preprocess.captions images --input images.jsonl --output DIR/captions.jsonl

Captions that are empty or belong to no split are left out and counted.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from xmodal.data import Caption, save_captions
from xmodal.entry import run_program

from .image_ids import KARPATHY_SPLITS, karpathy_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Files:
    """What every source has."""

    input: Path
    """The file to read."""
    output: Path
    """The captions file to write."""


@dataclass(frozen=True)
class Karpathy(Files):
    """Karpathy's dataset_*.json. The image id is COCO's where there is one, else the file name without ending."""

    def read(self) -> Iterator[Caption]:
        """Captions with the splits of the file; restval counts as train and val is called dev."""
        for image in _read_json(self.input)["images"]:
            image_id, split = karpathy_id(image), KARPATHY_SPLITS[image["split"]]
            for sentence in image["sentences"]:
                yield Caption(image_id, str(sentence["sentid"]), sentence["raw"], split)


@dataclass(frozen=True)
class Coco(Files):
    """COCO's captions_*.json, all of it one split."""

    split: str = "train"
    """The split to put it in."""

    def read(self) -> Iterator[Caption]:
        """Captions in order of the file."""
        for annotation in _read_json(self.input)["annotations"]:
            yield Caption(str(annotation["image_id"]), str(annotation["id"]), annotation["caption"], self.split)


@dataclass(frozen=True)
class Flickr(Files):
    """A Flickr8k or Flickr30k token file: `NAME.jpg#NUMBER<tab>CAPTION`. The image id is NAME."""

    split_lists: dict[str, Path] = field(default_factory=dict)
    """Splits and the files that list their images, one a line: train train.txt dev dev.txt. Without: all is train."""

    def read(self) -> Iterator[Caption]:
        """Captions of the listed images, in order of the file."""
        split_of = {
            Path(line.strip()).stem: split
            for split, path in self.split_lists.items()
            for line in _read_text(path).splitlines()
        }
        for number, line in enumerate(_read_text(self.input).split("\n"), start=1):
            if not line.strip():
                continue
            name, tab, sentence = line.partition("\t")
            image, mark, _ = name.rpartition("#")
            if not (tab and mark):
                raise ValueError(
                    f"{self.input}, line {number}: wanted NAME.jpg#NUMBER<tab>CAPTION, found {line[:80]!r}"
                )
            image_id = Path(image).stem
            yield Caption(image_id, name, sentence, split_of.get(image_id, "" if self.split_lists else "train"))


@dataclass(frozen=True)
class Table(Files):
    """A CSV file with a heading, or JSON lines: image_id, caption, and if they are known caption_id and split."""

    split: str = "train"
    """The split of captions without one."""

    def read(self) -> Iterator[Caption]:
        """Captions in order of the file, numbered from 0 if they have no id."""
        for number, row in enumerate(self._rows()):
            missing = {"image_id", "caption"} - {key for key, value in row.items() if value is not None}
            if missing:
                raise ValueError(f"{self.input}, row {number + 1} has no {sorted(missing)}; it has {sorted(row)}")
            caption_id = row.get("caption_id")
            caption_id = str(number if caption_id is None else caption_id)
            yield Caption(str(row["image_id"]), caption_id, row["caption"], row.get("split") or self.split)

    def _rows(self) -> Iterable[dict[str, Any]]:
        text = _read_text(self.input)
        if self.input.suffix == ".csv":
            return csv.DictReader(io.StringIO(text))
        return [_parse_json(line, f"{self.input}, line {n}") for n, line in enumerate(text.strip().split("\n"), 1)]


@dataclass(frozen=True)
class Images(Files):
    """JSON lines, an image a line: `image` (a file name), `split`, `captions` (a list). The image id is NAME."""

    def read(self) -> Iterator[Caption]:
        """Captions in order of the file, numbered within their image."""
        for number, line in enumerate(_read_text(self.input).strip().split("\n"), start=1):
            record = _parse_json(line, f"{self.input}, line {number}")
            image_id = Path(record["image"]).stem
            for position, sentence in enumerate(record["captions"]):
                yield Caption(image_id, f"{image_id}#{position}", sentence, record["split"])


Source = (
    Annotated[Karpathy, tyro.conf.subcommand("karpathy")]
    | Annotated[Coco, tyro.conf.subcommand("coco")]
    | Annotated[Flickr, tyro.conf.subcommand("flickr")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Images, tyro.conf.subcommand("images")]
)


def main(source: Source) -> None:
    """Read one source, write the captions file and say what was left out."""
    try:
        captions = list(source.read())
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source.input} is not what `{type(source).__name__.lower()}` reads: {error!r}") from error
    kept = [caption for caption in captions if caption.caption.strip() and caption.split]
    if not kept:
        raise ValueError(f"{source.input} gives no caption that belongs to a split")
    save_captions(source.output, kept)
    empty = sum(not caption.caption.strip() for caption in captions)
    homeless = len(captions) - len(kept) - empty
    print(f"{source.output}: {len(kept)} captions; left out: {empty} empty, {homeless} in no split")


def _read_json(path: Path) -> Any:
    return _parse_json(_read_text(path), str(path))


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _read_text(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"no file at {path}")
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
