"""Programs write to a disk that is full: a small tmpfs where one may be mounted, else a limit on the sizes of files."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import resource
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

from scripts.attack.programs import contents, prepared
from scripts.attack.trials import DEATH, HANG, RAW, REFUSED, RIGHT, SECONDS, WRONG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from scripts.attack.programs import Program

PAGE = 4096
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A folder with room for so many bytes, if a file system may be mounted there.

    >>> from pathlib import Path
    >>> Path("disk").mkdir()
    >>> with small_disk(Path("disk"), 8192) as mounted:
    ...     mounted in (True, False)
    True
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(size, PAGE)}", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], capture_output=True, check=True)


def attack(program: Program, folder: Path, levels: int) -> Iterator[tuple[str, str, str]]:
    """Run a program with room for shares of what it writes, then with enough.

    Yields:
        How much room there was, what it came to, and what was wrong.
    """
    inputs, before, whole = prepared(program, folder)
    program.run(inputs, whole)
    wanted = contents(whole)
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    total = sum(-(-path.stat().st_size // PAGE) * PAGE for path in whole.rglob("*") if path.is_file())
    for level in range(levels):
        share = (level + 0.5) / levels
        output = folder / "disk"
        output.mkdir()
        with small_disk(output, int(share * total) + (2 * total if program.replaces else 0)) as mounted:
            shutil.copytree(before, output, dirs_exist_ok=True)
            if mounted and program.replaces:  # what is there takes room of its own
                _fill(output, int(share * total))
            limit = None if mounted else max(1, int(share * largest))
            name = f"{share:.0%} of {total if mounted else largest} bytes" + ("" if mounted else " a file")
            outcome, said = _starved(program, inputs, output, limit)
            if outcome in (RIGHT, REFUSED):
                (output / "filler").unlink(missing_ok=True)
                if lost := _lost(before, output):
                    outcome, said = WRONG, f"{lost[0]} is gone"
            if outcome == REFUSED:
                if mounted:
                    subprocess.run(["mount", "-o", f"remount,size={20 * total + (1 << 22)}", str(output)], check=True)
                again, said = _starved(program, inputs, output, None)
                if again != RIGHT or contents(output) != wanted:
                    outcome, said = WRONG, f"with enough room: {said or 'other contents'}"
            yield name, outcome, said
        shutil.rmtree(output)


def _fill(output: Path, room: int) -> None:
    """Leave room for so many bytes."""
    free = shutil.disk_usage(output).free
    (output / "filler").write_bytes(bytes(max(0, free - room)))


def _lost(before: Path, output: Path) -> list[str]:
    """Names of files that were there before and are not any more."""
    visible = contents(output)
    files = [file.relative_to(before) for file in before.rglob("*") if file.is_file()]
    return [str(file) for file in files if str(file) not in visible]


def _starved(program: Program, inputs: Path, output: Path, limit: int | None) -> tuple[str, str]:
    """What a run comes to, in a process of its own: after it could not write, HDF5 must not be used again."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(program, inputs, output, limit, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            process.kill()
            return HANG, "no end"
        return receiver.recv()
    except EOFError:
        process.join()
        return DEATH, f"killed by signal {-(process.exitcode or 0)}"
    finally:
        process.join()
        receiver.close()


def _run(program: Program, inputs: Path, output: Path, limit: int | None, sender: Connection) -> None:
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    sender.send(_told(program, inputs, output))


def _told(program: Program, inputs: Path, output: Path) -> tuple[str, str]:
    try:
        program.run(inputs, output)
    except OSError as error:
        named = str(output) in str(error)
        return (REFUSED if error.errno in FULL and named else RAW), f"{type(error).__name__}: {error}"
    except SystemExit as error:  # the command line told it in one line
        return (REFUSED if error.code == 2 else RAW), f"exit status {error.code}"
    except BaseException as error:  # whatever it is, it is one of the outcomes
        return RAW, f"{type(error).__name__}: {error}"
    return RIGHT, ""
