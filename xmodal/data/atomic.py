"""Files and folders that appear whole or not at all, whatever happens to whoever writes them.

What is being written lies in a hidden folder beside its place, `.NAME.RANDOM.partial`, which its writer keeps locked.
The lock goes with the process, so that the next writer of the same name can tell what a killed one left behind, and
remove it, from what another one is writing right now.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and what a killed process left behind stays
    fcntl: Any = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""Errors of a full disk, a limit on file sizes and a quota, which not every library reports with the file's name."""

CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system answers that has no locks."""

RENAME_EXCHANGE = 2
"""Linux's flag for `renameat2`: both names change places in one step."""


@contextlib.contextmanager
def written_whole(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path of the same name: synced to disk and moved to `path` on a clean exit, removed on an exception.

    Whoever is killed in between leaves `path` as it was. The folder is made if it is not there.

    Args:
        path: the file to write.
        overwrite: whether a file that is there, or that appears in the meantime, may be replaced.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        IsADirectoryError: `path` is a folder.
        OSError: the folder cannot be made or written, or the disk is full; the message names it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with written_whole(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("hello")
    >>> [file.name for file in folder.iterdir()]
    ['note.txt']
    """
    path = Path(path)
    check_writable(path)
    if not overwrite:
        refuse_existing(path)
    with _aside(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; some libraries make files of their own, for their owner
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        _put(temporary, path, overwrite)


def check_writable(path: str | Path) -> None:
    """Make the folder of a file, so that work which ends with writing it does not end with an error.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the folder cannot be made or written; the message names it.

    >>> Path("taken").touch()
    >>> check_writable("taken/results.json")
    Traceback (most recent call last):
    ...
    FileExistsError: cannot write taken/results.json: its folder is not writable (...). Choose another output folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file to write.")
    _make_folder(path)


@contextlib.contextmanager
def folder_written_whole(path: str | Path, *, keep: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """A temporary folder of the same name that takes the place of `path`, in one step, on a clean exit.

    The current folder, a folder above it and a mounted one cannot be replaced: what was written is moved there, a file
    at a time.

    Args:
        path: the folder to write, or to replace.
        keep: says of the name of a file or folder in an old `path`, if nothing of that name was written, whether it
            stays.

    Raises:
        NotADirectoryError: `path` is a file.
        OSError: the folder cannot be written, or the disk is full; the message names it.

    >>> with folder_written_whole("model") as temporary:
    ...     _ = (temporary / "config.json").write_text("{}")
    >>> [file.name for file in Path("model").iterdir()]
    ['config.json']
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file. Name a folder to write.")
    fixed = path == Path.cwd() or path in Path.cwd().parents or path.is_mount()
    with _aside(path / path.name if fixed else path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                _sync(file)
        if fixed:
            _move_into(temporary, path)
        elif path.is_dir():
            _link_kept(path, temporary, keep)
            _exchange(temporary, path)
        else:
            temporary.rename(path)
        _sync(path.parent)


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep everybody else out of an output that takes long to make; the lock ends with the process at the latest.

    Args:
        path: the file or folder to be made. The lock is a hidden file beside it, removed afterwards.

    Raises:
        BlockingIOError: another process or thread holds the lock; the message says which one.
        OSError: the folder cannot be made or written.

    >>> with locked("scores.npy"), locked("scores.npy"):
    ...     pass
    Traceback (most recent call last):
    ...
    BlockingIOError: scores.npy is being written by process ... Wait until it is done, or choose another output.
    """
    path = Path(path)
    _make_folder(path)
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with room_named(path):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        if not _take(descriptor):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(
                f"{path} is being written by {holder or 'another process'}. Wait until it is done, or choose another "
                "output."
            )
        if _is_at(descriptor, lock):
            break
        os.close(descriptor)  # its last holder removed it while we waited: take the one that is there now
    try:
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # the lock holds on a full disk as well
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError if something is there already, for functions that take `overwrite`.

    >>> Path("scores.npy").touch()
    >>> refuse_existing(Path("scores.npy"))
    Traceback (most recent call last):
    ...
    FileExistsError: scores.npy exists. Pass overwrite=True to replace it, or choose another name.
    """
    if os.path.lexists(path):  # a link that leads nowhere, too
        raise FileExistsError(f"{path} exists. Pass overwrite=True to replace it, or choose another name.")


def refuse_inputs(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read, which would be lost, links that lead to it included.

    Args:
        output: the file or folder to write, whether or not it is there.
        inputs: the files and folders that are read; None for one that is not given.

    Raises:
        ValueError: the output is one of the inputs, or a folder that holds one.

    >>> Path("captions.jsonl").touch()
    >>> refuse_inputs("./captions.jsonl", ["mine.csv", "captions.jsonl"])
    Traceback (most recent call last):
    ...
    ValueError: captions.jsonl would be overwritten, and is read: captions.jsonl. Choose another output.
    """
    output = Path(output)
    if not output.exists():
        return
    there = output.resolve()
    for path in filter(None, inputs):
        path = Path(path)
        if path.exists() and (path.samefile(output) or there in path.resolve().parents):
            raise ValueError(f"{output} would be overwritten, and is read: {path}. Choose another output.")


def reserve(path: Path, size: int) -> None:
    """Make a file as long as it will be, and take the room for it now: a mapped file that finds none later dies.

    Raises:
        OSError: the disk has no room.

    >>> reserve(Path("scores.npy"), 1000)
    >>> Path("scores.npy").stat().st_size
    1000
    """
    with path.open("r+b" if path.exists() else "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def remove_remains(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished in a folder, of one output or of all: what nobody keeps locked.

    >>> Path(".scores.npy.0123456789abcdef.partial").mkdir()
    >>> remove_remains(Path("."))
    >>> list(Path(".").iterdir())
    []
    """
    if fcntl is None:
        return
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]+\.partial")
    for remains in [entry for entry in folder.iterdir() if pattern.fullmatch(entry.name)]:
        with contextlib.suppress(OSError):  # gone already, or not ours to open
            descriptor = os.open(remains, os.O_RDONLY)
            try:
                if _take(descriptor, unknown=False):
                    shutil.rmtree(remains)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path in a locked folder beside `path`, which is removed in the end; errors name `path`."""
    _make_folder(path)
    remove_remains(path.parent, path.name)
    folder, descriptor = _locked_folder(path)
    try:
        with room_named(path):
            yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def room_named(path: str | Path) -> Iterator[None]:
    """An error of a full disk, whoever noticed it and however it says so, becomes one that names what was written.

    Raises:
        OSError: the disk is full.

    >>> with room_named("log.jsonl"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: no room to write log.jsonl
    """
    try:
        yield
    except BaseException as error:
        if number := _no_room(error):
            raise OSError(number, f"{os.strerror(number)}: no room to write {path}") from error
        raise


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: its folder is not writable ({error.strerror}). Choose another output folder."
        ) from error


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new hidden folder beside `path`, and the descriptor that keeps it locked."""
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            with room_named(path):
                folder.mkdir()
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise type(error)(
                f"cannot write {path}: its folder is not writable ({error.strerror}). Choose another output folder."
            ) from error
        try:
            descriptor = os.open(folder if fcntl is not None else os.devnull, os.O_RDONLY)
        except FileNotFoundError:
            continue  # somebody who cleaned up took it for what a killed process left
        if fcntl is None or (_take(descriptor) and _is_at(descriptor, folder)):
            return folder, descriptor
        os.close(descriptor)


def _take(descriptor: int, *, unknown: bool = True) -> bool:
    """Lock an open file or folder, unless somebody else has; `unknown` is the answer where nothing can be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in CANNOT_LOCK:
            return unknown
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _put(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name."""
    if overwrite:
        temporary.replace(path)
    else:
        try:
            os.link(temporary, path)  # unlike a rename, never replaces what is there
        except FileExistsError:
            raise FileExistsError(f"{path} appeared while it was being written. It was left as it is.") from None
        except OSError:  # a file system without hard links
            refuse_existing(path)
            temporary.replace(path)
    _sync(path.parent)


def _link_kept(old: Path, new: Path, keep: Callable[[str], bool]) -> None:
    """Give what is to be kept of an old folder to the new one as well."""
    for entry in old.iterdir():
        if not keep(entry.name) or (new / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=link)
        else:
            link(entry, new / entry.name)


def link(old: str | Path, new: str | Path) -> None:
    """The same file under a second name; a copy where the file system has no links.

    >>> _ = Path("old.txt").write_text("hello")
    >>> link("old.txt", "new.txt")
    >>> Path("new.txt").read_text()
    'hello'
    """
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def _move_into(new: Path, old: Path) -> None:
    """Move the contents of a folder into another one, over what has the same names."""
    for entry in new.iterdir():
        if entry.is_dir():
            shutil.rmtree(old / entry.name, ignore_errors=True)
        entry.replace(old / entry.name)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places: in one step where the system can, else in two renames."""
    if sys.platform == "linux":
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        here = -100  # AT_FDCWD: paths are relative to the current folder
        if renameat2 and renameat2(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0:
            return
    spare = one.with_name(f"{one.name}.replaced")
    other.rename(spare)
    one.rename(other)


def _no_room(error: BaseException | None) -> int | None:
    """The number of an error that says, or was caused by one that says, that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error.errno
        # When a full disk is noticed while a file is closed, h5py raises a RuntimeError with the number in its text;
        # safetensors has errors of its own.
        for number in NO_ROOM:
            if re.search(rf"(errno = |os error ){number}\b", str(error)):
                return number
        error = error.__cause__ or error.__context__
    return None


def _sync(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
