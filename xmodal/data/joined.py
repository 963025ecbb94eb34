"""One region store of several: their features stay where they are, behind an HDF5 virtual dataset."""

from __future__ import annotations

import contextlib
import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xmodal.data.atomic import refuse_existing, refuse_inputs, written_whole
from xmodal.data.store_checks import CHECKSUM, COLUMNS, part_of, some
from xmodal.data.store_file import open_checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


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
            how it is stored, or is `path` itself or joined of it; or an image is in two parts.

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
    kind, columns = _read_alike(parts)
    refuse_inputs(path, chain.from_iterable(_files_of(Path(part)) for part in parts))
    # Checksums go with the images only if all parts have them: those from before there were any do not.
    complete = {name for name, arrays in columns.items() if len(arrays) == len(parts) or name != CHECKSUM}
    rows = {name: np.concatenate(arrays) for name, arrays in columns.items() if name in complete}
    image_ids, counts = np.unique(rows["image_id"], return_counts=True)
    if (counts > 1).any():
        doubled = [name.decode(errors="surrogateescape") for name in image_ids[counts > 1]]
        raise ValueError(f"{some(doubled)} in more than one part of {path}")
    layout = h5py.VirtualLayout((len(rows["image_id"]), *kind.shape), kind.dtype)
    start = 0
    for name, ids in zip(names, columns["image_id"], strict=True):
        layout[start : start + len(ids)] = h5py.VirtualSource(name, "features", (len(ids), *kind.shape), kind.dtype)
        start += len(ids)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(written_whole(path, overwrite=overwrite))
        file = stack.enter_context(h5py.File(temporary, "w"))
        file.create_virtual_dataset("features", layout)
        for name, values in rows.items():
            file.create_dataset(name, data=values, dtype=h5py.string_dtype() if name == "image_id" else None)
        file.attrs.update(kind.attributes)
        file.attrs["created"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class _Kind(NamedTuple):
    """What made a store, and how it is stored: alike in all parts."""

    attributes: dict[str, Any]
    shape: tuple[int, int]
    """Of an image: (region, dim)."""
    dtype: np.dtype
    columns: list[str]


def _read_alike(parts: Sequence[str | Path]) -> tuple[_Kind, dict[str, list[np.ndarray]]]:
    """The kind of all parts, and their datasets but the features, part by part.

    Raises:
        ValueError: a part is of another kind than the first.
    """
    kinds: list[_Kind] = []
    columns: dict[str, list[np.ndarray]] = {}
    for part in parts:
        with open_checked(Path(part)) as opened:
            attributes = {key: value for key, value in opened.attrs.items() if key != "created"}
            features, known = opened["features"], sorted(set(opened).intersection(COLUMNS))
            kinds.append(_Kind(attributes, features.shape[1:], features.dtype, known))
            if kinds[-1] != kinds[0]:
                raise ValueError(
                    f"{part} was not made like {parts[0]}: {tuple(kinds[-1])}, wanted {tuple(kinds[0])}. "
                    "Join only stores of one extractor with the same options."
                )
            for name in set(opened) - {"features"}:
                columns.setdefault(name, []).append(opened[name][:])
    return kinds[0], columns


def _files_of(part: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files that the features of a store are in: its own, and if it is joined of others, those."""
    if part.resolve() in above:
        raise ValueError(f"{above[0]} is joined of itself, by way of {part}. Make it again.")
    yield part
    with open_checked(part) as opened:
        features = opened["features"]
        names = {source.file_name for source in features.virtual_sources()} if features.is_virtual else ()
    for name in names:
        yield from _files_of(part_of(part, name), (*above, part.resolve()))


def _relative(part: Path, folder: Path) -> str:
    """The path of a part as the joined store notes it."""
    try:
        return part.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise ValueError(
            f"{part} is not in {folder} or a folder in it, where a store joined of it could find it"
        ) from None
