"""The annotations of Cars196, MATLAB files, read in a process of their own: scipy's reader, in C, dies of damaged ones.

The process has a limit on memory and on time, and says what it found in JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .apart import command, how_it_died, limit

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 120
"""How long it may take; Cars196 takes a second."""

MEMORY = 4 << 30
"""Bytes that the process may take, with all that Python and scipy need."""

FIELDS = ("fname", "relative_im_path", "class")
"""What may be read of an annotation."""


def read_annotations(path: Path, field: str) -> list[tuple[str, int]]:
    """Where the images of a list are, and their classes.

    Args:
        path: the MATLAB file.
        field: what it calls the image, `fname` or `relative_im_path`.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: scipy is not installed.
        ValueError: it is not a MATLAB file, is cut off, or lacks annotations or one of both.

    >>> from pathlib import Path
    >>> import numpy as np
    >>> from scipy.io import savemat
    >>> savemat("cars.mat", {"annotations": np.array([("1.jpg", 7)], [("fname", "O"), ("class", "O")])})
    >>> read_annotations(Path("cars.mat"), "fname")
    [('1.jpg', 7)]
    """
    if find_spec("scipy") is None:
        raise ModuleNotFoundError("reading the annotations of Cars196 needs scipy: pip install scipy")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; the labels of the test images come in a file of their own")
    apart = command(f"{__package__}.mat_annotations", str(path.absolute()))
    try:
        child = subprocess.run(**apart, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"cannot read {path}: it took longer than {SECONDS} seconds; is it damaged?") from None
    if child.returncode < 0:
        raise ValueError(f"cannot read {path}: {how_it_died(child.returncode)} while it was read; is it cut off?")
    try:
        told = json.loads(child.stdout)
    except ValueError as error:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"cannot read {path}: {' '.join(last)}; is it cut off?") from error
    if "error" in told:
        raise ValueError(f"cannot read {path}: {told['error']}; is it cut off?")
    if "names" in told:
        raise ValueError(f"{path} has no annotations, only {told['names']}; is it another of the Cars196 files?")
    if missing := {field, "class"}.difference(told["fields"]):
        raise ValueError(
            f"{path} does not say {' and '.join(sorted(missing))} of its images, only {told['fields']}; the labels of "
            "the test images are in cars_test_annos_withlabels.mat"
        )
    return [(car[field], car["class"]) for car in told["annotations"]]


def _tell(path: str) -> dict[str, Any]:
    """What a file holds, for the process that asked."""
    import numpy as np
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
        if "annotations" not in content:
            return {"names": sorted(content)}
        cars = np.atleast_1d(content["annotations"])
        return {"fields": cars.dtype.names or (), "annotations": [_plain(car) for car in cars if car.dtype.names]}
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        return {"error": " ".join(str(error).split()) or type(error).__name__}


def _plain(annotation: Any) -> dict[str, Any]:
    found = {name: annotation[name] for name in FIELDS if name in annotation.dtype.names}
    return {name: int(value) if name == "class" else str(value) for name, value in found.items()}


if __name__ == "__main__":
    limit(MEMORY)
    print(json.dumps(_tell(sys.argv[1])))
