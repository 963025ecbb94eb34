"""Where a user's programs and measurements are kept, which any process can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder of this package in the user's cache; None where there is neither a home nor `XDG_CACHE_HOME`.

    Example:
        >>> from xmodal.cache import cache_folder
        >>> folder = cache_folder()
        >>> folder is None or folder.name == "xmodal"
        True
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xmodal"
    except RuntimeError:  # no home: a user that the system does not know, as in many containers
        return None
