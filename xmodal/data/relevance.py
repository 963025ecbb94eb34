"""Which images and captions belong together, and how well: relevance as a value, and files of judgements."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from xmodal.data.positions import position_by_name
from xmodal.data.strings import refuse_string
from xmodal.data.text import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

logger = logging.getLogger("xmodal")


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Relevance:
    """Pairs of an image and a caption that belong together; a pair that is not listed does not.

    A test set with one image a caption is a special case (`from_caption_image`); an image and a caption may have any
    number of partners, each with its own grade, as in CxC and ECCV Caption.

    Args:
        image: of every pair, counted from 0.
        caption: of every pair, counted from 0.
        grade: how well the two fit, more is better; None for 1 throughout. A pair of grade 0 was judged and does not
            belong together: it is not kept.
        images: how many images there are, those without a pair included.
        captions: how many captions there are.

    Raises:
        ValueError: an index is out of range, a pair is listed twice, or a grade is negative or no finite number.

    >>> relevance = Relevance([0, 1, 1], [0, 0, 1], [1.0, 0.5, 2.0], images=2, captions=2)
    >>> relevance.image.tolist(), relevance.caption_image  # caption 0 has two images
    ([0, 1, 1], None)
    """

    image: Int[Tensor, " pair"]
    caption: Int[Tensor, " pair"]
    grade: Float[Tensor, " pair"]
    images: int
    captions: int

    def __init__(
        self,
        image: Int[Tensor, " pair"] | Sequence[int],
        caption: Int[Tensor, " pair"] | Sequence[int],
        grade: Float[Tensor, " pair"] | Sequence[float] | None,
        images: int,
        captions: int,
    ) -> None:
        image, caption = _indices("image", image, images), _indices("caption", caption, captions)
        grade = torch.ones(len(image)) if grade is None else torch.as_tensor(grade, device="cpu")
        if not image.shape == caption.shape == grade.shape:
            raise ValueError(
                f"relevance wants an image, a caption and a grade for every pair, got {len(image)} images, "
                f"{len(caption)} captions and grades of shape {tuple(grade.shape)}"
            )
        grade = grade.double()
        wrong = (~(grade.isfinite() & (grade >= 0))).nonzero()
        if len(wrong):
            pair = int(wrong[0])
            raise ValueError(f"grade[{pair}] is {float(grade[pair])}; wanted a finite number of at least 0")
        _check_distinct(image, caption, captions)
        kept = grade > 0
        values = {"image": image[kept], "caption": caption[kept], "grade": grade[kept]}
        for name, value in {**values, "images": images, "captions": captions}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_caption_image(cls, index: Int[Tensor, " caption"] | Sequence[int], images: int | None = None) -> Relevance:
        """Relevance of captions that each describe one image.

        Args:
            index: the image that each caption describes, as `caption_image_index` gives it.
            images: how many images there are; by default as many as the largest index says.

        Raises:
            ValueError: as for the class; without captions, `images` must be given.

        >>> Relevance.from_caption_image([1, 0, 1]).images
        2
        """
        index = torch.as_tensor(index, device="cpu")
        if images is None:
            if not index.numel():
                raise ValueError("there is no caption to tell the number of images from; pass images=")
            images = int(index.max()) + 1
        return cls(index, torch.arange(len(index)), None, images=images, captions=len(index))

    @classmethod
    def from_labels(
        cls, images: Int[Tensor, " image"] | Sequence[int], captions: Int[Tensor, " caption"] | Sequence[int]
    ) -> Relevance:
        """Relevance of items of the same class, as in retrieval across modalities by category.

        Args:
            images: the class of every image.
            captions: the class of every caption.

        >>> Relevance.from_labels([7, 8], [8, 7, 8]).caption.tolist()
        [1, 0, 2]
        """
        image_labels, caption_labels = (torch.as_tensor(labels, device="cpu") for labels in (images, captions))
        image, caption = (image_labels[:, None] == caption_labels).nonzero(as_tuple=True)
        return cls(image, caption, None, images=len(image_labels), captions=len(caption_labels))

    @property
    def caption_image(self) -> Int[Tensor, " caption"] | None:
        """The image of every caption where each has exactly one, else None. Grades are not in it."""
        if not torch.equal(self.caption.bincount(minlength=self.captions), torch.ones(self.captions, dtype=torch.long)):
            return None
        return self.image[self.caption.argsort()]

    @property
    def image_order(self) -> Int[Tensor, " image"]:
        """All images in the order in which the captions first speak of them; last those that have no caption.

        With captions in the order of their file this does not depend on the order in which a store has the images.

        >>> Relevance.from_caption_image([2, 0, 2], images=4).image_order
        tensor([2, 0, 1, 3])
        """
        first = torch.full((self.images,), self.captions, dtype=torch.long)
        first.scatter_reduce_(0, self.image, self.caption, "amin")
        return first.argsort(stable=True)

    def select(
        self, images: Int[Tensor, " some_image"] | Sequence[int], captions: Int[Tensor, " some_caption"] | Sequence[int]
    ) -> Relevance:
        """The relevance among some images and some captions, counted by their places in these lists.

        Raises:
            ValueError: an index is out of range or comes twice.

        >>> part = Relevance.from_caption_image([2, 0, 1]).select(images=[2, 1], captions=[0, 1])
        >>> part.image.tolist(), part.caption.tolist(), part.images, part.captions
        ([0], [0], 2, 2)
        """
        image_place = _places("image", images, self.images)
        caption_place = _places("caption", captions, self.captions)
        image, caption = image_place[self.image], caption_place[self.caption]
        kept = (image >= 0) & (caption >= 0)
        counts = {"images": len(images), "captions": len(captions)}
        return Relevance(image[kept], caption[kept], self.grade[kept], **counts)

    def __repr__(self) -> str:
        return f"Relevance({len(self.image)} pairs of {self.images} images and {self.captions} captions)"


class Judgements(NamedTuple):
    """Relevance that depends on who asks, as in ECCV Caption, which judged other pairs for images than for captions.

    >>> found, asked = (Relevance([0], [caption], None, images=1, captions=2) for caption in (0, 1))
    >>> Judgements(i2t=found, t2i=asked).t2i.caption
    tensor([1])
    """

    i2t: Relevance
    """The right captions of images."""
    t2i: Relevance
    """The right images of captions."""
    absent_captions: Int[Tensor, " image"] | None = None
    """How many more captions are right for each image but are not among those to be found: they count as missed."""
    absent_images: Int[Tensor, " caption"] | None = None
    """How many more images are right for each caption."""


def load_relevance(
    path: str | Path, image_ids: Sequence[str], caption_ids: Sequence[str], *, skip_unknown: bool = False
) -> Relevance:
    """Read judgements: JSON lines of objects with `image_id`, `caption_id` and `grade`, which is 1 where it is missing.

    Args:
        path: the file. Ids may be numbers in it; they are strings from here on.
        image_ids: the name of every image, `RegionStore.image_id` say.
        caption_ids: the name of every caption.
        skip_unknown: leave out judgements of images or captions that are not among these (a file for several splits,
            say) and log how many they are, instead of refusing them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such object, its grade is negative or no finite number, its pair was judged before, its
            image or caption is unknown, or nothing is left; the message names the file and the line. Or an image or a
            caption is in its list twice.

    >>> line = '{"image_id": "7", "caption_id": "70", "grade": 0.5}'
    >>> _ = Path("judgements.jsonl").write_text(line)
    >>> load_relevance("judgements.jsonl", image_ids=["7", "8"], caption_ids=["70"])
    Relevance(1 pairs of 2 images and 1 captions)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of judgements at {path}")
    for argument, ids in (("image_ids", image_ids), ("caption_ids", caption_ids)):
        refuse_string(argument, ids, "ids")
    images = position_by_name(image_ids, "the list of images")
    captions = position_by_name(caption_ids, "the list of captions")
    judged: dict[tuple[int, int], float] = {}
    lines, unknown = 0, 0
    for lines, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {lines}"
        image_id, caption_id, grade = _parse_judgement(line, where)
        if image_id not in images or caption_id not in captions:
            if not skip_unknown:
                raise ValueError(f"{where}: {_unknown(image_id, images, caption_id)}")
            unknown += 1
            continue
        pair = images[image_id], captions[caption_id]
        if pair in judged:
            raise ValueError(f"{where}: image {image_id!r} and caption {caption_id!r} were judged before")
        judged[pair] = grade
    if unknown:
        logger.warning("%s: left out %d of %d judgements, of unknown images or captions", path, unknown, lines)
    if not any(judged.values()):
        raise ValueError(f"{path} has no judgement by which one of these images and captions belong together")
    image, caption = zip(*judged, strict=True)
    return Relevance(image, caption, list(judged.values()), images=len(image_ids), captions=len(caption_ids))


