"""What images with class labels have in common, whether they are pixels or features."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from xmodal.data.strings import refuse_string

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int, UInt8
    from torch import Tensor


QUERY = "query"
"""The split whose images are looked up among all others, where a data set says which those are (In-Shop)."""


class LabelledBatch(NamedTuple):
    """Some images, or their features, with their classes."""

    images: UInt8[Tensor, "image 3 height width"] | Float[Tensor, "image dim"]
    labels: Int[Tensor, "image"]


class LabelledSet(Dataset[LabelledBatch]):
    """Images with labels 0 to C - 1, the position of the class's name among the sorted names.

    A `DataLoader` gets whole batches from `__getitems__`, so it needs no collating.

    Attributes:
        image_id: what each image is called, its path if it has one.
        labels: class of each image.
        class_names: name of each class.
        splits: split of each image.

    >>> birds = LabelledSet(["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["query", "gallery", "gallery"])
    >>> birds.class_names, birds.labels, birds.query
    (['gull', 'wren'], tensor([1, 0, 1]), tensor([ True, False, False]))
    """

    def __init__(self, image_id: Sequence[str], class_of: Sequence[str], splits: Sequence[str]) -> None:
        for name, given in (("image_id", image_id), ("class_of", class_of), ("splits", splits)):
            refuse_string(name, given, "names, one an image")
        self.image_id, self.splits = list(image_id), list(splits)
        self.class_names = sorted(set(class_of))
        number = {name: label for label, name in enumerate(self.class_names)}
        self.labels: Int[Tensor, "image"] = torch.tensor([number[name] for name in class_of])

    @property
    def sizes(self) -> Mapping[str, int]:
        """What backbones may be told about the images, by the names of their options: `{"input_dim": 1280}`."""
        return {}

    @property
    def query(self) -> Bool[Tensor, "image"] | None:
        """Which images are queries and which are the gallery; None where every image is both."""
        return torch.tensor([split == QUERY for split in self.splits]) if QUERY in self.splits else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledBatch:
        """A batch of one image."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The images in the order asked for."""
        raise NotImplementedError


def check_class_disjoint(train: LabelledSet, test: LabelledSet) -> None:
    """Make sure that no class is in both sets.

    Raises:
        ValueError: some are; the message names them.

    >>> train = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train"] * 2)
    >>> check_class_disjoint(train, LabelledSet(["3.jpg"], ["gull"], ["test"]))
    Traceback (most recent call last):
    ...
    ValueError: 1 classes are in the training images and in those for evaluation, ...: gull. ...
    """
    leaked = sorted(set(train.class_names) & set(test.class_names))
    if leaked:
        raise ValueError(
            f"{len(leaked)} classes are in the training images and in those for evaluation, so it would not be "
            f"zero-shot: {', '.join(leaked[:5])}{', ...' if len(leaked) > 5 else ''}. Give each class one split."
        )


def rows_in_splits(path: str | Path, splits: Sequence[str], wanted: Sequence[str] | None) -> Int[np.ndarray, "row"]:
    """Which rows are in the splits that are wanted, or all.

    Args:
        path: what the rows are of, for errors.
        splits: split of every row.
        wanted: the splits asked for; None for all.

    Raises:
        ValueError: a split that is wanted has no row.

    >>> rows_in_splits("birds.h5", ["train", "query", "gallery"], ["query", "gallery"])
    array([1, 2])
    """
    refuse_string("wanted", wanted, "splits")
    counts = Counter(splits)
    for split in wanted or ():
        if split not in counts:
            raise ValueError(f"{path} has no image of split {split!r}; its splits are {dict(counts)}")
    return np.flatnonzero([wanted is None or split in wanted for split in splits])
