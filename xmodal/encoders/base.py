"""What an image encoder and a text encoder are: what they take, what they return, what they say about themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import nn

from xmodal.data.region_store import RegionBatch
from xmodal.numerics import check_share

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int, Num
    from torch import Tensor

    from xmodal.data.vocabulary import TokenBatch


class EncodedSet(NamedTuple):
    """Encoded images or captions, padded to the longest: what a head takes."""

    items: Float[Tensor, "set item dim"]
    mask: Bool[Tensor, "set item"]


class Tokenizer(Protocol):
    """Turns captions into padded numbers: `xmodal.data.Vocabulary`, or the subwords of a transformer."""

    @property
    def words(self) -> list[str]:
        """Every word or subword, in the order of its number."""
        ...

    def __call__(self, captions: Sequence[str], /) -> TokenBatch:
        """Numbers and mask, padded to the longest caption."""
        ...


class ImageEncoder(nn.Module):
    """Embeds images: takes a batch of what an image source gives and returns items in the joint space, and their mask.

    A subclass gives `dim` and `forward`. The batch is the source's own: `RegionStore` gives a `RegionBatch`, with boxes
    where it has them, `PixelFolder` a `PixelBatch`. Padding must not change the items that are real. An option called
    `weights` says where pretrained weights come from: it is None where saved ones are read afterwards.

    >>> class Located(ImageEncoder):
    ...     '''Regions that know where they are.'''
    ...
    ...     def __init__(self, input_dim: int, dim: int) -> None:
    ...         super().__init__()
    ...         self.dim = dim
    ...         self.look, self.place = nn.Linear(input_dim, dim), nn.Linear(4, dim)
    ...
    ...     def forward(self, batch):
    ...         return EncodedSet(self.look(batch.regions) + self.place(batch.boxes), batch.region_mask)
    >>> real = torch.ones(2, 36, dtype=torch.bool)
    >>> Located(2048, 64)(RegionBatch(torch.randn(2, 36, 2048), real, torch.rand(2, 36, 4))).items.shape
    torch.Size([2, 36, 64])
    """

    dim: int
    """Length of an item."""

    image_axes: ClassVar[tuple[str, ...]] = ("region", "dim")
    """Axes of one image as an array, where a user gives it as one."""

    def forward(self, batch: Any) -> EncodedSet:
        """Items of the images and their mask, True = real; every image has at least one."""
        raise NotImplementedError

    def example_batch(self, images: int, items: int, generator: torch.Generator) -> Any:
        """A batch of random images, of at most so many items each where that is not fixed: to trace the encoder with.

        Raises:
            NotImplementedError: for an encoder that does not say what it takes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it takes; give it a method example_batch(images, items, "
            "generator) that returns a batch of its source, to export it"
        )

    def as_batch(self, image: Num[Tensor, "..."]) -> Any:
        """The batch of one image that a user gave as an array; here of its region features.

        Raises:
            ValueError: the array is none of an image.
        """
        if image.ndim != 2 or len(image) == 0:
            raise ValueError(
                f"region features must be ({', '.join(self.image_axes)}) with at least one region, "
                f"got {tuple(image.shape)}"
            )
        return RegionBatch(image[None].float(), torch.ones(1, len(image), dtype=torch.bool, device=image.device))


class TextEncoder(nn.Module):
    """Embeds captions: takes token numbers and their mask and returns a state a token in the joint space.

    A subclass gives `dim` and `forward`; whatever else it has to say, it says in place of the defaults below.

    >>> class Words(TextEncoder):
    ...     '''A bag of words, each for itself.'''
    ...
    ...     def __init__(self, vocabulary_size: int, dim: int) -> None:
    ...         super().__init__()
    ...         self.dim, self.embedding = dim, nn.Embedding(vocabulary_size, dim)
    ...
    ...     def forward(self, tokens, word_mask):
    ...         return self.embedding(tokens)
    >>> Words(100, 8)(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 5, 8])
    """

    dim: int
    """Length of a state."""

    tokenizer: Tokenizer | None = None
    """What turns captions into numbers, where that comes with the encoder; others take `vocabulary_size`."""

    def forward(
        self, tokens: Int[Tensor, "caption word"], word_mask: Bool[Tensor, "caption word"]
    ) -> Float[Tensor, "caption word dim"]:
        """A state for every token; padding gives some value that the mask keeps out of every score."""
        raise NotImplementedError

    @property
    def tokenizer_identity(self) -> str | None:
        """A hash of all that its tokenizer's numbers depend on, so that they may be kept; None if that is not known."""
        return None

    def start_from(self, vectors: Float[Tensor, "word word_dim"], found: Bool[Tensor, " word"]) -> None:
        """Start the embeddings of the words that were found from pretrained vectors.

        Raises:
            ValueError: the encoder has no embeddings of whole words.
        """
        raise ValueError(
            f"word_vectors start embeddings of words, which {type(self).__name__} has not; a transformer brings its own"
        )

    def save_architecture(self, folder: Path) -> None:
        """Write into a folder what building the encoder takes besides its options; by default that is nothing."""

    @classmethod
    def options_to_load(cls, options: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The options with which to build an encoder whose architecture and weights were saved in a folder."""
        return options


def check_dropout(**shares: float) -> None:
    """Make sure that shares of values can be dropped at random: from 0, for none, to below 1.

    >>> check_dropout(input_dropout=0.2, dropout=1.0)
    Traceback (most recent call last):
    ...
    ValueError: dropout must be at least 0 and below 1, got 1.0
    """
    for name, share in shares.items():
        check_share(name, share)
