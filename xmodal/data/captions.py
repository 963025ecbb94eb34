"""Captions: one JSON object a line, each naming its image and its split."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xmodal.data.atomic import written_whole
from xmodal.data.image_folder import is_utf8
from xmodal.data.positions import position_by_name
from xmodal.data.strings import refuse_string
from xmodal.data.text import HALF_LETTER, NO_FILE_NAME, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Int
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about one image.

    >>> Caption(image_id="139", caption_id="372891", caption="A woman at a table.", split="train").split
    'train'
    """

    image_id: str
    caption_id: str
    caption: str
    split: str


_KEYS = tuple(field.name for field in fields(Caption))


def load_captions(path: str | Path, split: str | None = None) -> list[Caption]:
    """Read captions, in file order.

    Args:
        path: JSON lines with the keys `image_id`, `caption_id`, `caption` and `split`. Ids may be numbers in the file;
            they are strings from here on.
        split: keep only the captions of this split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object, its caption is empty or no text, its caption id was used before, or no
            caption is in the split. The message names the file and the line.

    >>> save_captions("captions.jsonl", [Caption("7", "0", "A dog.", "train"), Caption("8", "1", "A cat.", "test")])
    >>> [caption.caption for caption in load_captions("captions.jsonl", split="test")]
    ['A cat.']
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no captions file at {path}. `xmodal prepare captions --help` makes one.")
    known: set[str] = set()
    lines = enumerate(read_lines(path), start=1)
    captions = [_parse_line(line, known, f"{path}, line {number}") for number, line in lines]
    chosen = [caption for caption in captions if split in (None, caption.split)]
    if not chosen:
        splits = dict(Counter(caption.split for caption in captions))
        raise ValueError(f"{path} has no caption" + (f" of split {split!r}; its splits are {splits}" if splits else ""))
    return chosen


def _parse_line(line: str, known: set[str], where: str) -> Caption:
    try:
        return _admitted(_parse(line), known)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _parse(line: str) -> Caption:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {line.rstrip()[:80]!r}") from error
    if not isinstance(record, dict) or set(record) != set(_KEYS):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"wanted an object with the keys {list(_KEYS)}, found {found}")
    for key, value in record.items():
        if isinstance(value, bool) or not isinstance(value, str | int if key.endswith("_id") else str):
            raise ValueError(f"{key} is {value!r}, wanted a string")
    return Caption(str(record["image_id"]), str(record["caption_id"]), record["caption"], record["split"])


def _admitted(caption: Caption, known: set[str]) -> Caption:
    """The caption, if it may be in a file that already has the caption ids `known`; its own is added to them."""
    if not caption.caption.strip():
        raise ValueError(f"caption {caption.caption_id!r} of image {caption.image_id!r} is empty; remove it")
    if caption.caption_id in known:
        raise ValueError(
            f"caption_id {caption.caption_id!r} was used before (here of image {caption.image_id!r}); caption ids must "
            "be unique"
        )
    texts = {"caption": HALF_LETTER.search(caption.caption)}
    texts |= {name: NO_FILE_NAME.search(getattr(caption, name)) for name in ("image_id", "caption_id", "split")}
    for name, half in texts.items():
        if half:
            raise ValueError(
                f"the {name} of caption {caption.caption_id!r} of image {caption.image_id!r} holds half a letter "
                f"({half[0]!r}), which is no text; repair it"
            )
    known.add(caption.caption_id)
    return caption


def save_captions(path: str | Path, captions: Iterable[Caption]) -> None:
    """Write captions as `load_captions` reads them.

    Raises:
        ValueError: a caption is empty or holds half a letter, or two have the same caption id.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "captions.jsonl"
    >>> save_captions(path, [Caption("139", "372891", "A woman at a table.", "train")])
    >>> load_captions(path, split="train")
    [Caption(image_id='139', caption_id='372891', caption='A woman at a table.', split='train')]
    """
    known: set[str] = set()
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for caption in captions:
            record = asdict(_admitted(caption, known))
            # The name of a file, and so of an image, need not be text; JSON can say all the same which one it is.
            file.write(json.dumps(record, ensure_ascii=not all(map(is_utf8, record.values()))) + "\n")


def caption_image_index(
    captions: Sequence[Caption], image_ids: Sequence[str], *, every_image: bool = True
) -> Int[Tensor, "caption"]:
    """Which image each caption is about: the relevance that losses and metrics take.

    Args:
        captions: the captions.
        image_ids: the name of every image, `RegionStore.image_id` say.
        every_image: whether an image without a caption is an error. Evaluation wants that; training need not.

    Raises:
        ValueError: two images have the same name; a caption's image is not among `image_ids`; or, if `every_image`, an
            image has no caption.

    >>> captions = [Caption("b", "0", "A bear.", "test"), Caption("a", "1", "An ape.", "test")]
    >>> caption_image_index(captions, ["a", "b"])
    tensor([1, 0])
    """
    refuse_string("image_ids", image_ids, "ids")
    position = position_by_name(image_ids, "the list of images")
    strangers = [caption for caption in captions if caption.image_id not in position]
    if strangers:
        raise ValueError(
            f"{len(strangers)} of {len(captions)} captions are about images that are not there, the first one "
            f"(caption_id {strangers[0].caption_id!r}) about image {strangers[0].image_id!r}. "
            "Do the captions and the images belong to the same split? If images were skipped, leave out their "
            "captions: xmodal prepare captions table --input captions.jsonl --output captions.jsonl --only-images-of "
            "SPLIT.h5"
        )
    if every_image:
        silent = position.keys() - {caption.image_id for caption in captions}
        if silent:
            raise ValueError(
                f"{len(silent)} of {len(position)} images have no caption, image {min(silent)!r} for one. "
                "Remove them, or add captions."
            )
    return torch.tensor([position[caption.image_id] for caption in captions], dtype=torch.long)
