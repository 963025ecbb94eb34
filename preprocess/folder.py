"""From photographs and a table of captions to everything that training needs, in one go.

    python -m preprocess.folder --images PHOTOS --captions mine.csv --output data/mine

writes region stores, captions.jsonl and vocabulary.json to data/mine, and checks them. The table is a CSV file with a
heading, or JSON lines: image_id (the name of the image file, with or without its ending), caption, and if you have them
caption_id and split. Without a column split, images are divided at random: --dev and --test say how many are set aside.

Captions without a photograph, and photographs that no caption names or that cannot be read, are left out and counted.
The same command goes on where it was stopped, whatever stopped it. How regions are found is said as for
`python -m preprocess.regions`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from xmodal.data import Caption, RegionStore, save_captions
from xmodal.data.atomic import refuse_inputs, written_whole
from xmodal.data.image_folder import coco_number, find_images
from xmodal.entry import run_program

from . import verify, vocabulary
from .captions import Table, read_captions
from .manifest import MANIFEST, note_written
from .parts import is_put_together
from .regions import Extraction, RegionsConfig, extract
from .skipped import write_skipped
from .splits import draw_splits, plain_split
from .vocabulary import Segmenter  # noqa: TC001 (tyro reads the annotations)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CAPTIONS, VOCABULARY = "captions.jsonl", "vocabulary.json"

RECORD = "prepared.json"
"""What a data folder was made of, by which a run knows whether it goes on or would mix two things."""

SHARE = 0.1
"""The share of the images that dev and test have each, if nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig(Extraction):
    """Make a data folder of photographs and a table of captions."""

    images: Path
    """Folder of images; folders inside it are searched too. An image's id is its file name without extension."""
    captions: Path
    """Table of captions: CSV with a heading, or JSON lines; see `xmodal prepare captions table --help`."""
    encoding: str | None = None
    """What the table is written in, latin-1 say; without: UTF-8, or what its byte order mark says."""
    output: Path
    """The data folder to write."""
    dev: float | None = None
    """Without splits in the table: images that choose the best checkpoint, below 1 a share (0.1 if not given), from 1
    their number."""
    test: float | None = None
    """Without splits in the table: images to test on, likewise."""
    seed: int = 0
    """Seed of the division."""
    min_count: int = 4
    """How often a word must come in train and dev to be in the vocabulary."""
    segmenter: Segmenter = "words"
    """What splits captions into words, see `xmodal prepare vocabulary --help`: at spaces, characters, or jieba."""
    overwrite: bool = False
    """Replace what the output holds if it was made of other images, captions or options."""

    def store(self, split: str) -> Path:
        """The region store of a split."""
        return self.output / f"{split}.h5"


