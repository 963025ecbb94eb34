"""The bounds of `xmodal.search.bound` in one pass over memory, by a program that the machine's C++ compiler makes.

Many short passes of torch over a block of items take ten times as long as what they compute. `bound.cpp` computes the
same for one item after the other, with the words of a query side by side (see `xmodal.compiled`). Without a compiler,
for focal attention, for the softmax normalization and for items that attend, torch does it.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from xmodal.compiled import program
from xmodal.search.quantize import NEXT

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.heads.comparison import CrossAttention
    from xmodal.search.segment import Segment

SOURCE = Path(__file__).with_name("bound.cpp")
LANES = 16
"""Words side by side."""
MOST_WORDS = 4 * LANES - 1
FINE = 254
"""Fine steps of a word's coordinates in a coarse one."""
NORMS = {"none": 0, "l1": 1, "l2": 2}
AGGREGATIONS = ("logsumexp", "mean", "sum", "max")
APART = 8
"""Items of a segment to one that is looked at, from which on they are read from the file instead of mapped."""
ARRAYS = ("lead", "rest", "steps", "errors", "tails", "gram", "reach", "norms")
"""Of a segment, that the program reads; some may be missing."""
ESTIMATE = -1
"""Instead of a number of steps: no bound but the score itself, of the vectors that the 8 bits stand for."""


class _Query(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("words", "groups", "lead", "rest", "next")),
        *((name, ctypes.c_void_p) for name in ("codes", "steps", "coarse_errors", "fine_errors")),
        *((name, ctypes.c_void_p) for name in ("norms", "real", "tails")),
        *((name, ctypes.c_float) for name in ("fine_step", "spread", "coarse_length", "fine_length")),
        *((name, ctypes.c_int32) for name in ("clips", "norm", "aggregation", "dinkelbach")),
        *((name, ctypes.c_float) for name in ("temperature", "scale", "enough")),
    )


class _Segment(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*ARRAYS, "mapped")),
        ("file", ctypes.c_int64),
    )


