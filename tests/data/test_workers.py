"""What stops a process that reads ahead stops the program in the same words, and never leaves it waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from scripts.attack.kills import run_until_event
from xmodal.data.labelled import LabelledImage, LabelledImages, image_transform
from xmodal.data.workers import read_ahead
from xmodal.embedder import embed_all

LIMIT = 300
"""Seconds after which a program that should have ended is said to hang."""


class Picky(ValueError):
    """An error that another process cannot build again from its message alone."""

    def __init__(self, place: str, *, wanted: int) -> None:
        super().__init__(f"{place} is not {wanted}")


class Holding(OSError):
    """An error that cannot be sent to another process."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Numbers(Dataset):
    """Eight items, of which the last ones do something."""

    def __init__(self, last=lambda: None) -> None:
        self.last = last

    def __len__(self):
        return 8

    def __getitems__(self, indices):
        if max(indices) > 5:
            self.last()
        return list(indices), os.getpid()


def raised(error):
    def last():
        raise error()

    return last


def told(dataset, workers):
    with pytest.raises(Exception) as caught, read_ahead(dataset, workers, batch_size=2) as batches:
        list(batches)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        lambda: ValueError("3.png is\nno picture"),
        lambda: KeyError("cat"),
        lambda: FileNotFoundError(2, "No such file or directory", "3.png"),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        lambda: UnidentifiedImageError("cannot identify"),
        MemoryError,
    ],
)
def test_errors_arrive_as_they_are_raised_without_workers(error):
    alone, ahead = (told(Numbers(raised(error)), workers) for workers in (0, 2))
    assert (type(ahead), str(ahead), ahead.args) == (type(alone), str(alone), alone.args)
    assert "in last" in str(ahead.__cause__)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (lambda: Picky("3.png", wanted=8), ValueError, "Picky: 3.png is not 8"),
        (lambda: Holding("3.png is full"), OSError, "Holding: 3.png is full"),
    ],
)
def test_errors_that_cannot_be_sent_arrive_as_their_nearest_built_in_kind(error, kind, message):
    ahead = told(Numbers(raised(error)), 1)
    assert (type(ahead), str(ahead)) == (kind, message)


def test_signals_are_left_to_the_process_that_reads():
    with read_ahead(Numbers(), 2, batch_size=1, prefetch_factor=1) as batches:
        read = [next(batches)]
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(read[0][1], number)
        read += batches
    assert [items for items, _ in read] == [[number] for number in range(8)]
    assert read[0][1] == read[2][1] == read[6][1] != os.getpid()


def stopped_while_a_worker_sleeps():
    asleep = multiprocessing.Event()

    def sleep():
        asleep.set()
        time.sleep(10 * LIMIT)

    with read_ahead(Numbers(sleep), 2, batch_size=2) as batches:
        next(batches)
        asleep.wait()
        raise SystemExit(7)


def test_a_program_that_stops_does_not_wait_for_what_its_workers_do(tmp_path):
    assert run_until_event(stopped_while_a_worker_sleeps, tmp_path, seconds=LIMIT)[0] == 7


def test_an_embedder_that_reads_ahead_tells_a_damaged_image_as_it_is(tmp_path):
    for number in range(3):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    images = [LabelledImage(path, "wren", "test") for path in sorted(tmp_path.iterdir())]
    images = LabelledImages(images, image_transform(train=False, resize=24, crop=16))
    messages = []
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"2\.png") as caught:
            embed_all(torch.nn.Flatten(), images, batch_size=2, workers=workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