def main(config: FolderConfig) -> None:
    """Make everything, and say what was done.

    Raises:
        FileExistsError: the output holds something else.
        ValueError: the table is damaged, names no image of the folder, or has too few images; see `extract`.
        SystemExit: the check finds something wrong.
    """
    try:
        _prepare(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped by Ctrl-C; the same command goes on from here") from None


def _prepare(config: FolderConfig) -> None:
    # As in `extract`: without an accelerator this must be said, or processes do not know of each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    with state.main_process_first():
        captions = _choose_captions(config, tell=state.is_main_process)
        splits = sorted({caption.split for caption in captions}, key=lambda split: (split != "train", split))
        if state.is_main_process:
            _begin(config, captions)
            _write_captions(config, captions)
        stores = {split: config.store(split) for split in splits}
        todo = [split for split, store in stores.items() if not store.exists() or is_put_together(store)]
    if todo:
        extractor, options = config.build_extractor()
        extraction = {field.name: getattr(config, field.name) for field in fields(Extraction)}
        for split in todo:
            part = RegionsConfig(
                config.images, config.store(split), config.output / "captions.jsonl", split, **extraction
            )
            skipped = extract(part, extractor, options)
            if state.is_main_process:
                print(f"wrote {part.output}; {write_skipped(part.output, skipped)}")
    if state.is_main_process:
        stored = {(split, image_id) for split in splits for image_id in RegionStore(config.store(split)).image_id}
        kept = [caption for caption in captions if (caption.split, caption.image_id) in stored]
        if len(kept) < len(captions):
            print(f"left out {len(captions) - len(kept)} captions of images that cannot be read")
            _write_captions(config, kept)
        verify.main(verify.Config(config.output, splits=tuple(splits)))


def _choose_captions(config: FolderConfig, *, tell: bool) -> list[Caption]:
    """The captions of the table that have a photograph, each with its split."""
    found = find_images(config.images, coco_ids=config.coco_ids)
    captions = _read_table(config)
    if config.coco_ids:
        captions = [replace(caption, image_id=coco_number(caption.image_id)) for caption in captions]
    told = {
        "are empty": [caption for caption in captions if not caption.caption.strip()],
        f"have no image in {config.images}": [caption for caption in captions if caption.image_id not in found],
    }
    chosen = [caption for caption in captions if caption.caption.strip() and caption.image_id in found]
    if not chosen:
        raise ValueError(
            f"no caption of {config.captions} is about an image in {config.images}: the table names "
            f"{captions[0].image_id!r}, the folder holds {next(iter(found))!r}"
        )
    if any(caption.split for caption in chosen):
        given = [f"--{name}" for name in ("dev", "test") if getattr(config, name) is not None]
        if given:
            raise ValueError(f"{config.captions} says which split an image is in, and so does {given[0]}: leave it out")
        told["are in no split"] = [caption for caption in chosen if not caption.split]
        chosen = [caption for caption in chosen if caption.split]
        for split in {caption.split for caption in chosen}:
            plain_split(split, f"{config.captions}: ")
    else:
        dev, test = (SHARE if size is None else size for size in (config.dev, config.test))
        images = sorted({caption.image_id for caption in chosen})
        split_of = draw_splits(images, dev=dev, test=test, seed=config.seed)
        chosen = [replace(caption, split=split_of[caption.image_id]) for caption in chosen]
    if tell:
        _tell(config, chosen, told, len(found))
    return chosen


def _read_table(config: FolderConfig) -> list[Caption]:
    """All captions; the split is empty where the table does not say it."""
    splits = {"train", "dev", "test"}  # a table that is one of these stores is none
    for output in (CAPTIONS, VOCABULARY, RECORD, MANIFEST, *(config.store(split).name for split in splits)):
        refuse_inputs(config.output / output, [config.captions, config.weights])
    captions = read_captions(Table(config.captions, config.output, encoding=config.encoding, split=""))
    if not captions:
        raise ValueError(f"{config.captions} holds no caption")
    return captions


def _tell(
    config: FolderConfig, captions: Sequence[Caption], left_out: Mapping[str, list[Caption]], images: int
) -> None:
    """Say which images are in which split and what was left out."""
    split_of = {caption.image_id: caption.split for caption in captions}
    sizes = ", ".join(f"{count} {split}" for split, count in Counter(split_of.values()).items())
    print(f"{config.captions}: {len(captions)} captions of {len(split_of)} images ({sizes})")
    for reason, some in left_out.items():
        if some:
            print(f"left out {len(some)} captions that {reason}, the first of {some[0].image_id!r}")
    if len(split_of) < images:
        print(f"left out {images - len(split_of)} images without a caption")


def _write_captions(config: FolderConfig, captions: Sequence[Caption]) -> None:
    """Write the captions and the vocabulary of those that are not for testing."""
    path = config.output / CAPTIONS
    save_captions(path, captions)
    note_written(path)
    counted = tuple(split for split in ("train", "dev") if any(caption.split == split for caption in captions))
    vocabulary.main(vocabulary.Config(path, config.output / VOCABULARY, counted, config.min_count, config.segmenter))


def _begin(config: FolderConfig, captions: Sequence[Caption]) -> None:
    """Make sure that the output is empty or holds an earlier run of the same; otherwise clear it, if that is allowed.

    Raises:
        FileExistsError: it holds something else that may not be replaced.
    """
    path = config.output / RECORD
    record = {"options": _settings(config, captions), "splits": sorted({caption.split for caption in captions})}
    old = _read_record(path)
    if old == record:
        return
    outputs = [config.output / name for name in (CAPTIONS, VOCABULARY)]
    for split in {*record["splits"], *(old or {}).get("splits", ())}:
        store = config.store(split)
        outputs += [store, *(store.with_name(store.name + ending) for ending in (".parts", ".skipped.txt"))]
    there = [output for output in outputs if os.path.lexists(output)]
    if there and not config.overwrite:
        changed = [name for name, value in record["options"].items() if old and old["options"].get(name) != value]
        why = f"was made with other {' and '.join(changed)}" if changed else "was not made by this program"
        raise FileExistsError(
            f"{there[0]} {why}. Repeat an earlier command as it was to go on with it, pass --overwrite to replace "
            "everything, or choose another --output."
        )
    for output in there:
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2), "utf-8")


def _read_record(path: Path) -> dict[str, Any] | None:
    """What an earlier run noted; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        return {"options": dict(record["options"]), "splits": [plain_split(split) for split in record["splits"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); remove it and pass --overwrite, or take another --output"
        ) from error


def _settings(config: FolderConfig, captions: Sequence[Caption]) -> dict[str, Any]:
    """Everything that the stores and the captions depend on; of images only names, sizes and times."""
    harmless = {"join", "strict", "overwrite"}
    found = find_images(config.images, coco_ids=config.coco_ids)
    stats = [(image_id, found[image_id].stat()) for image_id in dict.fromkeys(caption.image_id for caption in captions)]
    return {
        "images": _digest((image_id, stat.st_size, stat.st_mtime_ns) for image_id, stat in stats),
        "captions": _digest(asdict(caption) for caption in captions),
        **{field.name: getattr(config, field.name) for field in fields(Extraction) if field.name not in harmless},
    }


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()


if __name__ == "__main__":
    run_program(main)
