"""A region store made in numbered parts, by one process or several, that survives being killed.

A part is a small region store beside a note of what was left out of it; the note is written last and marks the part as
done. Both appear whole or not at all, so that whoever starts again goes on with the parts that are not done.

Which photographs are in which part is planned once. Whoever takes bad ones away, or repairs them, keeps the parts that
these do not concern.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any, Literal

import h5py
from tqdm import tqdm

from xmodal.data import RegionStoreWriter
from xmodal.data.atomic import link, remove_remains, written_whole
from xmodal.data.joined import join_stores
from xmodal.data.store_checks import CHECKSUM

from .skipped import write_skipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np

Join = Literal["auto", "copy", "virtual"]
Plan = list[list[dict[str, Any]]]

JOINED = "joined"
"""File among the parts that is there while a store which was not there before is made of them."""

LARGE = 16 * 10**9
"""Bytes from which `auto` no longer copies: it would take minutes, and for that time the room of two stores."""


class PartFiles:
    """The files of the parts of a region store, in a folder beside it.

    Args:
        output: the store to make; the parts are in `<output>.parts`.
        settings: whatever decides about the contents. Parts of other settings are never mixed with these.

    Raises:
        ValueError: parts that were made with other settings are there.

    >>> from pathlib import Path
    >>> from xmodal.data import RegionStore
    >>> parts, options = PartFiles(Path("train.h5"), {}), {"dim": 2, "max_regions": 3, "extractor": "by hand"}
    >>> with parts.writer(0, options) as writer:
    ...     writer.write("7", [[1, 0], [0, 1]])
    >>> parts.finish(0, {"skipped": {}})
    >>> parts.put_together(1, options, "auto", {}, overwrite=False)
    >>> RegionStore("train.h5").image_id
    ['7']
    """

    def __init__(self, output: Path, settings: Any) -> None:
        self.output = output
        self.folder = folder_of_parts(output)
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        known = self.folder / "settings.sha256"
        if not known.exists():
            with written_whole(known) as temporary:
                temporary.write_text(fingerprint)
        elif known.read_text() != fingerprint:
            raise self.of_another_run()

    def writer(self, number: int, options: Mapping[str, Any]) -> RegionStoreWriter:
        """The writer of one part."""
        return RegionStoreWriter(self.store(number), **{"overwrite": True, **options})

    def finish(self, number: int, note: Mapping[str, Any]) -> None:
        """Note what came of a part, which is done with this."""
        with written_whole(self._note(number)) as temporary:
            temporary.write_text(json.dumps(note), "utf-8")

    def note(self, number: int) -> dict[str, Any] | None:
        """What was noted of a part; None if it is not done.

        Raises:
            ValueError: the note is damaged.
        """
        path = self._note(number)
        if not path.exists():
            return None
        try:
            return dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}). Remove it, and the part is made again.") from error

    def undo(self, number: int) -> None:
        """Take back a part."""
        self._note(number).unlink()
        self.store(number).unlink(missing_ok=True)

    def put_together(
        self, count: int, options: Mapping[str, Any], how: Join, skipped: Mapping[str, str], *, overwrite: bool
    ) -> None:
        """Make the store of the first so many parts, one after another, and the list of what was left out.

        The parts are removed last, unless the store needs them: until then whoever is killed goes on from here.

        Args:
            count: how many parts there are; those without an image have no store.
            options: what `RegionStoreWriter` takes besides the path.
            how: `copy` makes one file. `virtual` leaves the features in the parts, which the store then needs. `auto`
                copies what is smaller than `LARGE`.
            skipped: what was left out, and why.
            overwrite: whether an existing store may be replaced.

        Raises:
            FileExistsError: the store exists and may not be replaced.
        """
        if not is_put_together(self.output):
            self._join(count, options, how, overwrite=overwrite)
        write_skipped(self.output, skipped)
        _close(self.output)

    def _join(self, count: int, options: Mapping[str, Any], how: Join, *, overwrite: bool) -> None:
        if not self.output.exists():
            with written_whole(self._joined):
                pass
        stores = [store for store in map(self.store, range(count)) if store.exists()]
        if how == "virtual" or (how == "auto" and sum(store.stat().st_size for store in stores) >= LARGE):
            join_stores(stores, self.output, overwrite=overwrite)
            remove_remains(self.folder)
        elif len(stores) == 1:
            with written_whole(self.output, overwrite=overwrite) as temporary:
                temporary.unlink()
                link(stores[0], temporary)
        else:
            with RegionStoreWriter(self.output, overwrite=overwrite, **options) as writer:
                for store in tqdm(stores, desc="joining", unit="part", delay=2):
                    for image_id, row in _rows(store):
                        writer.write(image_id, **row)

    def store(self, number: int) -> Path:
        """The region store of a part."""
        return self.folder / f"{number:06}.h5"

    def of_another_run(self) -> ValueError:
        """What is wrong with parts that do not fit."""
        return ValueError(
            f"{self.folder} holds parts of an earlier run with other images or options. Repeat it as it was, less the "
            f"images that are bad, to go on with them, or remove the folder to start anew (and {self.output.name}, if "
            "it was joined virtually)."
        )

    @property
    def _joined(self) -> Path:
        return self.folder / JOINED

    def _note(self, number: int) -> Path:
        return self.folder / f"{number:06}.skipped.json"


def folder_of_parts(output: Path) -> Path:
    """Where the parts of a store are.

    >>> from pathlib import Path
    >>> folder_of_parts(Path("data/train.h5")).as_posix()
    'data/train.h5.parts'
    """
    return output.with_name(f"{output.name}.parts")


def is_put_together(output: Path) -> bool:
    """Whether a store that is there was made of its parts by a run that was killed before it could say so.

    >>> from pathlib import Path
    >>> is_put_together(Path("train.h5"))
    False
    """
    return output.exists() and (folder_of_parts(output) / JOINED).exists()


def refuse_made(output: Path, *, overwrite: bool) -> None:
    """Refuse to make a store that is there, unless it may be replaced or a killed run is to be brought to its end.

    Raises:
        FileExistsError: the store, or a link that leads nowhere, is there.
        IsADirectoryError: a folder is, which nothing replaces.

    >>> from pathlib import Path
    >>> Path("train.h5").touch()
    >>> refuse_made(Path("train.h5"), overwrite=False)
    Traceback (most recent call last):
    ...
    FileExistsError: train.h5 exists. Pass --overwrite to replace it, or choose another name.
    """
    if output.parent.is_dir():
        remove_remains(output.parent, folder_of_parts(output).name)
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder. Name a file to write.")
    if os.path.lexists(output) and not overwrite and not is_put_together(output):
        raise FileExistsError(f"{output} exists. Pass --overwrite to replace it, or choose another name.")


def _close(output: Path) -> None:
    """Remove the parts of a store, unless it needs them."""
    folder = folder_of_parts(output)
    if output.exists() and _is_virtual(output):
        (folder / JOINED).unlink(missing_ok=True)
    else:
        remove_parts(output)


def remove_parts(output: Path) -> None:
    """Remove the parts of a store.

    >>> from pathlib import Path
    >>> remove_parts(Path("train.h5"))
    """
    folder = folder_of_parts(output)
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
        folder.rename(aside)  # gone at once for whoever looks
        shutil.rmtree(aside, ignore_errors=True)


class Parts(PartFiles):
    """The parts of a region store of photographs: which image is in which part is known beforehand.

    Attributes:
        plan: the images of each part, batch by batch.

    Args:
        output: the store to make; the parts are in `<output>.parts`.
        plan: the images of each part, batch by batch: id -> whatever tells a changed image from an unchanged one. Of a
            run before, its plan stands, less the images that are gone.
        settings: whatever else decides about the contents. Parts of other settings are never mixed with these.
        writer_options: what `RegionStoreWriter` takes besides the path.

    Raises:
        ValueError: parts that were made with other settings, or without some of these images, are there.

    >>> from pathlib import Path
    >>> from xmodal.data import RegionStore
    >>> options = {"dim": 2, "max_regions": 3, "extractor": "by hand"}
    >>> plan = [[{"7": None, "8": None}], [{"9": None}]]
    >>> parts = Parts(Path("train.h5"), plan, settings=options, writer_options=options)
    >>> parts.write(0, [("7", {"features": [[1, 0], [0, 1]]}), ("8", "cut off")])
    >>> parts.todo(process=0, num_processes=1)
    [1]
    >>> parts.write(1, [("9", {"features": [[1, 1]]})])
    >>> parts.join(overwrite=False), RegionStore("train.h5").image_id
    ({'8': 'cut off'}, ['7', '9'])
    """

    def __init__(self, output: Path, plan: Plan, settings: Any, writer_options: Mapping[str, Any]) -> None:
        super().__init__(output, settings)
        self.writer_options = dict(writer_options)
        self.plan = self._kept_plan(plan)
        self.count = len(self.plan)

    def todo(self, process: int, num_processes: int) -> list[int]:
        """The parts of one process of several that are not done yet."""
        return [number for number in range(process, self.count, num_processes) if self.note(number) is None]

    def write(self, number: int, outcomes: Iterable[tuple[str, Mapping[str, Any] | str]]) -> None:
        """Write one part, image by image.

        Args:
            number: which.
            outcomes: image ids, each with what `RegionStoreWriter.write` takes or with the reason why it is left out.
        """
        skipped: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            writer = None
            for image_id, outcome in outcomes:
                if isinstance(outcome, str):
                    skipped[image_id] = outcome
                    continue
                if writer is None:  # a store must hold an image, so there is none without
                    writer = stack.enter_context(self.writer(number, self.writer_options))
                writer.write(image_id, **outcome)
        self.finish(number, skipped)

    def join(self, how: Join = "auto", *, overwrite: bool) -> dict[str, str]:
        """Make the store of all parts; see `put_together`.

        Returns:
            What was left out, and why.

        Raises:
            FileExistsError: the store exists and may not be replaced.
            ValueError: nothing was written to any part.
        """
        skipped: dict[str, str] = {}
        for number in range(self.count):
            skipped |= self.note(number) or {}
        if not any(self.store(number).exists() for number in range(self.count)):
            raise ValueError(f"{self.output} was not written, for no image is good. {_first(skipped)}")
        self.put_together(self.count, self.writer_options, how, skipped, overwrite=overwrite)
        return skipped

    def _kept_plan(self, plan: Plan) -> Plan:
        """The plan of the run before, less the images that are gone; parts that are not as it was are undone."""
        path = self.folder / "plan"
        images = json.loads(
            json.dumps({image: stamp for part in plan for batch in part for image, stamp in batch.items()})
        )
        before: Plan = json.loads(path.read_text("utf-8")) if path.exists() else plan
        kept = [[{i: images[i] for i in batch if i in images} for batch in part] for part in before]
        if [i for part in kept for batch in part for i in batch] != list(images):
            raise self.of_another_run()
        if kept != before or not path.exists():
            for number, (old, new) in enumerate(zip(before, kept, strict=True)):
                self._undo_unless_as_it_was(number, old, new)
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(kept), "utf-8")
        return kept

    def _undo_unless_as_it_was(self, number: int, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        """Take back a part that is done if an image of it is gone that was good, or has changed."""
        skipped = self.note(number)
        if old == new or skipped is None:
            return
        then, now = ({i: stamp for batch in part for i, stamp in batch.items()} for part in (old, new))
        if all(image in now or image in skipped for image in then) and all(then[image] == now[image] for image in now):
            self.finish(number, {i: why for i, why in skipped.items() if i in now})
        else:
            self.undo(number)


def _first(skipped: Mapping[str, str]) -> str:
    where, why = next(iter(skipped.items()))
    return f"{where}: {why}"


def _is_virtual(path: Path) -> bool:
    with h5py.File(path, "r", locking=False) as file:
        features: Any = file["features"]
        return features.is_virtual


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was written to a store, image by image, in the store's own numbers."""
    with h5py.File(path, "r", locking=False) as file:
        features: Any = file["features"]
        names = set(file) - {"features", CHECKSUM}
        columns: dict[str, np.ndarray] = {name: file[name][:] for name in names}  # type: ignore[index]
        num_regions = columns.pop("num_regions")
        for index, image_id in enumerate(columns.pop("image_id")):
            count = num_regions[index]
            row = {name: rows[index] if name == "image_size" else rows[index, :count] for name, rows in columns.items()}
            yield image_id.decode("utf-8", "surrogateescape"), {"features": features[index, :count], **row}
