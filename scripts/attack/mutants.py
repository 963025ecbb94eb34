"""Damage: bytes that were changed, cut, doubled, inserted or moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

LARGE = [b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x00" * 8, b"\xff" * 8, b"99999999999999", b"-1"]
"""What counts and offsets become when somebody means harm."""


def mutant(whole: bytes, random: Random) -> bytes:
    """A damaged copy of a file.

    >>> from random import Random
    >>> mutant(b"hello", Random(0)) != b"hello"
    True
    """
    data = bytearray(whole)
    for _ in range(random.choice((1, 1, 1, 2, 5, 30))):
        place = random.randrange(len(data) + 1) if random.random() < 0.7 else random.randrange(min(len(data), 400) + 1)
        match random.randrange(7):
            case 0 | 1 if place < len(data):
                data[place] ^= 1 << random.randrange(8)
            case 2 if place < len(data):
                data[place] = random.randrange(256)
            case 3:
                data[place : place + 8] = random.choice(LARGE)
            case 4:
                del data[place : place + random.choice((1, 4, 64, 1000))]
            case 5:
                data[place:place] = random.randbytes(random.choice((1, 4, 64)))
            case 6:
                start = random.randrange(len(data) + 1)
                data[place:place] = data[start : start + random.choice((1, 16, 200))]
            case _:
                del data[place:]
    return bytes(data) if bytes(data) != whole else whole[:-1]
