"""What a program left out: a list beside its output, and an exit status that cannot be overlooked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_skipped(output: Path, skipped: Mapping[str, str]) -> str:
    """List what was left out of `output` in `<output>.skipped.txt`: a line each, where it was, tab, why.

    Returns:
        A sentence for the user. With nothing left out there is no list, and one of an earlier run is removed.

    >>> import tempfile
    >>> from pathlib import Path
    >>> output = Path(tempfile.mkdtemp()) / "train.h5"
    >>> print(write_skipped(output, {"photo_7": "cut off"}).replace(str(output.parent), "DIR"))
    1 left out, listed in DIR/train.h5.skipped.txt; the first one is photo_7: cut off
    >>> write_skipped(output, {})
    'nothing left out'
    """
    path = output.with_name(output.name + ".skipped.txt")
    if not skipped:
        path.unlink(missing_ok=True)
        return "nothing left out"
    with written_whole(path) as temporary:
        lines = [f"{where}\t{' '.join(why.split())}\n" for where, why in skipped.items()]
        temporary.write_text("".join(lines), "utf-8", errors="surrogateescape")  # file names need not be UTF-8
    where, why = next(iter(skipped.items()))
    return f"{len(skipped)} left out, listed in {path}; the first one is {where}: {why}"


def report(output: Path, num_images: int, skipped: Mapping[str, str], *, skip_bad: bool) -> None:
    """Say what was written and what was not.

    Raises:
        SystemExit: something was left out and `skip_bad` does not allow it.

    >>> from pathlib import Path
    >>> report(Path("train.h5"), 5, {"photo_7": "cut off"}, skip_bad=True)
    train.h5: 5 images; 1 left out, listed in train.h5.skipped.txt; the first one is photo_7: cut off
    """
    told = f"{output}: {num_images} images; {write_skipped(output, skipped)}"
    if skipped and not skip_bad:
        raise SystemExit(f"{told}\nThe good ones are kept. Repair the others, or accept the loss with --skip-bad.")
    print(told)
