"""One region store of several: their features stay where they are, behind an HDF5 virtual dataset."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xmodal.data.atomic import refuse_existing, written_whole
from xmodal.data.store_checks import CHECKSUM, COLUMNS, some
from xmodal.data.store_file import open_checked

if TYPE_CHECKING:
    from collections.abc import Sequence


def join_stores(parts: Sequence[str | Path], path: str | Path, *, overwrite: bool = False) -> None:
    """Make a region store that shows the images of others, one store after another.

    Features are not copied, only ids, boxes and the like: the file is small and made at once. It needs the others,
    which it finds by their paths relative to its own folder, so that the folder can be moved as a whole.

    Args:
        parts: region stores in the folder of `path` or below, alike in everything but their images.
        path: the file to make.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        FileNotFoundError: a part is not there.
        ValueError: there is no part; a part is damaged, lies elsewhere, differs from the first one in what made it or
            how it is stored; or an image is in two parts.

    >>> import tempfile
    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("cat", "dog"):
    ...     with RegionStoreWriter(folder / f"{name}.h5", dim=2, extractor="by hand") as writer:
    ...         writer.write(name, [[0, 1], [1, 0]])
    >>> join_stores([folder / "cat.h5", folder / "dog.h5"], folder / "both.h5")
    >>> RegionStore(folder / "both.h5").image_id
    ['cat', 'dog']
    """
    import h5py

    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    if not parts:
        raise ValueError(f"nothing to join: {path} needs at least one part")
    names = [_relative(Path(part), path.parent) for part in parts]
    columns: dict[str, list[np.ndarray]] = {}
    attributes: dict[str, Any] = {}
    kind: tuple[Any, ...] = ()
    for part in map(Path, parts):
        with open_checked(part) as opened:
            found = {key: value for key, value in opened.attrs.items() if key != "created"}
            looks = (opened["features"].shape[1:], opened["features"].dtype, sorted(set(opened).intersection(COLUMNS)))
            if columns and (found, looks) != (attributes, kind):
                raise ValueError(
                    f"{part} was not made like {parts[0]}: {(found, looks)}, wanted {(attributes, kind)}. "
                    "Join only stores of one extractor with the same options."
                )
            attributes, kind = found, looks
            for name in set(opened) - {"features"}:
                columns.setdefault(name, []).append(opened[name][:])
    # Checksums go with the images only if all parts have them: those from before there were any do not.
    complete = {name for name, arrays in columns.items() if len(arrays) == len(parts) or name != CHECKSUM}
    rows = {name: np.concatenate(arrays) for name, arrays in columns.items() if name in complete}
    image_ids, counts = np.unique(rows["image_id"], return_counts=True)
    if (counts > 1).any():
        doubled = [name.decode(errors="surrogateescape") for name in image_ids[counts > 1]]
        raise ValueError(f"{some(doubled)} in more than one part of {path}")
    (max_regions, dim), dtype, _ = kind
    layout = h5py.VirtualLayout((len(rows["image_id"]), max_regions, dim), dtype)
    start = 0
    for name, ids in zip(names, columns["image_id"], strict=True):
        layout[start : start + len(ids)] = h5py.VirtualSource(name, "features", (len(ids), max_regions, dim), dtype)
        start += len(ids)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(written_whole(path, overwrite=overwrite))
        file = stack.enter_context(h5py.File(temporary, "w"))
        file.create_virtual_dataset("features", layout)
        for name, values in rows.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype() if name == "image_id" else None)
        file.attrs.update(attributes)
        file.attrs["created"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _relative(part: Path, folder: Path) -> str:
    """The path of a part as the joined store notes it."""
    try:
        return part.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise ValueError(
            f"{part} is not in {folder} or a folder in it, where a store joined of it could find it"
        ) from None
