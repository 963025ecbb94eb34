"""From records of precomputed features to a region store: what the converters share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Literal, NamedTuple

from xmodal.data import RegionStoreWriter
from xmodal.data.image_folder import coco_number

from .image_ids import read_image_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np


class Record(NamedTuple):
    """One image; boxes are x1 y1 x2 y2 in its pixels."""

    features: np.ndarray
    boxes: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    class_id: np.ndarray | None = None
    confidence: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What every converter writes."""

    output: Path
    """The region store to write (HDF5)."""
    captions: Path | None = None
    """Take only the images named here: a captions file, or Karpathy's or COCO's JSON."""
    split: str | None = None
    """With --captions: take only the images of this split."""
    coco_ids: bool = False
    """Name the image of COCO_val2014_000000391895 by its COCO id, 391895, as Karpathy's captions do."""
    dim: int = 2048
    """Length of a feature vector."""
    max_regions: int = 36
    """The most regions an image has; adaptive bottom-up features have up to 100."""
    dtype: Literal["float16", "float32"] = "float32"
    """How features are stored; float16 halves the file."""
    extractor: str = "bottom-up attention"
    """What made the features."""
    skip_bad: bool = False
    """Count it as success when damaged or repeated records were left out."""
    overwrite: bool = False
    """Replace the output if it exists."""

    def wanted(self) -> dict[str, None] | None:
        """The images to take, in order; None for all.

        Raises:
            ValueError: --split without --captions, or the captions name no image of the split.
        """
        if self.captions is not None:
            return dict.fromkeys(read_image_names(self.captions, self.split))
        if self.split is not None:
            raise ValueError(f"--split {self.split} needs --captions: features by themselves belong to no split")
        return None

    def image_id(self, name: str) -> str:
        """What the store calls an image."""
        return coco_number(name) if self.coco_ids else name


def convert(
    config: StoreConfig, records: Iterable[tuple[str, str, Callable[[], Record]]]
) -> tuple[int, dict[str, str]]:
    """Write the store, record by record; damaged and repeated records are left out.

    Args:
        config: what to write.
        records: where a record is (file and row), its image's name (empty if it cannot be told), and a function that
            reads it and raises ValueError if it is damaged. It is called only for images that are wanted.

    Returns:
        How many images were written; and of what was left out, where it was and why.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        ValueError: no record is good.

    >>> import numpy as np
    >>> records = [("row 1", "7", lambda: Record(np.ones((2, 3)))), ("row 2", "7", lambda: Record(np.ones((2, 3))))]
    >>> convert(StoreConfig(output=Path("train.h5"), dim=3), records)
    (1, {'row 2': "image '7' came before, in row 1"})
    """
    wanted = config.wanted()
    skipped: dict[str, str] = {}
    seen: dict[str, str] = {}
    with RegionStoreWriter(
        config.output,
        dim=config.dim,
        max_regions=config.max_regions,
        dtype=config.dtype,
        extractor=config.extractor,
        overwrite=config.overwrite,
    ) as writer:
        for where, name, read in records:
            image_id = config.image_id(name)
            if wanted is not None and image_id and image_id not in wanted:
                continue
            try:
                if image_id in seen:
                    raise ValueError(f"image {image_id!r} came before, in {seen[image_id]}")
                record = read()
                writer.write(
                    image_id,
                    record.features,
                    record.boxes,
                    record.image_size,
                    class_id=record.class_id,
                    confidence=record.confidence,
                )
            except ValueError as error:
                skipped[where] = str(error)
            else:
                seen[image_id] = where
        for image_id in wanted or ():
            if image_id not in seen:
                skipped[f"image {image_id}"] = f"named in {config.captions}, but no good record has it"
        if not seen:
            where, why = next(iter(skipped.items()), ("the input", "it names none of the wanted images"))
            raise ValueError(f"{config.output} was not written, for no record is good. {where}: {why}")
    return len(seen), skipped
