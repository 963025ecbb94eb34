"""A list of hashes beside captions and vocabulary, by which damage to what is plain text is noticed.

`manifest.json` in a data folder holds the SHA-256 of every such file that a program wrote there. `xmodal prepare
verify` compares, and with `--accept` takes what is there for what is meant, after an edit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from xmodal.data.atomic import locked, written_whole
from xmodal.data.store_checks import check_regular

MANIFEST = "manifest.json"


def note_written(*paths: Path) -> None:
    """Note files that were just written, or edited on purpose, in the manifests of their folders.

    Raises:
        ValueError: a manifest is damaged.

    >>> _ = Path("captions.jsonl").write_text("{}")
    >>> note_written(Path("captions.jsonl"))
    >>> find_changed(Path("."))
    {}
    """
    for path in paths:
        manifest = path.parent / MANIFEST
        with locked(manifest):
            hashes = {**_read(manifest), path.name: _hash(path)}
            with written_whole(manifest) as temporary:
                temporary.write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n", "utf-8")


def find_changed(folder: Path) -> dict[str, str]:
    """The files of a folder's manifest that are not what they were, each with what is wrong.

    Raises:
        ValueError: the manifest is damaged.

    >>> _ = Path("captions.jsonl").write_text("{}")
    >>> note_written(Path("captions.jsonl"))
    >>> _ = Path("captions.jsonl").write_text("[]")
    >>> list(find_changed(Path(".")))
    ['captions.jsonl']
    """
    changed = {}
    for name, noted in _read(folder / MANIFEST).items():
        if not (folder / name).is_file():
            changed[name] = f"{name} of {MANIFEST} is gone: put it back, or write the folder again"
        elif _hash(folder / name) != noted:
            changed[name] = (
                f"{name} is not what was written: it was damaged or edited since. Make it again, or say with --accept "
                "that it is as you want it"
            )
    return changed


def accept(folder: Path) -> list[str]:
    """Take the files of a folder's manifest, and captions and vocabulary, for what they should be; their names.

    >>> _ = Path("vocabulary.json").write_text("{}")
    >>> accept(Path("."))
    ['vocabulary.json']
    """
    manifest = folder / MANIFEST
    try:
        known = set(_read(manifest))
    except ValueError:  # it is made anew
        known = set()
    there = sorted(name for name in {*known, "captions.jsonl", "vocabulary.json"} if (folder / name).is_file())
    manifest.unlink(missing_ok=True)
    note_written(*(folder / name for name in there))
    return there


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    check_regular(path, "list of hashes")
    try:
        hashes = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}). {ADVICE}") from error
    whole = isinstance(hashes, dict) and all(isinstance(hash_, str) for hash_ in hashes.values())
    if not whole or any(Path(name).name != name for name in hashes):
        raise ValueError(f"{path} is damaged: wanted names of files in its folder and their SHA-256. {ADVICE}")
    return hashes


ADVICE = (
    "Remove it, and say with `xmodal prepare verify FOLDER --accept` that captions and vocabulary are as you want them."
)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
