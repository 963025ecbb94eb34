"""A name builds what it stands for; a wrong one is answered with the nearest."""

from __future__ import annotations

import pytest

from xmodal.names import build, near_miss


def make(size: int, color: str = "red") -> tuple[int, str]:
    return size, color


def test_options_are_passed_on():
    assert build("thing", {"make": make}, {"name": "make", "size": 3, "color": "blue"}) == (3, "blue")
    assert build("thing", {"make": make}, {"name": "make", "size": 3}) == (3, "red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mak"}, r"unknown thing 'mak' \(did you mean 'make'\?\); known: make, other"),
        ({"name": "zzz"}, r"unknown thing 'zzz'; known: make, other"),
        ({"size": 3}, "unknown thing None"),
        (
            {"name": "make", "size": 3, "colour": 1},
            r"no option 'colour' \(did you mean 'color'\?\)",
        ),
        ({"name": "make"}, "thing 'make' needs the option 'size'"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("thing", {"make": make, "other": make}, options)


def test_near_miss_is_silent_about_strangers():
    assert near_miss("qqq", ["make"]) == ""
