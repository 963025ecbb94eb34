"""Make a captions file (JSON lines: image_id, caption_id, caption, split) of what people have.

    python -m preprocess.captions karpathy --input dataset_flickr30k.json --output DIR/captions.jsonl
    python -m preprocess.captions coco --input captions_val2017.json --split test --output DIR/captions.jsonl
    python -m preprocess.captions flickr --input results_20130124.token --output DIR/captions.jsonl \\
        --split-lists train train.txt dev dev.txt test test.txt
    python -m preprocess.captions table --input mine.csv --output DIR/captions.jsonl
    python -m preprocess.captions images --input images.jsonl --output DIR/captions.jsonl

Splits go by our names: val, valid and validation are called dev, restval counts as train. Files may be gzipped. They
are UTF-8, or say in a byte order mark that they are UTF-16; --encoding names another one. Captions that are empty or
belong to no split are left out and counted. A captions file is a table, too: so captions of images that were skipped
are dropped afterwards with

    python -m preprocess.captions table --input DIR/captions.jsonl --output DIR/captions.jsonl \\
        --only-images-of DIR/train.h5 DIR/dev.h5 DIR/test.h5
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from xmodal.data import Caption, RegionStore, load_captions, save_captions
from xmodal.data.atomic import refuse_inputs
from xmodal.data.text import HALF_LETTER, parse_json, read_lines, read_text
from xmodal.entry import run_program

from .caption_tables import rows_of_table
from .image_ids import ImageIds, image_stem, karpathy_images, karpathy_sentence, our_split
from .manifest import note_written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class Files:
    """What every source has."""

    input: Path
    """The file to read."""
    output: Path
    """The captions file to write."""
    encoding: str | None = field(default=None, kw_only=True)
    """What the input is written in, latin-1 say; without: UTF-8, or what its byte order mark says."""
    captions_per_image: int | None = field(default=None, kw_only=True)
    """Keep the first so many captions of every image: 5 for the published protocols, as some images of COCO have
    more. Images with fewer are counted."""
    exact: bool = field(default=False, kw_only=True)
    """With --captions-per-image: an image with fewer captions is an error."""
    only_images_of: tuple[Path, ...] = field(default=(), kw_only=True)
    """Region stores: leave out captions about images that are not in them. A store with the name of a split, train.h5,
    speaks for that split alone, any other for all; a split that no store speaks for is kept."""

    def others(self) -> list[Path]:
        """What is read besides the input and the stores."""
        return []


@dataclass(frozen=True)
class Karpathy(Files):
    """Karpathy's dataset_*.json. The image id is COCO's where there is one, else the file name without ending."""

    def read(self) -> Iterator[Caption]:
        """Captions with the splits of the file; restval counts as train and val is called dev."""
        for image_id, split, image in karpathy_images(self.input, self.encoding):
            for position, sentence in enumerate(image["sentences"]):
                caption_id = sentence.get("sentid", f"{image_id}#{position}")
                where = f"{self.input}, image {image_id}"
                yield _caption(where, image_id, caption_id, karpathy_sentence(sentence), split)


@dataclass(frozen=True)
class Coco(Files):
    """COCO's captions_*.json, all of it one split."""

    split: str = "train"
    """The split to put it in."""

    def read(self) -> Iterator[Caption]:
        """Captions in order of the file."""
        for annotation in parse_json(read_text(self.input, self.encoding), str(self.input))["annotations"]:
            where = f"{self.input}, annotation {annotation['id']}"
            yield _caption(where, annotation["image_id"], annotation["id"], annotation["caption"], self.split)


@dataclass(frozen=True)
class Flickr(Files):
    """A Flickr8k or Flickr30k token file: `NAME.jpg#NUMBER<tab>CAPTION`. The image id is NAME."""

    split_lists: dict[str, Path] = field(default_factory=dict)
    """Splits and the files that list their images, one a line: train train.txt dev dev.txt. Without: all is train."""

    def others(self) -> list[Path]:
        """The lists are read, too."""
        return [*self.split_lists.values()]

    def read(self) -> Iterator[Caption]:
        """Captions of the listed images, in order of the file."""
        split_of, ids = self._splits(), ImageIds(self.input)
        for number, line in enumerate(read_lines(self.input, self.encoding), start=1):
            if not line.strip():
                continue
            name, tab, sentence = line.partition("\t")
            image, mark, _ = name.rpartition("#")
            if not (tab and mark):
                raise ValueError(
                    f"{self.input}, line {number}: wanted NAME.jpg#NUMBER<tab>CAPTION, found {line[:80]!r}"
                )
            image_id = ids.give(image_stem(image), image)
            split = split_of.get(image_id, "" if self.split_lists else "train")
            yield _caption(f"{self.input}, line {number}", image_id, name, sentence, split)

    def _splits(self) -> dict[str, str]:
        """The split of every listed image.

        Raises:
            ValueError: an image is in the lists of two splits.
        """
        split_of: dict[str, str] = {}
        for split, path in self.split_lists.items():
            split = our_split(split)
            for line in read_lines(path, self.encoding):
                if line.strip() and split_of.setdefault(image_stem(line), split) != split:
                    raise ValueError(
                        f"{path} lists {line.strip()!r}, which the list of {split_of[image_stem(line)]!r} has"
                    )
        return split_of