class Words(NamedTuple):
    """The vectors of a query as the program takes them: in the lanes of vectors, in integers of two precisions."""

    many: int
    lead: int
    codes: np.ndarray
    steps: np.ndarray
    errors: np.ndarray
    """Length of what coarse integers leave out of each, at most; the same of both."""
    norms: np.ndarray
    real: np.ndarray
    tails: np.ndarray
    """Length of what follows the leading coordinates of each, and of what follows the `next` after them, at most."""
    spread: float

    @classmethod
    def of(
        cls, coordinates: Float[Tensor, "word coordinate"], norms: Float[Tensor, " word"], spread: float, lead: int
    ) -> Words:
        """Round the words of a query: every word has a step for its leading coordinates and one for the others.

        >>> words = Words.of(torch.eye(3, 8), torch.ones(3), 1.0, 4)
        >>> words.codes.shape, bool((words.errors[1, :3] < 1e-3).all())
        ((2, 2, 16, 4), True)
        """
        lanes = (len(coordinates) // LANES + 1) * LANES  # the lane after the last word stays zero: bound.cpp needs one
        parts = [coordinates[:, :lead], coordinates[:, lead:]]
        steps = [_lanes(part.abs().amax(dim=1) / 127, lanes) if part.shape[1] else np.zeros(lanes) for part in parts]
        left, codes, errors = list(parts), [], []
        for finer in (1, FINE):
            blocks = []
            for number, step in enumerate(steps):
                scale = torch.from_numpy(np.asarray(step[: len(norms)], np.float32))[:, None].clamp_min(1e-30) / finer
                rounded = (left[number] / scale).round().clamp(-127, 127)
                left[number] = left[number] - rounded * scale
                blocks.append(_interleaved(rounded, lanes))
            codes.append(np.concatenate(blocks))
            missed = torch.cat(left, dim=1).norm(dim=1)
            errors.append(_lanes(missed * (1 + 1e-5) + 1e-5 * norms, lanes))
        after = (lead, lead + NEXT)
        tails = [_lanes(coordinates[:, start:].norm(dim=1) * (1 + 1e-5) + 1e-6 * norms, lanes) for start in after]
        return cls(
            len(norms), lead, np.stack(codes), np.stack(steps).astype(np.float32), np.stack(errors),
            _lanes(norms, lanes), _lanes(torch.ones_like(norms), lanes), np.stack(tails), spread,
        )  # fmt: skip

    def declared(self, how: CrossAttention, coordinates: int, steps: int, enough: float) -> _Query:
        """What the program reads; these words must outlive it."""
        coarse, fine = (float(np.linalg.norm(row)) * (1 + 1e-6) for row in self.errors)
        pointers = (self.codes, self.steps, self.errors[0], self.errors[1], self.norms, self.real, self.tails)
        rest = coordinates - self.lead
        return _Query(
            self.many, len(self.norms) // LANES, self.lead, rest, NEXT if rest > NEXT else 0,
            *(each.ctypes.data for each in pointers),
            1 / FINE, self.spread, coarse, fine,
            how.clips, NORMS[how.normalization.removeprefix("clipped").removeprefix("_") or "none"],
            AGGREGATIONS.index(how.aggregation), steps, how.temperature, how.lse_scale, enough,
        )  # fmt: skip


def served(how: CrossAttention, roles: tuple[bool, ...], words: int) -> bool:
    """Whether the program computes this comparison, and is there.

    >>> from xmodal.heads.comparison import CrossAttention
    >>> served(CrossAttention(normalization="softmax"), (True,), 5)
    False
    """
    fits = roles == (True,) and how.focal is None and how.normalization != "softmax" and words <= MOST_WORDS
    return fits and library() is not None


def bounds(
    words: Words,
    how: CrossAttention,
    segment: Segment,
    length: int,
    items: Int[Tensor, " item"],
    *,
    steps: int,
    enough: float = -np.inf,
) -> Float[Tensor, " item"]:
    """The most that the scores of items of equal length with a query can be, up to `xmodal.search.bound.MARGIN`.

    Args:
        words: of the query.
        how: of the head, of a kind that is `served`.
        segment: of the items.
        length: of every item, in vectors.
        items: their numbers in the segment.
        steps: Dinkelbach's; or `ESTIMATE`, for the score of what is kept instead of a bound.
        enough: where a wide bound is below it, it is not made any tighter.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from xmodal.heads.comparison import CrossAttention
        >>> from xmodal.search.draft import Items, draft, write_segment
        >>> from xmodal.search.native import Words, bounds, served
        >>> from xmodal.search.quantize import Quantizer
        >>> from xmodal.search.segment import Segment
        >>> vectors = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
        >>> quantizer, path = Quantizer.fit(vectors, lead=4), Path("six.safetensors")
        >>> write_segment(path, [draft(Items(["7", "8"], vectors, torch.tensor([3, 3])), quantizer)])
        >>> how, words = CrossAttention(), Words.of(quantizer.rotate(vectors[:2]), torch.ones(2), 1.5, 4)
        >>> there = served(how, (True,), 2)  # a compiler, that is
        >>> found = bounds(words, how, Segment(path), 3, torch.arange(2), steps=6) if there else torch.ones(2)
        >>> bool((found > 0).any()), len(found)
        (True, 2)
    """
    found = torch.empty(len(items), dtype=torch.float32, device="cpu")
    program = library()
    assert program is not None, "asked before"
    arrays = segment.arrays
    pointers = (arrays[name].ctypes.data if name in arrays else None for name in ARRAYS)
    apart = int(items[-1] - items[0]) >= APART * len(items)
    mapped = np.frombuffer(segment.mapped, np.uint8).ctypes.data
    there = _Segment(*pointers, mapped, segment.descriptor if apart else -1)
    coordinates = arrays["lead"].shape[1] + arrays["rest"].shape[1]
    query = words.declared(how, coordinates, steps, enough)
    rows, grams = segment.starts[items].contiguous(), segment.gram_starts(length, items).contiguous()
    scratch = np.empty(program.scratch_bytes(query.groups, length, coordinates), np.uint8)
    program.bounds(
        ctypes.byref(query), ctypes.byref(there), length, len(items), rows.data_ptr(), grams.data_ptr(),
        scratch.ctypes.data, found.data_ptr(),
    )  # fmt: skip
    return found


@functools.cache
def library() -> Any:
    """The program; None where there is none, see `xmodal.compiled.program`.

    >>> library() is library()
    True
    """
    made = program(SOURCE)
    if made is not None:
        made.scratch_bytes.restype, made.scratch_bytes.argtypes = ctypes.c_int64, [ctypes.c_int32] * 3
        pointers = [ctypes.c_void_p] * 4
        made.bounds.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, *pointers]
        made.bounds.restype = None
    return made


def _lanes(values: Float[Tensor, " word"], lanes: int) -> np.ndarray:
    padded = np.zeros(lanes, np.float32)
    padded[: len(values)] = values.numpy()
    return padded


def _interleaved(codes: Float[Tensor, "word coordinate"], lanes: int) -> np.ndarray:
    """`(coordinate / 4, lane, 4)`, plus 128: one multiplication takes four coordinates of all words."""
    words, coordinates = codes.shape
    fours = -(-coordinates // 4)
    padded = np.full((lanes, 4 * fours), 128, np.uint8)
    padded[:words, :coordinates] = (codes + 128).numpy().astype(np.uint8)
    return np.ascontiguousarray(padded.reshape(lanes, fours, 4).transpose(1, 0, 2))
