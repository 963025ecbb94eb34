"""What computes a tile of scores, and whether it can here: never chosen silently."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from xmodal.scoring.tiles import fast_path
from xmodal.scoring.triton.kernels import LONGEST_SETS, PRECISION, check_triton, kernel_options

if TYPE_CHECKING:
    import torch

    from xmodal.heads import Head

Backend = Literal["eager", "compile", "triton"]


def choose_backend(
    backend: Backend | None, head: Head, dtype: torch.dtype, device: torch.device, widths: tuple[int, int]
) -> Backend:
    """The backend that was asked for, if it can score this head here; or the default of the device.

    Args:
        backend: what was asked for, or None.
        head: the head.
        dtype: of the products.
        device: where they are computed.
        widths: the most regions of an image and words of a caption, padding included.

    Raises:
        ValueError: for a backend that does not exist, or cannot score this head or on this device.
        RuntimeError: no C++ compiler for `compile` on a CPU.
        ModuleNotFoundError: no triton where it is needed.

    >>> import torch
    >>> from xmodal.heads import SCAN
    >>> choose_backend(None, SCAN(), torch.float32, torch.device("cpu"), widths=(36, 12))
    'eager'
    """
    if backend is None:
        return "triton" if device.type == "cuda" and _takes(head, dtype, widths) else "eager"
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, or None; got {backend!r}")
    if backend == "triton":
        check_triton(dtype, device)
        kernel_options(head)
    if backend == "compile":
        if fast_path(head.comparison) is None:
            raise ValueError(f"backend='compile' scores BFAN, SCAN, got {type(head).__name__}; use backend='eager'")
        _check_compiler(device)
    return backend


def _takes(head: Head, dtype: torch.dtype, widths: tuple[int, int]) -> bool:
    """Whether the Triton kernel is there and scores this head for sets of these lengths."""
    try:
        kernel_options(head)
    except ValueError:
        return False
    fit = all(width <= size for width, size in zip(sorted(widths), LONGEST_SETS, strict=True))
    return fit and dtype in PRECISION and find_spec("triton") is not None


def _check_compiler(device: torch.device) -> None:
    """Refuse to compile where torch would find nothing to compile with."""
    if device.type != "cpu":
        if find_spec("triton") is None:
            raise ModuleNotFoundError("backend='compile' needs triton on a GPU; install it or use backend='eager'")
        return
    known = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if not any(map(shutil.which, known)):
        raise RuntimeError(
            f"backend='compile' needs a C++ compiler on the CPU and none of {', '.join(known)} is on the PATH; install "
            "one (on Debian: apt-get install g++), name it in the environment variable CXX, or use backend='eager'"
        )
