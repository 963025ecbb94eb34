"""Files and folders appear whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from xmodal.data import atomic
from xmodal.data.atomic import folder_written_whole, locked, reserve, written_whole


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def kill_while_writing(path) -> None:
    script = f"""
import os, signal
from xmodal.data.atomic import written_whole
with written_whole({str(path)!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    kill_while_writing(path)
    assert path.read_text() == "old"


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_that_is_being_written(tmp_path):
    path = tmp_path / "file.txt"
    kill_while_writing(path)
    (remains,) = tmp_path.iterdir()
    with written_whole(path) as mine:
        assert not remains.exists()
        with written_whole(path) as other:
            assert mine != other
            other.write_text("other")
        assert mine.exists()
        mine.write_text("mine")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_left_as_it_is(tmp_path):
    path = tmp_path / "file.txt"

    def write_over_another():
        with written_whole(path, overwrite=False) as temporary:
            temporary.write_text("mine")
            path.write_text("another's")

    with pytest.raises(FileExistsError, match="appeared while it was being written"):
        write_over_another()
    assert path.read_text() == "another's"
    with pytest.raises(FileExistsError, match=r"file\.txt exists"), written_whole(path, overwrite=False):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "not_a_folder").write_text("")
    with pytest.raises(OSError, match="not_a_folder"), written_whole(tmp_path / "not_a_folder" / "file.txt"):
        pass
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="locked"), written_whole(tmp_path / "locked" / "file.txt"):
            pass


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="folder is a folder"), written_whole(tmp_path / "folder"):
        pass
    with pytest.raises(NotADirectoryError, match="file is a file"), folder_written_whole(tmp_path / "file"):
        pass


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read_a_file(tmp_path, umask):
    old = os.umask(umask)
    try:
        with written_whole(tmp_path / "file") as temporary:
            temporary.unlink()  # a library may put a file of its own there
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        with folder_written_whole(tmp_path / "folder") as temporary:
            os.close(os.open(temporary / "file", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(old)
    for file in (tmp_path / "file", tmp_path / "folder" / "file"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("exchange", ["in one step", "in two renames"])
def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path, exchange, monkeypatch):
    if exchange == "in two renames":
        monkeypatch.setattr(atomic.sys, "platform", "elsewhere")
    folder = tmp_path / "model"
    (folder / "ours").mkdir(parents=True)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("kept")
    with folder_written_whole(folder, keep=lambda name: name != "ours") as temporary:
        (temporary / "weights").write_text("new")
        assert (folder / "ours").exists()
    assert sorted(file.name for file in folder.iterdir()) == ["notes", "weights"]
    assert (folder / "notes" / "mine.txt").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")

    def fail():
        with folder_written_whole(tmp_path / "model") as temporary:
            (temporary / "weights").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


FULL = [
    OSError(28, "No space left on device"),
    RuntimeError("Unable to flush file (file write failed: errno = 28, error message = 'No space left on device')"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError(122, "Disk quota exceeded"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:20])
def test_a_full_disk_is_an_ordinary_error_that_names_the_file_whoever_noticed_it(tmp_path, error):
    def write():
        with written_whole(tmp_path / "file"):
            try:
                raise error
            except Exception as first:
                raise RuntimeError("unexpected pos 64 vs 0") from first

    with pytest.raises(OSError, match=r"no room to write .*file") as caught:
        write()
    assert caught.value.errno in (28, 122)
    assert not list(tmp_path.iterdir())


def test_an_error_that_happens_to_hold_the_number_is_not_taken_for_a_full_disk(tmp_path):
    def write():
        with written_whole(tmp_path / "file"):
            raise ValueError("image 28 has 280 regions")

    with pytest.raises(ValueError, match="280 regions"):
        write()


def test_two_writers_of_one_output_know_of_each_other(tmp_path):
    path, failures = tmp_path / "scores.npy", []

    def write():
        try:
            with locked(path):
                pass
        except BlockingIOError as error:
            failures.append(str(error))

    with locked(path):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        script = f"from xmodal.data.atomic import locked\nwith locked({str(path)!r}): pass"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"is being written by process {os.getpid()} on " in failures[0]
    assert f"is being written by process {os.getpid()} on " in other.stderr
    with locked(path):  # free again
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = f"""
import os, signal
from xmodal.data.atomic import locked
with locked({str(tmp_path / "run")!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    with locked(tmp_path / "run"):
        pass


def test_room_is_taken_before_it_is_needed(tmp_path):
    reserve(tmp_path / "file", 100_000)
    status = (tmp_path / "file").stat()
    assert status.st_size == 100_000
    assert status.st_blocks * 512 >= 100_000
