"""A region store made in numbered parts, by one process or several, that survives being killed.

A part is a small region store beside a list of what was left out of it; the list is written last and marks the part as
done. Both appear whole or not at all, so that whoever starts again goes on with the parts that are not done.

Which images are in which part is planned once. Whoever takes bad images away, or repairs them, keeps the parts that
these do not concern.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, Literal

import h5py
from tqdm import tqdm

from xmodal.data import RegionStoreWriter
from xmodal.data.atomic import remove_remains, written_whole
from xmodal.data.joined import join_stores
from xmodal.data.store_checks import CHECKSUM

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np

Join = Literal["auto", "copy", "virtual"]
Plan = list[list[dict[str, Any]]]

LARGE = 16 * 10**9
"""Bytes from which `auto` no longer copies: it would take minutes, and for that time the room of two stores."""


class Parts:
    """The parts of a region store, in a folder beside it.

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
        self.output, self.writer_options = output, dict(writer_options)
        self.folder = output.with_name(f"{output.name}.parts")
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        known = self.folder / "settings.sha256"
        if not known.exists():
            with written_whole(known) as temporary:
                temporary.write_text(fingerprint)
        elif known.read_text() != fingerprint:
            raise self._of_another_run()
        self.plan = self._kept_plan(plan)
        self.count = len(self.plan)

    def todo(self, process: int, num_processes: int) -> list[int]:
        """The parts of one process of several that are not done yet."""
        return [number for number in range(process, self.count, num_processes) if not self._skipped(number).exists()]

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
                    options = {"overwrite": True, **self.writer_options}
                    writer = stack.enter_context(RegionStoreWriter(self._store(number), **options))
                writer.write(image_id, **outcome)
        with written_whole(self._skipped(number)) as temporary:
            temporary.write_text(json.dumps(skipped), "utf-8")

    def join(self, how: Join = "auto", *, overwrite: bool) -> dict[str, str]:
        """Make the store of all parts, one after another.

        Args:
            how: `copy` makes one file and removes the parts. `virtual` leaves the features in the parts, which the
                store then needs. `auto` copies what is smaller than `LARGE`.
            overwrite: whether an existing store may be replaced.

        Returns:
            What was left out, and why.

        Raises:
            FileExistsError: the store exists and may not be replaced.
            ValueError: nothing was written to any part.
        """
        skipped: dict[str, str] = {}
        for number in range(self.count):
            skipped |= json.loads(self._skipped(number).read_text("utf-8"))
        stores = [store for store in map(self._store, range(self.count)) if store.exists()]
        if not stores:
            raise ValueError(f"{self.output} was not written, for no image is good. {_first(skipped)}")
        if how == "virtual" or (how == "auto" and sum(store.stat().st_size for store in stores) >= LARGE):
            join_stores(stores, self.output, overwrite=overwrite)
            remove_remains(self.folder)
            return skipped
        with RegionStoreWriter(self.output, overwrite=overwrite, **self.writer_options) as writer:
            for store in tqdm(stores, desc="joining", unit="part", delay=2):
                for image_id, row in _rows(store):
                    writer.write(image_id, **row)
        shutil.rmtree(self.folder)
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
            raise self._of_another_run()
        if kept != before or not path.exists():
            for number, (old, new) in enumerate(zip(before, kept, strict=True)):
                self._undo_unless_as_it_was(number, old, new)
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps(kept), "utf-8")
        return kept

    def _undo_unless_as_it_was(self, number: int, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        """Take back a part that is done if an image of it is gone that was good, or has changed."""
        done = self._skipped(number)
        if old == new or not done.exists():
            return
        skipped: dict[str, str] = json.loads(done.read_text("utf-8"))
        then, now = ({i: stamp for batch in part for i, stamp in batch.items()} for part in (old, new))
        if all(image in now or image in skipped for image in then) and all(then[image] == now[image] for image in now):
            with written_whole(done) as temporary:
                temporary.write_text(json.dumps({i: why for i, why in skipped.items() if i in now}), "utf-8")
        else:
            done.unlink()
            self._store(number).unlink(missing_ok=True)

    def _of_another_run(self) -> ValueError:
        return ValueError(
            f"{self.folder} holds parts of an earlier run with other images or options. Repeat it as it was, less the "
            f"images that are bad, to go on with them, or remove the folder to start anew (and {self.output.name}, if "
            "it was joined virtually)."
        )

    def _store(self, number: int) -> Path:
        return self.folder / f"{number:06}.h5"

    def _skipped(self, number: int) -> Path:
        return self.folder / f"{number:06}.skipped.json"


def _first(skipped: Mapping[str, str]) -> str:
    where, why = next(iter(skipped.items()))
    return f"{where}: {why}"


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
