"""Check region stores and captions against each other before training on them.

Reads every FOLDER/*.h5 (a split each) and FOLDER/captions.jsonl, prints a table and ends with status 1 if anything is
wrong: a damaged file, captions or a vocabulary that are not what a program wrote, NaN or all-zero features, boxes
outside the image, an id twice, slow chunks, captions about images that are not there, images without captions (in train
only a note), an image in two splits, splits whose features differ in dim (or, a note, in what made them). After an edit
of captions or vocabulary, --accept says that they are as they should be.

    python -m preprocess.verify FOLDER
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import tyro  # noqa: TC002 (and itself, at run time)

from xmodal.data import RegionStore, load_captions
from xmodal.data.split import CAPTIONS, store_file
from xmodal.entry import run_program

from .manifest import accept, find_changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xmodal.data import Caption

SAME_IMAGES = {frozenset(("test", "testall"))}
"""Splits that share images by design: COCO's test of 1,000 images is a part of that of 5,000."""


class Finding(NamedTuple):
    """One line of the table."""

    split: str
    level: Literal["ok", "note", "ERROR"]
    message: str


@dataclass(frozen=True)
class Config:
    """What to check."""

    folder: tyro.conf.Positional[Path]
    """Folder of SPLIT.h5 and captions.jsonl."""
    captions: Path | None = None
    """The captions, if they are elsewhere."""
    accept: bool = False
    """Take captions and vocabulary, which somebody edited, for what they should be from now on."""
    splits: tuple[str, ...] = ()
    """Check only these splits; by default all that have a store or captions."""


def main(config: Config) -> None:
    """Check, print the table, and fail if anything is wrong."""
    if config.accept:
        print(f"accepted as they are: {', '.join(accept(config.folder)) or 'nothing'}")
    findings = list(verify(config))
    width = max(len(finding.split) for finding in findings)
    for split, level, message in findings:
        print(f"{split:{width}}  {level:5}  {message}")
    errors = sum(finding.level == "ERROR" for finding in findings)
    if errors:
        raise SystemExit(f"{errors} problem{'s' * (errors > 1)}: repair them before training")


def verify(config: Config) -> Iterator[Finding]:
    """Everything there is to say, split by split.

    Raises:
        FileNotFoundError: there is no such folder or no captions file.
        ValueError: the captions file is damaged; the message names the line.

    >>> from xmodal.data import Caption, RegionStoreWriter, save_captions
    >>> with RegionStoreWriter("test.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("7", [[1, 0], [0, 1]])
    ...     writer.write("8", [[1, 1]])
    >>> save_captions("captions.jsonl", [Caption("7", "0", "A dog.", "test")])
    >>> [(finding.level, finding.message) for finding in verify(Config(Path(".")))][1:]
    [('ERROR', "1 image ('8') of the store without a caption")]
    """
    if not config.folder.is_dir():
        raise FileNotFoundError(f"no folder at {config.folder}")
    captions = defaultdict(list)
    for caption in load_captions(config.captions or config.folder / CAPTIONS):
        captions[caption.split].append(caption)
    splits = config.splits or sorted({path.stem for path in config.folder.glob("*.h5")} | captions.keys())
    stores: dict[str, RegionStore] = {}
    for split in splits:
        path = store_file(config.folder, split)
        try:
            store = RegionStore(path)
        except (FileNotFoundError, ValueError) as error:
            yield Finding(split, "ERROR", str(error))
            continue
        stores[split] = store
        yield Finding(split, "ok", f"{store!r}; {len(captions[split])} captions")
        yield from (Finding(split, "ERROR", problem) for problem in store.validate())
        yield from _compare(split, store.image_id, captions[split])
    yield from (Finding(Path(name).stem, "ERROR", problem) for name, problem in find_changed(config.folder).items())
    yield from _find_differences(stores)
    yield from _find_leaks({split: set(store.image_id) for split, store in stores.items()}, "the stores")
    yield from _find_leaks({s: {caption.image_id for caption in captions[s]} for s in splits}, "the captions")


def _compare(split: str, image_ids: Sequence[str], captions: Sequence[Caption]) -> Iterator[Finding]:
    """Ids that are missing on either side."""
    described = Counter(caption.image_id for caption in captions)
    strangers = described.keys() - set(image_ids)
    if strangers:
        lost = sum(described[image_id] for image_id in strangers)
        yield Finding(
            split,
            "ERROR",
            f"{lost} captions are about {_some(strangers)} not in the store; "
            "if it skipped them, see --only-images-of of the program captions",
        )
    silent = set(image_ids) - described.keys()
    if silent:
        yield Finding(split, "note" if split == "train" else "ERROR", f"{_some(silent)} of the store without a caption")


def _find_differences(stores: Mapping[str, RegionStore]) -> Iterator[Finding]:
    """Splits whose features are not like those of the first one."""
    for split, store in stores.items():
        first, reference = next(iter(stores.items()))
        if store.dim != reference.dim:
            yield Finding(split, "ERROR", f"features have dim {store.dim}, those of {first} {reference.dim}")
        made, wanted = ((each.extractor, each.attributes.get("weights_hash")) for each in (store, reference))
        if made != wanted:
            yield Finding(split, "note", f"features were made by {made}, those of {first} by {wanted}")


def _find_leaks(images: Mapping[str, set[str]], where: str) -> Iterator[Finding]:
    """Images that are in two splits."""
    splits = list(images)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            common = images[one] & images[other]
            if common and frozenset((one, other)) not in SAME_IMAGES:
                yield Finding(one, "ERROR", f"leak: {where} have {_some(common)} in {other} too")


def _some(image_ids: set[str]) -> str:
    """How many images, and the first few of them."""
    names = sorted(image_ids)
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} image{'s' * (len(names) > 1)} ({shown})"


if __name__ == "__main__":
    run_program(main)
