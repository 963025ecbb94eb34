"""Make a region store of region features that another project extracted, whatever file they are in.

TSV files of bottom-up attention, LXMERT, ViLBERT, VL-BERT and VinVL; HDF5 files of ban-vqa, VisDial, M2 Transformer and
those with a group an image; folders of .npz and .npy files; lmdb databases. docs/data.md has them all. The layout is
told by the columns or keys; --layout names it where they fit more than one.

    python -m preprocess.features --input coco_detections.hdf5 --output DIR/train.h5 --max-regions 100 \\
        --captions DIR/captions.jsonl --split train

All-zero rows at the end of an image are padding. Images that are damaged or come twice are left out and listed in
OUTPUT.skipped.txt; then the exit status is 1 unless --skip-bad says that this is all right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Literal

from xmodal.data.store_checks import check_regular
from xmodal.data.text import GZIP_MAGIC
from xmodal.entry import run_program

from .bottom_up_tsv import read_rows
from .hdf5_features import read_hdf5
from .layouts import HDF5, OTHERS, TSV_COLUMNS, layout_names
from .lmdb_features import read_lmdb
from .npz_folder import read_files
from .precomputed import Record, StoreConfig, convert
from .skipped import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Kind = Literal["tsv", "hdf5", "files", "lmdb"]
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PACKED_MAGIC = (GZIP_MAGIC, b"PK\x03\x04")


@dataclass(frozen=True, kw_only=True)
class Config(StoreConfig):
    """Where to read and what to write."""

    input: tuple[Path, ...]
    """Files, folders of files, or databases, one or several; the images go into one store."""
    layout: str = "auto"
    """auto: what the columns or keys tell. Or bottom-up, lxmert, vilbert, vl-bert, bottom-up-classes or vinvl (TSV);
    ban, visdial, m2 or groups (HDF5); files; lmdb."""
    ids: Path | None = None
    """For HDF5 files that do not name their images: a pickled or JSON dict of ids and rows, or a list of ids."""


def main(config: Config) -> None:
    """Convert, and say what was left out.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: an input is damaged or of no layout or of several, or there is no such layout.
    """
    num_images, skipped = convert(config, _read(config))
    report(config.output, num_images, skipped, skip_bad=config.skip_bad)


def _read(config: Config) -> Iterator[tuple[str, str, Callable[[], Record]]]:
    """Every image of every input."""
    if config.layout not in ("auto", *layout_names()):
        raise ValueError(f"layout {config.layout!r} is unknown; known: auto, {', '.join(layout_names())}")
    layout = None if config.layout == "auto" else config.layout
    for kind, paths in groupby(config.input, lambda path: kind_of(path, layout)):
        if kind == "tsv":
            yield from read_rows(tuple(paths), config.dim, layout)
            continue
        for path in paths:
            if kind == "hdf5":
                yield from read_hdf5(path, layout, config.ids, config.dim)
            else:
                yield from {"files": read_files, "lmdb": read_lmdb}[kind](path, config.dim)


def kind_of(path: Path, layout: str | None = None) -> Kind:
    """What kind of file or folder features are in.

    Args:
        path: the file or folder.
        layout: the layout that was named, if any, which tells.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ordinary file, or of no kind that is read; the message says what it begins with and what
            is known.

    >>> from pathlib import Path
    >>> _ = Path("trainval.tsv").write_text("7\\t640\\t480\\t36\\tAAAA\\tAAAA\\n")
    >>> kind_of(Path("trainval.tsv"))
    'tsv'
    """
    if not path.exists():
        raise FileNotFoundError(f"no features at {path}")
    if layout is not None:
        return (
            "tsv" if layout in TSV_COLUMNS else "hdf5" if layout in HDF5 else "files" if layout == "files" else "lmdb"
        )
    if path.is_dir():
        if (path / "data.mdb").exists():
            return "lmdb"
        if next(path.rglob("*.np[yz]"), None) is not None:
            return "files"
        found = sorted(each.name for each in path.iterdir())
        raise ValueError(f"{path} holds no .npz or .npy file and no data.mdb, but {found[:9]}; name files themselves")
    check_regular(path, "file of features")
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if start.startswith(HDF5_MAGIC):
        return "hdf5"
    if path.suffix in (".mdb", ".lmdb"):
        return "lmdb"
    if b"\t" in start.split(b"\n", 1)[0]:
        return "tsv"
    hint = "; give its folder" if path.suffix in (".npz", ".npy") else ""
    if start.startswith(PACKED_MAGIC):
        hint = "; it is packed: unpack it first, and give what is in it"
    known = {"TSV": ", ".join(TSV_COLUMNS), "HDF5": ", ".join(HDF5), "and": "; ".join(OTHERS.values())}
    raise ValueError(
        f"{path} is of no known layout: it begins with {start[:20]!r}{hint}. Known: "
        + "; ".join(f"{kind} {names}" for kind, names in known.items())
    )


if __name__ == "__main__":
    run_program(main)
