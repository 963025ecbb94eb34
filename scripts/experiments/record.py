"""The record of all runs: one JSON object a line, in a file that is committed, so that any machine can go on."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

from xmodal.data.atomic import locked, written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Results = dict[str, Any]


class Record:
    """Results of runs by what identifies a run.

    Args:
        path: the JSON lines; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def results(self) -> dict[tuple[Any, ...], Results]:
        """All results by the values of what identifies their run.

        Raises:
            ValueError: for a line that is none of this record, or a run that is there twice.
        """
        found: dict[tuple[Any, ...], Results] = {}
        for number, line in enumerate(self._text().splitlines(), 1):
            try:
                result = json.loads(line)
                key = tuple(result["run"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.path}, line {number} is no result of a run: {line[:80]!r}") from error
            if key in found:
                raise ValueError(f"{self.path}, line {number} is a second result of {result['run']}; remove one")
            found[key] = result
        return found

    def add(self, run: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Append the results of a run; the file has all of the line or nothing of it, whenever whoever writes dies."""
        line = json.dumps({"run": dict(run), **results}) + "\n"
        with self._alone(), written_whole(self.path) as temporary:
            temporary.write_text(self._text() + line)

    def _text(self) -> str:
        return self.path.read_text() if self.path.is_file() else ""

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for others who are writing: they take no longer than a moment."""
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(self.path))
                except BlockingIOError:
                    time.sleep(0.1)
                    continue
                yield
                return
