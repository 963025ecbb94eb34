"""The programs of this folder by name: `xmodal prepare NAME ...` is `python -m preprocess.MODULE ...`.

What is installed has them as `xmodal.prepare`, a checkout as `preprocess`; so they import each other relatively.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from xmodal.entry import DEBUG_HELP, run_program
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Sequence


class Program(NamedTuple):
    """Where a program is and what it does."""

    module: str
    help: str


PROGRAMS = {
    "folder": Program("folder", "Everything that training needs, of your photographs and a table of their captions."),
    "regions": Program("regions", "Region stores of a folder of photographs, by an extractor."),
    "captions": Program("captions", "A captions file of Karpathy's, COCO's or Flickr's, or of a table of your own."),
    "vocabulary": Program("vocabulary", "A vocabulary of the words of a captions file."),
    "verify": Program("verify", "Check region stores and captions against each other before training on them."),
    "scan-npy": Program("scan_npy", "Region stores of the arrays that SCAN, VSE++, BFAN and VSRN share."),
    "bottom-up-tsv": Program("bottom_up_tsv", "A region store of bottom-up-attention TSV files."),
    "features": Program("features", "A region store of features that others extracted: TSV, HDF5, npz, npy, lmdb."),
    "npz-folder": Program("npz_folder", "A region store of a folder with one array file an image."),
    "coco-annotations": Program("coco_annotations", "Region stores of COCO's annotated objects."),
    "labelled": Program("labelled_datasets", "Indexes and features of CUB, Cars196, SOP, In-Shop or any folder."),
    "import-checkpoint": Program("import_checkpoint", "A model of a released checkpoint of SCAN, SGRAF, ADAPT or kin."),
}


def run(arguments: Sequence[str]) -> None:
    """Run the program that the first argument names with the others.

    Raises:
        ValueError: there is no such program.
        SystemExit: for --help, and as the program ends.

    >>> run(["vocabluary"])
    Traceback (most recent call last):
    ...
    ValueError: unknown program 'vocabluary' (did you mean 'vocabulary'?); known: folder, regions, ...
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        raise SystemExit(0)
    name, *rest = arguments
    if name not in PROGRAMS:
        raise ValueError(f"unknown program {name!r}{near_miss(name, PROGRAMS)}; known: {', '.join(PROGRAMS)}")
    module = import_module(f".{PROGRAMS[name].module}", __package__)
    description = as_installed(inspect.cleandoc(module.__doc__ or ""))
    run_program(module.main, rest, prog=f"xmodal prepare {name}", description=description)


def overview() -> str:
    """What `xmodal prepare --help` prints.

    >>> print(overview().splitlines()[0])
    usage: xmodal prepare PROGRAM ...
    """
    lines = [f"  {name:19}{program.help}" for name, program in PROGRAMS.items()]
    end = f"xmodal prepare PROGRAM --help lists a program's options. {DEBUG_HELP}"
    return "\n".join(["usage: xmodal prepare PROGRAM ...", "", *lines, "", end])


def as_installed(text: str) -> str:
    """A text that says how programs are called in a checkout, as one that says it for what is installed.

    >>> as_installed("python -m preprocess.scan_npy --input A; torchrun -m preprocess.regions --images B")
    'xmodal prepare scan-npy --input A; torchrun -m xmodal prepare regions --images B'
    """
    names = {program.module: name for name, program in PROGRAMS.items()}
    text = re.sub(r"-m preprocess\.(\w+)", lambda match: f"-m xmodal prepare {names.get(match[1], match[1])}", text)
    return text.replace("python -m xmodal", "xmodal")