@dataclass(frozen=True)
class Table(Files):
    """A table with a heading, its cells separated by commas, tabs, semicolons or pipes; or JSON, a list or a line each.

    It has columns image_id (or image, image_name, filename, ...) and caption (or comment, sentence, text, ...), and if
    they are known caption_id and split.
    """

    split: str = "train"
    """The split of captions without one."""

    def read(self) -> Iterator[Caption]:
        """Captions in order of the file, numbered from 0 if they have no id."""
        ids = ImageIds(self.input)
        for number, (where, row) in enumerate(rows_of_table(self.input, self.encoding)):
            name = _name(where, "image_id", row["image_id"])
            image_id = ids.give(image_stem(name), name)
            # A comment number counts within its image.
            position = row.get("position")
            caption_id = row.get("caption_id", number if position is None else f"{image_id}#{position}")
            split = row.get("split") or self.split
            yield _caption(where, image_id, caption_id, row["caption"], split)


@dataclass(frozen=True)
class Images(Files):
    """JSON lines, an image a line: `image` (a file name), `split`, `captions` (a list). The image id is NAME."""

    def read(self) -> Iterator[Caption]:
        """Captions in order of the file, numbered within their image."""
        ids = ImageIds(self.input)
        for number, line in enumerate(read_lines(self.input, self.encoding), start=1):
            if not line.strip():
                continue
            where = f"{self.input}, line {number}"
            record = parse_json(line, where)
            image_id = ids.give(image_stem(record["image"]), record["image"])
            if not isinstance(record["captions"], list):  # a text would be taken for a list of letters
                raise ValueError(f"{where}: captions is {record['captions']!r:.80}, wanted a list of strings")
            for position, sentence in enumerate(record["captions"]):
                yield _caption(where, image_id, f"{image_id}#{position}", sentence, record["split"])


Source = (
    Annotated[Karpathy, tyro.conf.subcommand("karpathy")]
    | Annotated[Coco, tyro.conf.subcommand("coco")]
    | Annotated[Flickr, tyro.conf.subcommand("flickr")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Images, tyro.conf.subcommand("images")]
)


def main(source: Source) -> None:
    """Read one source, write the captions file and say what was left out.

    Raises:
        FileNotFoundError: the input or a store is not there.
        ValueError: the input is damaged or something else, gives no caption, or would be overwritten.
    """
    if source.exact and source.captions_per_image is None:
        raise ValueError("--exact needs --captions-per-image, which says how many captions an image must have")
    captions = read_captions(source)
    kept = [caption for caption in captions if caption.caption.strip() and caption.split]
    if not kept:
        raise ValueError(f"{source.input} gives no caption that belongs to a split")
    empty = sum(not caption.caption.strip() for caption in captions)
    left_out = [f"{empty} empty", f"{len(captions) - len(kept) - empty} in no split"]
    if source.only_images_of:
        kept, reason = only_images_of(kept, source.only_images_of)
        left_out.append(reason)
    if source.captions_per_image is not None:
        kept, reason = first_captions(kept, source.captions_per_image, exact=source.exact)
        left_out.append(reason)
    _refuse_inputs(source)
    try:
        save_captions(source.output, kept)
    except ValueError as error:
        raise ValueError(f"{source.input}: {error}") from error
    note_written(source.output)
    print(f"{source.output}: {len(kept)} captions; left out: {', '.join(left_out)}")
    images = {split: {c.image_id for c in kept if c.split == split} for split in sorted({c.split for c in kept})}
    counts = Counter(caption.split for caption in kept)
    print("; ".join(f"{split}: {counts[split]} captions of {len(images[split])} images" for split in images))


def _refuse_inputs(source: Karpathy | Coco | Flickr | Table | Images) -> None:
    """Refuse to write over what is read, unless that is a captions file, of which another one is made.

    Raises:
        ValueError: the output is read and is no captions file.
    """
    refuse_inputs(source.output, [*source.only_images_of, *source.others()])
    try:
        refuse_inputs(source.output, [source.input])
    except ValueError as error:
        try:
            load_captions(source.input)
        except ValueError:
            raise error from None