def _parse_judgement(line: str, where: str) -> tuple[str, str, float]:
    """Image id, caption id and grade of one line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}): {line.rstrip()[:80]!r}") from error
    if not isinstance(record, dict) or set(record) | {"grade"} != {"image_id", "caption_id", "grade"}:
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{where}: wanted an object with the keys image_id, caption_id and grade, found {found}")
    for key in ("image_id", "caption_id"):
        if isinstance(record[key], bool) or not isinstance(record[key], str | int):
            raise ValueError(f"{where}: {key} is {record[key]!r}, wanted a string")
    grade = record.get("grade", 1)
    if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 <= grade <= sys.float_info.max:
        raise ValueError(f"{where}: grade is {grade!r:.80}, wanted a finite number of at least 0")
    return str(record["image_id"]), str(record["caption_id"]), float(grade)


def _unknown(image_id: str, images: dict[str, int], caption_id: str) -> str:
    kind, name = ("image", image_id) if image_id not in images else ("caption", caption_id)
    return (
        f"{kind} {name!r} is not among those that are evaluated; take judgements of the same split, or leave out "
        "those of others with skip_unknown"
    )


def _indices(kind: str, values: Tensor | Sequence[int], count: int) -> Int[Tensor, " pair"]:
    """Integer indices as a tensor on the CPU, each from 0 to below the count."""
    indices = torch.as_tensor(values, device="cpu")
    if indices.ndim != 1:
        raise ValueError(f"{kind} has shape {tuple(indices.shape)}; wanted a list of {kind} indices")
    if not indices.numel():
        return indices.long()
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"{kind} is {indices.dtype}; wanted integer {kind} indices")
    outside = ((indices < 0) | (indices >= count)).nonzero()
    if len(outside):
        at = int(outside[0])
        raise ValueError(f"{kind}[{at}] is {int(indices[at])}; wanted an index below the {count} {kind}s there are")
    return indices.long()


def _check_distinct(image: Int[Tensor, " pair"], caption: Int[Tensor, " pair"], captions: int) -> None:
    pairs, counts = (image * captions + caption).unique(return_counts=True)
    twice = pairs[counts > 1]
    if len(twice):
        pair = int(twice[0])
        raise ValueError(
            f"the pair of image {pair // captions} and caption {pair % captions} is listed {int(counts.max())} times; "
            "list each once"
        )


def _places(kind: str, chosen: Tensor | Sequence[int], count: int) -> Int[Tensor, " item"]:
    """Where every item is among the chosen ones; -1 where it is not."""
    indices = _indices(kind, torch.as_tensor(chosen), count)
    if len(indices.unique()) < len(indices):
        raise ValueError(f"{kind}s are chosen more than once; choose each once")
    places = torch.full((count,), -1, dtype=torch.long)
    places[indices] = torch.arange(len(indices))
    return places
