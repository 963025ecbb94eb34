"""What an image source is: anything that gives batches of images by their positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class ImageSource(Protocol):
    """Images by position: of a region store, of a folder of photographs, or of anything else.

    Three members make a source: `image_id`, `len` and `batch`. The others have defaults, which a subclass inherits.
    A source is pickled into the workers of a `DataLoader`, so files are opened where they are first read.
    """

    if TYPE_CHECKING:  # not there when the code runs, so that a plain attribute will do as well

        @property
        def image_id(self) -> Sequence[str]:
            """The name of every image, in order."""
            ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def batch(self, indices: Sequence[int] | Tensor) -> Any:
        """Some images, as a NamedTuple of tensors, or None where a field is not there: what an image tower takes."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """What image encoders may be told about the batches, by the names of their options: `{"input_dim": 2048}`."""
        return {}

    @property
    def extractor(self) -> dict[str, Any] | None:
        """How an image file becomes one of these images, `{"name": ..., **options}`; None where that is not known."""
        return None

    @property
    def has_regions(self) -> bool:
        """Whether batches are `RegionBatch`es, of whose regions training may leave some out."""
        return False


def in_float32(batch: Any) -> Any:
    """A batch of a source whose half-precision numbers are float32: what travels in half the bytes is computed with so.

    >>> from xmodal.data import RegionBatch
    >>> in_float32(RegionBatch(torch.ones(2, 36, 8, dtype=torch.float16), torch.ones(2, 36) > 0)).regions.dtype
    torch.float32
    """
    halves = (torch.float16, torch.bfloat16)
    fields = batch._asdict().items()
    return batch._replace(**{name: field.float() for name, field in fields if getattr(field, "dtype", None) in halves})
