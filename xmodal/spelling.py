"""A word that is not known is answered with the nearest that is."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def near_miss(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where something similar exists, else nothing.

    Example:
        >>> from xmodal.spelling import near_miss
        >>> near_miss("scam", ["scan", "bfan"]), near_miss("bert", ["scan", "bfan"])
        (" (did you mean 'scan'?)", '')
    """
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""
