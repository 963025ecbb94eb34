"""Text files as people have them: UTF-8 with or without a byte order mark, UTF-16, others by name, gzipped."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the codec that reads what follows them and leaves the mark out."""

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
HALF_LETTER = re.compile("[\ud800-\udfff]")
"""Half of a letter that UTF-16 has in two, which is no text: JSON can say it, and no file can hold it."""

NO_FILE_NAME = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half letters but those that stand for the bytes of a file's name, which need not be text."""

DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def read_text(path: str | Path, encoding: str | None = None) -> str:
    """A whole text file, without its byte order mark; line ends are as they are in the file.

    Args:
        path: the file; if it is gzipped, whatever its name, it is unpacked.
        encoding: what it is written in. Without: UTF-8. A byte order mark says it in any case, and wins.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not written so, or is a damaged gzip file; the message names the line.

    >>> _ = Path("ids.txt").write_bytes(b"\\xef\\xbb\\xbf1.jpg\\n2.jpg\\n")
    >>> read_text("ids.txt")
    '1.jpg\\n2.jpg\\n'
    """
    return "".join(_pieces(Path(path), encoding))


def read_lines(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    """The lines of a text file without their ends, read one at a time; otherwise as `read_text`.

    Only a newline ends a line: other separators of Unicode occur inside captions.

    >>> _ = Path("captions.txt").write_bytes("A café.\\r\\nA dog.".encode("utf-16"))
    >>> list(read_lines("captions.txt"))
    ['A café.', 'A dog.']
    """
    for line in _pieces(Path(path), encoding):
        yield line.rstrip("\n").removesuffix("\r")


def suffix_of(path: Path) -> str:
    """The ending that says what a file holds, packed or not.

    >>> suffix_of(Path("dataset_coco.json.gz")), suffix_of(Path("captions.jsonl"))
    ('.json', '.jsonl')
    """
    return Path(path.name.removesuffix(".gz")).suffix


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply; the message begins with `where`.

    >>> parse_json('{"caption": "A dog."}', "captions.jsonl, line 1")
    {'caption': 'A dog.'}
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): {text[:80]!r}") from error


def _pieces(path: Path, encoding: str | None) -> Iterator[str]:
    """The lines of a file with their ends."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    number = 0
    try:
        with unpacked(path) as binary, io.TextIOWrapper(binary, _codec(path, encoding), newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if "\0" in line:
                    raise ValueError(
                        f"{path}, line {number} holds a zero byte: it is no text, or UTF-16 without a byte order mark; "
                        "then say --encoding utf-16-le (or utf-16-be)"
                    )
                yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        raise ValueError(_undecodable(path, encoding, error)) from error
    except DAMAGED_GZIP as error:
        raise ValueError(f"{path}, after line {number}: a damaged gzip file ({error}). Copy it again.") from error


def unpacked(path: Path) -> Any:
    """A file open for reading its bytes; if it is gzipped, whatever its name, those that were packed.

    >>> _ = Path("ids.txt.gz").write_bytes(gzip.compress(b"7"))
    >>> with unpacked(Path("ids.txt.gz")) as file:
    ...     file.read()
    b'7'
    """
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path) if packed else path.open("rb")


def _codec(path: Path, encoding: str | None) -> str:
    """The codec that reads a file.

    Raises:
        ValueError: there is no such encoding, or the file is a zip archive.
    """
    with unpacked(path) as file:
        start = file.read(4)
    if start == ZIP_MAGIC:
        raise ValueError(f"{path} is a zip archive, or a workbook of a spreadsheet: unpack it, or save it as CSV")
    marked = next((codec for mark, codec in MARKS.items() if start.startswith(mark)), None)
    try:
        "".encode(encoding or "utf-8")
    except LookupError as error:
        raise ValueError(f"encoding {encoding!r} is unknown; utf-8, utf-16, latin-1 and cp1252 are usual") from error
    return marked or encoding or "utf-8"


def _undecodable(path: Path, encoding: str | None, error: UnicodeError) -> str:
    """Which line of a file cannot be read; found by reading it again, for decoders report places in pieces of files."""
    codec = _codec(path, encoding)
    try:
        with unpacked(path) as file:
            data = file.read()
    except DAMAGED_GZIP as damage:  # which is why its text cannot be read
        return f"{path}: a damaged gzip file ({damage}). Copy it again."
    line = 1
    try:
        data.decode(codec)
    except UnicodeDecodeError as found:
        line += data[: found.start].decode(codec, "replace").count("\n")
        error = found
    return (
        f"{path}, line {line}: {error}. Say what it is written in, --encoding latin-1 or cp1252 for most old files of "
        "Western languages, where a program has the option, or save it as UTF-8."
    )
