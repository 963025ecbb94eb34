"""A split of a data folder: its images, its captions, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xmodal.data.captions import Caption, caption_image_index, load_captions
from xmodal.data.image_source import ImageSource
from xmodal.data.pixels import PixelFolder
from xmodal.data.positions import as_positions
from xmodal.data.region_store import RegionStore
from xmodal.data.relevance import Relevance
from xmodal.data.vocabulary import Vocabulary
from xmodal.names import build, find
from xmodal.signatures import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

CAPTIONS = "captions.jsonl"
"""The file of a data folder that has the captions of all splits."""

VOCABULARY = "vocabulary.json"
"""The file of a data folder that has the words which models that count words know."""

KIND = "image source"

SOURCES: dict[str, Callable[..., ImageSource]] = {"regions": RegionStore, "pixels": PixelFolder}
"""Where images come from, by the name that a configuration uses."""


@dataclass(frozen=True)
class Split:
    """Images, captions, and which belong together; images and captions are numbered by their places here."""

    source: ImageSource
    captions: Sequence[Caption]
    relevance: Relevance

    @classmethod
    def of(cls, source: ImageSource, captions: Sequence[Caption], *, every_image: bool = True) -> Split:
        """Images and captions that go together by the names of the images; see `open_split`."""
        index = caption_image_index(captions, source.image_id, every_image=every_image)
        return cls(source, captions, Relevance.from_caption_image(index, len(source)))

    @property
    def sentences(self) -> list[str]:
        """The captions without their ids."""
        return [caption.caption for caption in self.captions]

    def first(self, images: int) -> Split:
        """The images that the captions speak of first, and what is said about them; all where there are no more."""
        if images >= len(self.source):
            return self
        chosen = self.relevance.image_order[:images]
        captions = self.relevance.caption[torch.isin(self.relevance.image, chosen)].unique()
        return Split(
            SomeImages(self.source, chosen.tolist()),
            [self.captions[caption] for caption in captions.tolist()],
            self.relevance.select(chosen, captions),
        )


class SomeImages(ImageSource):
    """Some images of another source, in an order of their own.

    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> with RegionStoreWriter("test.h5", dim=2, extractor="by hand") as writer:
    ...     for name in ("cat", "dog", "owl"):
    ...         writer.write(name, [[1, 0]])
    >>> SomeImages(RegionStore("test.h5"), [2, 0]).image_id
    ['owl', 'cat']
    """

    def __init__(self, source: ImageSource, positions: Sequence[int]) -> None:
        self.source, self.positions = source, torch.from_numpy(as_positions(positions, len(source), "the source"))

    @property
    def image_id(self) -> Sequence[str]:
        """Their names."""
        names = self.source.image_id
        return [names[int(position)] for position in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: Sequence[int] | Tensor) -> Any:
        """As the other source gives them."""
        return self.source.batch(self.positions[as_positions(indices, len(self), "the selection")])

    @property
    def sizes(self) -> Mapping[str, int]:
        """Those of the other source."""
        return self.source.sizes

    @property
    def extractor(self) -> dict[str, Any] | None:
        """That of the other source."""
        return self.source.extractor

    @property
    def has_regions(self) -> bool:
        """As the other source."""
        return self.source.has_regions


def open_split(
    folder: str | Path, split: str, source: Mapping[str, Any] | None = None, *, every_image: bool = True
) -> Split:
    """The images of a split of a data folder and the captions about them.

    Args:
        folder: the data folder, with `captions.jsonl`.
        split: which split.
        source: where the images come from, `{"name": "regions"}` for the folder's `{split}.h5` (also where it is empty
            or None), or another name in `SOURCES` with its options.
        every_image: whether an image without a caption is an error. Evaluation wants that; training need not.

    Raises:
        FileNotFoundError: captions or images are not there.
        ValueError: they do not belong together, or the source cannot be what is asked for.

    >>> from xmodal.data import Caption, RegionStoreWriter, save_captions
    >>> with RegionStoreWriter("test.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("7", [[1, 0], [0, 1]])
    ...     writer.write("8", [[1, 1]])
    >>> save_captions("captions.jsonl", [Caption("8", "0", "a dog", "test"), Caption("7", "1", "a cat", "test")])
    >>> split = open_split(".", "test")
    >>> split.sentences, split.relevance.caption_image, split.first(1).source.image_id
    (['a dog', 'a cat'], tensor([1, 0]), ['8'])
    """
    captions = split_captions(folder, split)  # First: the captions know which splits there are.
    return Split.of(open_source(folder, split, source), captions, every_image=every_image)


def store_file(folder: str | Path, split: str) -> Path:
    """Where a data folder has the region store of a split.

    >>> store_file("data/f30k", "dev").name
    'dev.h5'
    """
    return Path(folder) / f"{split}.h5"


def files_of(folder: str | Path, split: str) -> list[Path]:
    """What a data folder has of a split: captions, vocabulary and region store, whether or not they are there.

    >>> [path.name for path in files_of("data/f30k", "dev")]
    ['captions.jsonl', 'vocabulary.json', 'dev.h5']
    """
    return [Path(folder) / CAPTIONS, Path(folder) / VOCABULARY, store_file(folder, split)]


def split_captions(folder: str | Path, split: str) -> list[Caption]:
    """The captions of a split of a data folder, in the order of their file; errors are those of `load_captions`.

    >>> from xmodal.data import Caption, save_captions
    >>> save_captions("captions.jsonl", [Caption("8", "0", "a dog", "test"), Caption("7", "1", "a cat", "train")])
    >>> [caption.image_id for caption in split_captions(".", "test")]
    ['8']
    """
    return load_captions(Path(folder) / CAPTIONS, split)


def open_vocabulary(folder: str | Path) -> Vocabulary:
    """The vocabulary of a data folder; errors are those of `Vocabulary.load`.

    >>> Vocabulary(["a", "dog"]).save("vocabulary.json")
    >>> open_vocabulary(".").words[-1]
    'dog'
    """
    return Vocabulary.load(Path(folder) / VOCABULARY)


def open_source(
    folder: str | Path, split: str, source: Mapping[str, Any] | None = None, *, as_stored: bool = False
) -> ImageSource:
    """The images of a split of a data folder; see `open_split`.

    `as_stored` leaves features in the numbers that they are stored in, for whoever makes them float32 later.

    A source that takes a `path` gets the split's file in the data folder, one that takes `image_id` the names of the
    images that the captions of the split speak of, in that order.

    >>> from xmodal.data import RegionStoreWriter
    >>> with RegionStoreWriter("test.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("7", [[1, 0], [0, 1]])
    >>> open_source(".", "test").image_id
    ['7']
    """
    options = {"name": "regions", **(source or {})}
    known: dict[str, Any] = {"path": store_file(folder, split)}
    if as_stored and options["name"] == "regions":
        options.setdefault("dtype", "stored")
    if "image_id" in options_of(find(KIND, SOURCES, options["name"])).named:
        known["image_id"] = list(dict.fromkeys(caption.image_id for caption in split_captions(folder, split)))
    return build(KIND, SOURCES, options, known)
