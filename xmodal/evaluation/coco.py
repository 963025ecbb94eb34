"""Judgements of COCO's 5K test that the `eccv-caption` package brings: CxC and ECCV Caption.

The test split of COCO is judged by one image a caption, though many of its images fit many of its captions. CxC (Parekh
et al., EACL 2021) had people grade more pairs, of which it takes those of at least 3 of 5; ECCV Caption (Chun et al.,
ECCV 2022) had machines propose and people verify. It asked for the captions of 1,261 images and for the images of 1,332
captions, so that its two directions have judgements of their own. Two of the captions that it calls right are not among
the 25,000 of the split: they count as never found, as the package counts them.
"""

from __future__ import annotations

import json
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xmodal.data.relevance import Judgements, Relevance
from xmodal.data.strings import refuse_string
from xmodal.evaluation.protocols import PROTOCOLS
from xmodal.evaluation.relevance import evaluate_direction
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Int
    from torch import Tensor

PACKAGE = "eccv_caption"

IMAGES, CAPTIONS = 5000, 25000
"""Size of the test split whose pairs were judged."""

NUMBER = re.compile(r"(\d+)(\.\w+)?\Z")


def load_cxc(image_ids: Sequence[str], caption_ids: Sequence[str]) -> Judgements:
    """Pairs of COCO's 5K test that CxC calls right: graded 3 or better by people.

    Args:
        image_ids: the name of every image, with COCO's number at its end: `391895` or `COCO_val2014_000000391895.jpg`.
        caption_ids: the name of every caption, with the number of its annotation in COCO at its end.

    Raises:
        ModuleNotFoundError: the package `eccv-caption` is not installed.
        ValueError: these are not the 5,000 images and 25,000 captions that were judged; the message says what is wrong.

    >>> load_cxc(["391895"], ["770337"])
    Traceback (most recent call last):
    ...
    ValueError: CxC judged COCO's test split of 5000 images and 25000 captions, ... but there are 1 x 1 ...
    """
    return _load("CxC", "cxc", image_ids, caption_ids)


def load_eccv(image_ids: Sequence[str], caption_ids: Sequence[str]) -> Judgements:
    """Pairs of COCO's 5K test that ECCV Caption calls right, for each direction its own; as `load_cxc`.

    >>> load_eccv(["391895"], ["770337"])
    Traceback (most recent call last):
    ...
    ValueError: ECCV Caption judged COCO's test split of 5000 images and 25000 captions, ... but there are 1 x 1 ...
    """
    return _load("ECCV Caption", "eccv", image_ids, caption_ids)


JUDGED: dict[str, Callable[[Sequence[str], Sequence[str]], Judgements]] = {"cxc": load_cxc, "eccv": load_eccv}
"""Protocols whose right answers are judgements by the ids of images and captions, by name."""


def judged_protocols(
    names: Sequence[str], image_ids: Sequence[str], caption_ids: Sequence[str], others: Sequence[str] = ()
) -> dict[str, Callable[..., dict[str, float]]]:
    """An evaluation of one direction for each of these names that is in `JUDGED`.

    Args:
        names: protocols, those of `PROTOCOLS` among them: they need nothing from here.
        image_ids: as for `load_cxc`.
        caption_ids: as for `load_cxc`.
        others: names that somebody else takes care of.

    Raises:
        ModuleNotFoundError: the package `eccv-caption` is not installed.
        ValueError: no such protocol, or the images and captions are not those that were judged.

    >>> judged_protocols(["plain"], ["391895"], ["770337"])
    {}
    """
    for name in names:
        if name not in (known := (*PROTOCOLS, *JUDGED, *others)):
            raise ValueError(f"there is no protocol {name!r}{near_miss(name, known)}; known: {', '.join(known)}")
    loaded = {name: JUDGED[name](image_ids, caption_ids) for name in names if name in JUDGED}
    return {name: partial(evaluate_direction, judgements=judgements) for name, judgements in loaded.items()}


def number_of(kind: str, name: str) -> int:
    """COCO's number of an image or a caption, with which its name ends.

    Raises:
        ValueError: the name has no number there.

    >>> number_of("image", "COCO_val2014_000000391895.jpg"), number_of("caption", "COCO_val2014:sentid:770337")
    (391895, 770337)
    """
    number = NUMBER.search(name)
    if number is None:
        raise ValueError(f"{kind} {name!r} has no number at the end of its name")
    return int(number[1])


