"""One way in to a labelled data set, whichever of the three sources it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xmodal.data.labelled.base import rows_in_splits
from xmodal.data.labelled.features import LabelledFeatures, load_features
from xmodal.data.labelled.images import LabelledImages
from xmodal.data.labelled.index import list_folder, load_index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image
    from torch import Tensor


def load_labelled(
    path: str | Path,
    split: str | Sequence[str] | None = None,
    *,
    transform: Callable[[Image.Image], Tensor] | None = None,
    seed: int = 0,
) -> LabelledImages | LabelledFeatures:
    """A split of a labelled data set.

    Args:
        path: an index (`.jsonl`), a folder with one folder a class, or a file of features (`.h5`, `.hdf5`).
        split: the split, or several whose images belong together, such as `["query", "gallery"]`; None for all
            images. The images of a folder have the split `all`.
        transform: for image files; see `image_transform`.
        seed: of what a random transform draws.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the file is none of these or is damaged, no image is in the split, or image files come without a
            transform.

    >>> import torch
    >>> from xmodal.data.labelled import LabelledSet, save_features
    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train", "test"])
    >>> save_features("birds.h5", torch.eye(2), birds, {})
    >>> test = load_labelled("birds.h5", "test")
    >>> test.image_id, test.class_names, test[0].images
    (['2.jpg'], ['gull'], tensor([[0., 1.]]))
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no labelled images at {path}. `xmodal prepare labelled --help` lists what makes them."
        )
    wanted = [split] if isinstance(split, str) else split
    if path.suffix in (".h5", ".hdf5"):
        return load_features(path, wanted)
    images = list_folder(path) if path.is_dir() else load_index(path)
    if transform is None:
        raise ValueError(f"{path} names image files, which need a transform; pass transform=image_transform(...)")
    rows = rows_in_splits(path, [image.split for image in images], wanted)
    return LabelledImages([images[row] for row in rows], transform, seed)
