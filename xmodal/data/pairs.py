"""Captions with their images, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from xmodal.data.captions import caption_image_index
from xmodal.data.positions import as_positions
from xmodal.data.tokenized import KeptTokens, tokenized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor

    from xmodal.data.captions import Caption
    from xmodal.data.image_source import ImageSource
    from xmodal.data.vocabulary import TokenBatch


class PairBatch(NamedTuple):
    """Some captions, each with its image."""

    images: Any
    """The images as their source gives them, a `RegionBatch` say: what an image tower takes."""
    tokens: Int[Tensor, "pair word"]
    word_mask: Bool[Tensor, "pair word"]
    image: Int[Tensor, "pair"]
    """Where each pair's image is in the source: equal numbers are one image, and no negatives of each other."""
    caption: Int[Tensor, "pair"]
    """Where each pair's caption is in the dataset."""


class PairDataset(Dataset[PairBatch]):
    """Every caption once, with its image. Captions are tokenized at construction, images are read when asked for.

    A `DataLoader` gets whole batches from `__getitems__`, each one read from the source in one go, so it needs no
    collating: give it `collate_fn=whole_batch`.

    Args:
        source: the images.
        captions: the captions, all about images of the source. Images without a caption are never drawn.
        tokenizer: captions to padded numbers: a `Vocabulary`, or a transformer's own tokenizer.
        kept: where the numbers of many captions are kept for the next time.
        progress: show a bar while captions are tokenized.

    Raises:
        ValueError: a caption's image is not in the source, or a caption has no words.

    >>> from xmodal.data import Caption, RegionStore, RegionStoreWriter, Vocabulary
    >>> with RegionStoreWriter("train.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("7", [[1, 0], [0, 1]])
    ...     writer.write("8", [[1, 1]])
    >>> captions = [Caption("8", "0", "A cat.", "train"), Caption("7", "1", "A big dog.", "train")]
    >>> pairs = PairDataset(RegionStore("train.h5"), captions, Vocabulary(["a", "big", "dog", "cat", "."]))
    >>> batch = pairs.__getitems__([0, 1])
    >>> batch.tokens, batch.images.region_mask, batch.image
    (tensor([[1, 4, 7, 8, 2, 0],
            [1, 4, 5, 6, 8, 2]]), tensor([[ True, False],
            [ True,  True]]), tensor([1, 0]))
    """

    def __init__(
        self,
        source: ImageSource,
        captions: Sequence[Caption],
        tokenizer: Callable[[Sequence[str]], TokenBatch],
        *,
        kept: KeptTokens | None = None,
        progress: bool = True,
    ) -> None:
        self.source = source
        self.caption_image = caption_image_index(captions, source.image_id, every_image=False)
        self._words, self._start = tokenized(
            [caption.caption for caption in captions], tokenizer, kept, progress=progress
        )

    def __len__(self) -> int:
        return len(self.caption_image)

    def __getitem__(self, index: int) -> PairBatch:
        """A batch of one pair."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> PairBatch:
        """The pairs of some captions, padded to the longest of them.

        Raises:
            IndexError: an index is not in the dataset.
            ValueError: there is no index, or they are no whole numbers.
        """
        caption = torch.from_numpy(as_positions(indices, len(self), "the dataset", "captions"))
        image = self.caption_image[caption]
        start, end = self._start[caption], self._start[caption + 1]
        words = [self._words[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)]
        tokens = pad_sequence(words, batch_first=True)
        word_mask = torch.arange(tokens.shape[1]) < (end - start)[:, None]
        return PairBatch(self.source.batch(image), tokens, word_mask, image, caption)


def whole_batch(batch: Any) -> Any:
    """The `collate_fn` of a dataset whose `__getitems__` gives whole batches, as `PairDataset`'s does.

    >>> from torch.utils.data import DataLoader
    >>> from xmodal.data.labelled import LabelledFeatures
    >>> images = LabelledFeatures(torch.eye(3), ["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["train"] * 3)
    >>> [batch.labels for batch in DataLoader(images, batch_size=2, collate_fn=whole_batch)]
    [tensor([1, 0]), tensor([1])]
    """
    return batch
