"""Precomputed features with their classes: the HDF5 file of `xmodal prepare labelled features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xmodal.data.atomic import written_whole
from xmodal.data.labelled.base import LabelledBatch, LabelledSet, rows_in_splits
from xmodal.data.positions import as_positions
from xmodal.data.store_checks import check_regular, check_stored, own_dataset, problems_named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor


FEATURE_FORMAT = "xmodal labelled features"


class LabelledFeatures(LabelledSet):
    """Precomputed features with their classes, in memory.

    Args:
        features: one row an image.
        image_id: what each image is called.
        class_of: name of each image's class.
        splits: split of each image.

    >>> features = LabelledFeatures(torch.eye(3), ["1.jpg", "2.jpg", "3.jpg"], ["wren", "gull", "wren"], ["train"] * 3)
    >>> features.__getitems__([2, 0])
    LabelledBatch(images=tensor([[0., 0., 1.],
            [1., 0., 0.]]), labels=tensor([1, 1]))
    """

    def __init__(
        self,
        features: Float[Tensor, "image dim"],
        image_id: Sequence[str],
        class_of: Sequence[str],
        splits: Sequence[str],
    ) -> None:
        super().__init__(image_id, class_of, splits)
        self.features = features

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.features.shape[1]

    @property
    def sizes(self) -> Mapping[str, int]:
        """The length of a feature vector, as backbones call it."""
        return {"input_dim": self.dim}

    def __getitems__(self, indices: Sequence[int]) -> LabelledBatch:
        """The features in the order asked for, float32.

        Raises:
            IndexError: an index is not in the set.
            ValueError: there is no index, or they are no whole numbers.
        """
        chosen = torch.from_numpy(as_positions(indices, len(self), "the set"))
        return LabelledBatch(self.features[chosen].float(), self.labels[chosen])


def save_features(
    path: str | Path, features: Float[Tensor, "image dim"], images: LabelledSet, attributes: dict[str, str]
) -> None:
    """Write the features of a set's images as `load_labelled` reads them.

    Args:
        path: file to write. Its datasets: `features` (image, dim), `label` (image,), `class_name` (class,), `image_id`
            and `split` (image,).
        features: one row an image.
        images: the set they were computed from.
        attributes: where they come from.

    Files of others may keep image ids and labels as whole numbers of any type, labels also as texts, and may leave out
    `class_name` and `split`.

    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["test"] * 2)
    >>> save_features("birds.h5", torch.eye(2), birds, {"backbone": "resnet50"})
    >>> load_features("birds.h5").dim
    2
    """
    import h5py

    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file["features"] = features.numpy()
        file["label"] = images.labels.numpy()
        for name, texts in (
            ("class_name", images.class_names),
            ("image_id", images.image_id),
            ("split", images.splits),
        ):
            # A file name need not be UTF-8: it is kept as the bytes that it is.
            encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
            file.create_dataset(name, data=encoded, dtype=h5py.string_dtype())
        file.attrs.update({"format": FEATURE_FORMAT, **attributes})


def load_features(path: str | Path, wanted: Sequence[str] | None = None) -> LabelledFeatures:
    """Read the features of the splits that are wanted, or all.

    Raises:
        ValueError: the file is damaged or is no such file, no image is in a split, or a feature is not finite.

    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train", "test"])
    >>> save_features("birds.h5", torch.eye(2), birds, {})
    >>> load_features("birds.h5", ["test"]).image_id
    ['2.jpg']
    """
    import h5py

    path = Path(path)
    check_regular(path, "file of labelled features")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file, or is cut off: {error}") from error
    with file, problems_named(path):
        _check_own(file)
        columns = _read_columns(file)
        rows = rows_in_splits(path, columns["split"], wanted)
        # One read of everything and a choice in memory is far faster than h5py's reading of chosen rows.
        features = _as_used(file["features"][:][rows])  # type: ignore[index]
    if not features.isfinite().all():
        row = int(rows[int((~features.isfinite().all(dim=1)).nonzero()[0])])
        raise ValueError(f"{path}: the features of row {row} ({columns['image_id'][row]}) are not finite")
    return LabelledFeatures(
        features, *([columns[name][row] for row in rows] for name in ("image_id", "class_of", "split"))
    )


def _as_used(features: np.ndarray) -> Float[Tensor, "image dim"]:
    """Features in a type that float32 can hold, for that is what batches are in; half precision stays as it is."""
    with np.errstate(over="ignore"):  # what does not fit is infinite, and refused
        return torch.from_numpy(features if features.dtype == np.float16 else features.astype(np.float32, copy=False))


def _check_own(file: Any) -> None:
    """Refuse datasets that lie in other files, or claim more than is stored of them.

    Raises:
        ValueError: one does.
    """
    import h5py

    for name in ("features", "label", "class_name", "image_id", "split"):
        if name in file and file.get(name, getclass=True) is not h5py.Group:  # which is told with what was wanted
            dataset = own_dataset(file, name)
            if dataset.is_virtual:
                raise ValueError(f"its {name} lie in other files; a file reads only itself")
            check_stored(name, dataset)


def _read_columns(file: Any) -> dict[str, list[str]]:
    """Names of the images, of their classes and of their splits; the last two have defaults."""
    missing = [name for name in ("features", "label", "image_id") if name not in file]
    if missing:
        raise ValueError(f"it lacks the datasets {missing}; it has {sorted(map(str, file))}. Wanted labelled features")
    features = file["features"]
    if getattr(features, "ndim", None) != 2 or features.dtype.kind not in "fiu":
        kind = f"{features.dtype} of shape {features.shape}" if hasattr(features, "dtype") else "a group"
        raise ValueError(f"features are {kind}; wanted numbers, (image, dim)")
    columns = {
        "class_of": _read_classes(file),
        "image_id": _read_texts(file, "image_id"),
        "split": _read_texts(file, "split") if "split" in file else ["all"] * len(features),
    }
    for name, column in columns.items():
        if len(column) != len(features):
            raise ValueError(f"features has {len(features)} rows and {name} {len(column)}; wanted as many")
    return columns


def _read_classes(file: Any) -> list[str]:
    """The name of each image's class: of a number what `class_name` says, or the number; a text is the name itself."""
    texts, labels = _read_column(file, "label")
    if texts:
        return texts
    names = _read_texts(file, "class_name") if "class_name" in file else None
    least, most = min(labels, default=0), max(labels, default=0)
    if least < 0 or (names is not None and labels and most >= len(names)):
        wanted = "0 or more" if names is None else f"0 to {len(names) - 1}"
        raise ValueError(f"labels are {least} to {most}; wanted {wanted}")
    if names is None:  # with leading zeros names sort as numbers do
        width = max(6, len(str(most)))
        return [f"{label:0{width}}" for label in labels]
    return [names[label] for label in labels]


def _read_texts(file: Any, name: str) -> list[str]:
    """A column of texts, or of whole numbers, which are texts as well."""
    texts, numbers = _read_column(file, name)
    return texts or [str(number) for number in numbers]


def _read_column(file: Any, name: str) -> tuple[list[str], list[int]]:
    """A column of texts, or else of whole numbers, whatever type these are kept in and however large.

    Raises:
        ValueError: it is neither.
    """
    import h5py

    column = file[name]
    if not isinstance(column, h5py.Dataset) or column.ndim != 1:
        raise ValueError(f"{name} is no column but {column}; wanted one text or number an image")
    if column.dtype.kind in "SO" and h5py.check_string_dtype(column.dtype):
        return [text.decode("utf-8", "surrogateescape") for text in column[:]], []
    if column.dtype.kind not in "iuf":
        raise ValueError(f"{name} is {column.dtype}; wanted texts or whole numbers")
    values = column[:]
    whole = np.isfinite(values) & (values == np.rint(values))
    if not whole.all():
        raise ValueError(f"{name} has {values[~whole][0]}; wanted texts or whole numbers")
    return [], [int(value) for value in values.tolist()]
