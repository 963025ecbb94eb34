"""Attended cosines and their gradient by a program that the machine's C++ compiler makes (`attended.cpp`).

torch passes over all products a dozen times; the program reads them once from memory, and keeps what it computes of
sixteen queries in the cache until it has their sums. Without a compiler torch does it (see `xmodal.compiled`).
"""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.compiled import program
from xmodal.heads.ragged import Ragged, offsets_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.heads.comparison import Focal

SOURCE = Path(__file__).with_name("attended.cpp")

LANES = 16
"""Queries side by side; of fewer than half of them torch makes as much."""

FOCAL = (None, "equal", "prob")
FEW = 1 << 14
"""Products for which a program is not made."""


class Sums(NamedTuple):
    """Over the context of every query, which a gradient takes; of two of them as if the weights had the sum one."""

    totals: Float[Tensor, "context_item query query_item"]
    """Of the weights."""
    dots: Float[Tensor, "context_item query query_item"]
    squares: Float[Tensor, "context_item query query_item"]
    """Of the attended context's length."""
    lengths: Float[Tensor, "context_item context query_item"]
    """Of the products of a context item with a set of queries."""


class Slopes(NamedTuple):
    """What a gradient is by what, of every query."""

    by_dot: Float[Tensor, "context_item query query_item"]
    """The cosine's by the dot product, over the sum of the weights."""
    by_square: Float[Tensor, "context_item query query_item"]
    """By the squared length, over that sum squared."""
    mean: Float[Tensor, "context_item query query_item"]
    """What all weights have in common, over the sum."""


class _Products(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("contexts", "places", "words", "queries")),
        *((name, ctypes.c_int64) for name in ("context_stride", "place_stride")),
        *((name, ctypes.c_void_p) for name in ("offsets", "counts", "values", "gram", "mask")),
        *((name, ctypes.c_float) for name in ("slope", "temperature", "epsilon")),
        ("focal", ctypes.c_int32),
    )


