"""The photographs of an index, shrunk, by its own ids: no name that is asked for becomes a path."""

from __future__ import annotations

import io
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from xmodal.data.image_folder import locate_images
from xmodal.data.images import read_image

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEPT = 64 << 20
"""Bytes of shrunk photographs that are kept."""

QUALITY = 85


class Photographs:
    """Files of a folder by the ids of an index; they are looked for once, at the start.

    Args:
        folder: where they are, and in the folders in it.
        ids: of the index.
        kept: bytes of shrunk photographs to keep.

    Raises:
        FileNotFoundError: there is no such folder, or it has no file of one of the ids.
        ValueError: it has two.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from xmodal.search.serve.photographs import Photographs
        >>> Image.new("RGB", (40, 30), "red").save("7.png")
        >>> photographs = Photographs(Path(), ["7"])
        >>> photographs.jpeg("7", longest=20)[:2].hex(), photographs.jpeg("../7", longest=20)
        Traceback (most recent call last):
        ...
        KeyError: "there is no photograph '../7'"
    """

    def __init__(self, folder: Path, ids: Iterable[str], *, kept: int = KEPT) -> None:
        self._files = locate_images(folder, ids)
        self._kept, self._most, self._bytes = OrderedDict[tuple[str, int], bytes](), kept, 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._files)

    def jpeg(self, name: str, longest: int) -> bytes:
        """A photograph as a JPEG file whose longer side has at most so many pixels; what else the file told is gone.

        Raises:
            KeyError: there is none of that name.
            ValueError: its file is damaged.
        """
        if name not in self._files:
            raise KeyError(f"there is no photograph {name!r}")
        key = (name, longest)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        content = io.BytesIO()
        try:
            read_image(self._files[name], longest=longest).save(content, "JPEG", quality=QUALITY)
        except (ValueError, OSError):  # which name the file, and that is nobody's business
            raise ValueError(f"the file of the photograph {name!r} cannot be read") from None
        self._keep(key, content.getvalue())
        return content.getvalue()

    def _keep(self, key: tuple[str, int], content: bytes) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = content
                self._bytes += len(content)
            while self._bytes > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