def read_captions(source: Karpathy | Coco | Flickr | Table | Images) -> list[Caption]:
    """All captions of a source, the empty ones and those in no split too.

    Raises:
        FileNotFoundError: the input is not there.
        ValueError: it is damaged or something else.

    >>> _ = Path("mine.csv").write_text("image_id,caption\\n7.jpg,A dog.\\n")
    >>> read_captions(Table(Path("mine.csv"), Path("captions.jsonl")))
    [Caption(image_id='7', caption_id='0', caption='A dog.', split='train')]
    """
    try:
        return list(source.read())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source.input} is not what `{type(source).__name__.lower()}` reads: {error!r}") from error


def first_captions(captions: Sequence[Caption], count: int, *, exact: bool = False) -> tuple[list[Caption], str]:
    """The first captions of every image, and how many were left out.

    Raises:
        ValueError: `count` is less than 1, or, if `exact`, an image has fewer captions.

    >>> captions = [Caption("7", str(number), "A dog.", "test") for number in range(6)]
    >>> kept, told = first_captions(captions, 5)
    >>> len(kept), told
    (5, '1 after the first 5 of their image (0 images have fewer than 5)')
    """
    if count < 1:
        raise ValueError(f"captions_per_image is {count}, wanted at least 1")
    seen: Counter[str] = Counter()
    kept = []
    for caption in captions:
        seen[caption.image_id] += 1
        if seen[caption.image_id] <= count:
            kept.append(caption)
    fewer = [image_id for image_id in seen if seen[image_id] < count]
    if exact and fewer:
        raise ValueError(
            f"{len(fewer)} of {len(seen)} images have fewer than {count} captions, {fewer[0]!r} for one "
            f"({seen[fewer[0]]}). Add captions, remove the images, or go without --exact."
        )
    told = f"{len(captions) - len(kept)} after the first {count} of their image"
    return kept, f"{told} ({len(fewer)} images have fewer than {count})"


def only_images_of(captions: Sequence[Caption], stores: Sequence[Path]) -> tuple[list[Caption], str]:
    """The captions about images of region stores, under the names that these have there; and how many were left out.

    Raises:
        FileNotFoundError: a store is not there.
        ValueError: a store is damaged, or no caption is about an image of the stores.

    >>> from xmodal.data import RegionStoreWriter
    >>> with RegionStoreWriter("train.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("7", [[1, 0]])
    >>> captions = [Caption(image, image, "A dog.", "train") for image in ("7", "8")]
    >>> kept, told = only_images_of(captions, [Path("train.h5")])
    >>> [caption.image_id for caption in kept], told
    (['7'], '1 about 1 image that is in no store')
    """
    splits = {caption.split for caption in captions}
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for path in stores:
        ids = ImageIds(path)
        names = {ids.give(image_stem(name), name): name for name in RegionStore(path).image_id}
        for split in splits & {path.stem} or splits:
            known[split] |= names
    kept, lost = [], []
    for caption in captions:
        if caption.split not in known:
            kept.append(caption)
        elif (name := known[caption.split].get(image_stem(caption.image_id))) is not None:
            kept.append(replace(caption, image_id=name))
        else:
            lost.append(caption.image_id)
    if not kept:
        example = next(iter(next(iter(known.values()), {})), None)
        raise ValueError(
            f"no caption is about an image of {', '.join(map(str, stores))}: the captions name {lost[0]!r}, the stores "
            f"{example!r}"
        )
    images = len(set(lost))
    return (
        kept,
        f"{len(lost)} about {images} image{'s' * (images != 1)} that {'is' if images == 1 else 'are'} in no store",
    )


def _caption(where: str, image_id: Any, caption_id: Any, text: Any, split: Any) -> Caption:
    """A caption of what a file says.

    Raises:
        ValueError: a value is of another kind.
    """
    for name, value in (("caption", text), ("split", split)):
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name} is {value!r:.80}, wanted a string")
        if half := HALF_LETTER.search(value):
            raise ValueError(f"{where}: {name} {value!r:.80} holds half a letter ({half[0]!r}), which is no text")
    return Caption(_name(where, "image_id", image_id), _name(where, "caption_id", caption_id), text, our_split(split))


def _name(where: str, key: str, value: Any) -> str:
    """An id as text: a string, or a whole number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"{where}: {key} is {value!r:.80}, wanted a string or a whole number")
    return str(value).strip()


if __name__ == "__main__":
    run_program(main)