class Attending:
    """The program for some products: stacked cross attention (Lee et al., ECCV 2018, eq. 1-8), BFAN's focal one too.

    Only where `is_served` says so, or at least `is_compiled`.

    Args:
        products: on the CPU, in float32.
        gram: of the contexts.
        mask: of the contexts, True = real.
        slope: of the leaky ReLU before the normalization; 1 for none.
        temperature: of the softmax.
        epsilon: added to a length before something is divided by it.
        focal: BFAN's focal function, by which weights are left out.

    Example:
        >>> import torch
        >>> from xmodal.heads.attended_program import Attending, is_compiled
        >>> products, gram = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), torch.eye(2)[None]
        >>> options = {"slope": 0.1, "temperature": 9.0, "epsilon": 1e-8}
        >>> attending = Attending(products, gram, torch.ones(1, 2, dtype=torch.bool), **options)
        >>> norms = torch.full((1, 1, 1), 2.0)  # of a query that lies as the first region does
        >>> round(float(attending.cosines(norms)[0] if is_compiled() else 1.0), 2)
        1.0
    """

    def __init__(
        self,
        products: Float[Tensor, "context_item context query query_item"] | Ragged,
        gram: Float[Tensor, "context_item context context"],
        mask: Bool[Tensor, "context_item context"],
        *,
        slope: float,
        temperature: float,
        epsilon: float,
        focal: Focal | None = None,
    ) -> None:
        if isinstance(products, Ragged):
            values, counts = products
            values, offsets = (values if values.stride(2) == 1 else values.contiguous()), offsets_of(counts)
        else:
            values = products if products.stride(3) == 1 else products.contiguous()
            counts = [values.shape[3]] * values.shape[2]
            offsets = [word * values.stride(2) for word in range(values.shape[2])]
        self.values = values
        self.shape = contexts, places, words, queries = *values.shape[:2], len(counts), counts[0]
        numbers = torch.tensor(offsets, device="cpu"), torch.tensor(counts, dtype=torch.int32, device="cpu")
        held = *numbers, _float32(values), _float32(gram).contiguous(), mask.contiguous()
        self._held = held  # as long as the program may read them
        self._given = _Products(
            contexts, places, words, queries, *values.stride()[:2],
            *(tensor.data_ptr() for tensor in held), slope, temperature, epsilon, FOCAL.index(focal),
        )  # fmt: skip

    def cosines(
        self, norms: Float[Tensor, "#context_item query query_item"], *, with_sums: bool = False
    ) -> tuple[Float[Tensor, "context_item query query_item"], Sums | None]:
        """Of every query, of this length, with what it attends to; and what a gradient takes."""
        contexts, places, words, queries = self.shape
        norms = _float32(norms).contiguous()
        found = self.values.new_empty(4 if with_sums else 1, contexts, words, queries)
        sums = None
        if with_sums:
            sums = Sums(found[1], found[2], found[3], self.values.new_empty(contexts, places, queries))
        stride = words * queries if len(norms) > 1 else 0
        self._run("attend", norms, stride, found[0], *(sums or (None,) * 4))
        return found[0], sums

    def gradient(
        self, lengths: Float[Tensor, "context_item context query_item"], slopes: Slopes, *, of_gram: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Of the products, in their shape, and if it is asked for of the Gram matrix."""
        change, gram = self.values.new_empty(self.values.shape), None
        if of_gram:
            gram = change.new_empty(self.shape[0], self.shape[1], self.shape[1])
        self._run(
            "attend_backwards", _float32(lengths), *(_float32(slope).contiguous() for slope in slopes), change, gram
        )
        return change, gram

    def _run(self, function: str, *given: Tensor | int | None) -> None:
        made = _program()
        assert made is not None, "asked before"
        scratch, run = made.attended_scratch(self.shape[1], self.shape[2]), getattr(made, function)
        pointers = [each.data_ptr() if isinstance(each, torch.Tensor) else each for each in given]

        def work(begin: int, end: int) -> None:
            memory = torch.empty(scratch, dtype=torch.uint8, device="cpu")
            run(ctypes.byref(self._given), begin, end, memory.data_ptr(), *pointers)

        _side_by_side(self.shape[0], work)


def _float32(given: Tensor) -> Tensor:
    """What the program reads from memory as float32, made sure."""
    if given.dtype != torch.float32 or given.device.type != "cpu":
        raise ValueError(f"the compiled attention takes float32 on the CPU, got {given.dtype} on {given.device}")
    return given


def is_served(values: Float[Tensor, "context_item context *queries"], queries: float) -> bool:
    """Whether the program computes these products: many of them, in float32 on a CPU, where it could be made.

    Args:
        values: the products.
        queries: how many lie side by side.

    >>> is_served(torch.ones(1, 2, 3, 4, dtype=torch.float64), queries=4)
    False
    """
    many = values.numel() >= FEW and queries >= LANES // 2
    fits = many and values.dtype == torch.float32 and values.device.type == "cpu"
    return fits and not torch.compiler.is_compiling() and _program() is not None


def is_compiled() -> bool:
    """Whether there is a program, by which the last bits of scores and gradients are others than torch's.

    >>> is_compiled() is is_compiled()
    True
    """
    return _program() is not None


@functools.cache
def _program() -> Any:
    made = program(SOURCE)
    if made is not None:
        made.attended_scratch.restype, made.attended_scratch.argtypes = ctypes.c_int64, [ctypes.c_int32] * 2
        pointer, start = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p]
        made.attend.restype = made.attend_backwards.restype = None
        made.attend.argtypes = [*start, pointer, ctypes.c_int64, *[pointer] * 5]
        made.attend_backwards.argtypes = [*start, *[pointer] * 6]
    return made


def _side_by_side(contexts: int, work: Callable[[int, int], None]) -> None:
    """A part of the contexts for every thread that torch has."""
    workers = min(torch.get_num_threads(), contexts)
    if workers == 1:
        work(0, contexts)
        return
    bounds = [contexts * worker // workers for worker in range(workers + 1)]
    others = [_pool(workers).submit(work, *bounds[worker : worker + 2]) for worker in range(1, workers)]
    work(*bounds[:2])
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers - 1, "xmodal-attended")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a process that was forked has none of the threads
