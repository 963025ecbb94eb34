"""A region store made in numbered parts, by one process or several, that survives being killed.

A part is a small region store beside a list of what was left out of it; the list is written last and marks the part as
done. Both appear whole or not at all, so that whoever starts again goes on with the parts that are not done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import h5py
from tqdm import tqdm

from xmodal.data import RegionStoreWriter
from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np


class Parts:
    """The parts of a region store, in a folder beside it.

    Args:
        output: the store to make; the parts are in `<output>.parts`.
        count: how many parts there are.
        settings: whatever decides about the contents. Parts of other settings are never mixed with these.
        writer_options: what `RegionStoreWriter` takes besides the path.

    Raises:
        ValueError: parts that were made with other settings are there.
    """

    def __init__(self, output: Path, count: int, settings: Any, writer_options: Mapping[str, Any]) -> None:
        self.output, self.count, self.writer_options = output, count, dict(writer_options)
        self.folder = output.with_name(f"{output.name}.parts")
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        known = self.folder / "settings.sha256"
        if not known.exists():
            with written_whole(known) as temporary:
                temporary.write_text(fingerprint)
        elif known.read_text() != fingerprint:
            raise ValueError(
                f"{self.folder} holds parts of an earlier run with other images or options. Repeat it as it was to go "
                "on with them, or remove the folder to start anew."
            )

    def todo(self, process: int, num_processes: int) -> list[int]:
        """The parts of one process of several that are not done yet."""
        return [number for number in range(process, self.count, num_processes) if not self._skipped(number).exists()]

    def write(self, number: int, rows: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, str]) -> None:
        """Write one part.

        Args:
            number: which.
            rows: what `RegionStoreWriter.write` takes, by image id.
            skipped: what was left out, and why.
        """
        if rows:
            with RegionStoreWriter(self._store(number), overwrite=True, **self.writer_options) as writer:
                for image_id, row in rows.items():
                    writer.write(image_id, **row)
        with written_whole(self._skipped(number)) as temporary:
            temporary.write_text(json.dumps(dict(skipped)), "utf-8")

    def join(self, *, overwrite: bool) -> dict[str, str]:
        """Copy all parts into the store, one after another, and remove them.

        Returns:
            What was left out, and why.

        Raises:
            FileExistsError: the store exists and may not be replaced.
            ValueError: nothing was written to any part.
        """
        skipped: dict[str, str] = {}
        for number in range(self.count):
            skipped |= json.loads(self._skipped(number).read_text("utf-8"))
        with RegionStoreWriter(self.output, overwrite=overwrite, **self.writer_options) as writer:
            for number in tqdm(range(self.count), desc="joining", unit="part", delay=2):
                if self._store(number).exists():
                    for image_id, row in _rows(self._store(number)):
                        writer.write(image_id, **row)
        shutil.rmtree(self.folder)
        return skipped

    def _store(self, number: int) -> Path:
        return self.folder / f"{number:06}.h5"

    def _skipped(self, number: int) -> Path:
        return self.folder / f"{number:06}.skipped.json"


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was written to a store, image by image, in the store's own numbers."""
    with h5py.File(path, "r", locking=False) as file:
        columns: dict[str, np.ndarray] = {name: file[name][:] for name in file}  # type: ignore[index]
    for index, image_id in enumerate(columns.pop("image_id")):
        count = columns["num_regions"][index]
        yield (
            image_id.decode("utf-8"),
            {
                name: rows[index] if name == "image_size" else rows[index, :count]
                for name, rows in columns.items()
                if name != "num_regions"
            },
        )