def judgements_by_number(
    captions_of: Mapping[int, Sequence[int]],
    images_of: Mapping[int, Sequence[int]],
    image_ids: Sequence[str],
    caption_ids: Sequence[str],
) -> Judgements:
    """Judgements of numbered images and captions, as judgements of places.

    Args:
        captions_of: the captions that fit an image, by numbers. Those that are not there are counted as absent.
        images_of: the images that fit a caption; likewise.
        image_ids: names of images that end in their numbers, one of every image that asked.
        caption_ids: likewise.

    Raises:
        ValueError: a name has no number, two have the same, or what asked is not there.

    >>> both = judgements_by_number({7: [70, 99]}, {70: [7, 8]}, ["COCO_val2014_000000000007.jpg", "8"], ["70", "71"])
    >>> both.i2t, both.absent_captions, both.t2i.image.tolist()
    (Relevance(1 pairs of 2 images and 2 captions), tensor([1, 0]), [0, 1])
    """
    image_at, caption_at = places_by_number("image", image_ids), places_by_number("caption", caption_ids)
    images, captions, absent_captions = _pairs("image", captions_of, image_at, caption_at)
    i2t = Relevance(images, captions, None, images=len(image_ids), captions=len(caption_ids))
    captions, images, absent_images = _pairs("caption", images_of, caption_at, image_at)
    t2i = Relevance(images, captions, None, images=len(image_ids), captions=len(caption_ids))
    return Judgements(i2t, t2i, absent_captions, absent_images)


def _pairs(
    kind: str, answers_of: Mapping[int, Sequence[int]], query_at: Mapping[int, int], answer_at: Mapping[int, int]
) -> tuple[list[int], list[int], Int[Tensor, " query"]]:
    """The places of queries and of their answers, and how many answers of each query are not there."""
    queries, answers, absent = [], [], torch.zeros(len(query_at), dtype=torch.int64)
    for number, right in answers_of.items():
        query = _place(kind, number, query_at)
        there = [answer_at[answer] for answer in right if answer in answer_at]
        queries += [query] * len(there)
        answers += there
        absent[query] = len(right) - len(there)
    return queries, answers, absent


def _load(title: str, name: str, image_ids: Sequence[str], caption_ids: Sequence[str]) -> Judgements:
    try:
        if (len(image_ids), len(caption_ids)) != (IMAGES, CAPTIONS):
            raise ValueError(f"there are {len(image_ids)} x {len(caption_ids)} (image x caption)")
        folder = _data_folder()
        split = _read(folder / "original_image_to_caption.json")
        captions = (caption for of_image in split.values() for caption in of_image)
        for kind, names, numbers in (("image", image_ids, split), ("caption", caption_ids, captions)):
            places = places_by_number(kind, names)
            for number in numbers:
                _place(kind, number, places)
    except ValueError as error:
        raise ValueError(
            f"{title} judged COCO's test split of {IMAGES} images and {CAPTIONS} captions, named by COCO's numbers, "
            f"but {error}; evaluate that split, its captions written with `xmodal prepare captions ... "
            "--captions-per-image 5`, or give judgements of your own with --relevance"
        ) from error
    captions_of, images_of = (
        _read(folder / f"{name}_{kind}.json") for kind in ("image_to_caption", "caption_to_image")
    )
    return judgements_by_number(captions_of, images_of, image_ids, caption_ids)


def _data_folder() -> Path:
    """Where the package has its judgements. It is not imported: it would warn about a faster reader of JSON."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "judgements of COCO's test split come with the package eccv-caption: pip install 'xmodal[eval]'"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _read(path: Path) -> dict[int, list[int]]:
    table = json.loads(path.read_text(encoding="utf-8"))
    return {int(query): [int(answer) for answer in answers] for query, answers in table.items()}


def places_by_number(kind: str, names: Sequence[str]) -> dict[int, int]:
    """Where the image or caption of each number is.

    Raises:
        ValueError: a name has no number, or two have the same.

    >>> places_by_number("image", ["COCO_val2014_000000000009.jpg", "8.jpg"])
    {9: 0, 8: 1}
    """
    refuse_string(f"{kind}_ids", names, "ids")
    places: dict[int, int] = {}
    for place, name in enumerate(names):
        number = number_of(kind, name)
        if places.setdefault(number, place) != place:
            raise ValueError(f"{kind}s {names[places[number]]!r} and {name!r} have the same number")
    return places


def _place(kind: str, number: int, places: Mapping[int, int]) -> int:
    if number not in places:
        raise ValueError(f"{kind} {number} is not among the {len(places)} {kind}s")
    return places[number]
