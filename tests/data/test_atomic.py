"""Files appear whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from xmodal.data.atomic import written_whole


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


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    script = f"""
import os, signal
from xmodal.data.atomic import written_whole
with written_whole({str(path)!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "not_a_folder").write_text("")
    with pytest.raises(OSError, match="not_a_folder"), written_whole(tmp_path / "not_a_folder" / "file.txt"):
        pass
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="locked"), written_whole(tmp_path / "locked" / "file.txt"):
            pass
