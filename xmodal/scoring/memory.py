"""How much memory scoring may take, and results larger than it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from xmodal.data.atomic import locked, reserve, written_whole
from xmodal.numerics import check_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

LARGEST_DEFAULT = 160 << 20
"""More than this makes nothing faster on a CPU: what counts there is what fits into the cache."""

NUMPY_DTYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


def check_budget(budget_bytes: int | None, device: torch.device) -> int:
    """The budget, or a quarter of what is free on the device where it is None.

    Raises:
        ValueError: for a budget that is no whole number, or not positive.

    >>> check_budget(1 << 20, torch.device("cpu")), check_budget(None, torch.device("cpu")) <= LARGEST_DEFAULT
    (1048576, True)
    """
    if budget_bytes is None:
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0] // 4
        return min(LARGEST_DEFAULT, psutil.virtual_memory().available // 4)
    check_count("budget_bytes", budget_bytes)
    return int(budget_bytes)


def check_out(out: str | Path) -> Path:
    """Refuse a name that is none of an array file, before anything is computed.

    Raises:
        ValueError: `out` is not named `*.npy`.

    >>> check_out("scores.csv")
    Traceback (most recent call last):
    ...
    ValueError: out is 'scores.csv'; scores are written as an array file, so name it *.npy
    """
    path = Path(out)
    if path.suffix != ".npy":
        raise ValueError(f"out is {str(out)!r}; scores are written as an array file, so name it *.npy")
    return path


def fill_matrix(
    shape: tuple[int, int],
    dtype: torch.dtype,
    out: str | Path | None,
    overwrite: bool,
    fill: Callable[[Tensor], None],
) -> Float[Tensor, "image caption"]:
    """A new matrix after `fill` has written all of it: in memory, or in a `.npy` file that is mapped into memory.

    The file has its name only when it is whole, and what is returned is a private view of it: writing to the tensor
    does not change the file.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False.
        BlockingIOError: another process or thread is writing `out`.
        OSError: there is no room for it, which is found out before anything is computed.
        ValueError: `out` is not named `*.npy`.

    >>> scores = fill_matrix((2, 3), torch.float32, "scores.npy", False, lambda matrix: matrix.fill_(0.5))
    >>> scores.shape, np.load("scores.npy").mean()
    (torch.Size([2, 3]), np.float32(0.5))
    """
    if out is None:
        result = torch.empty(shape, dtype=dtype, device="cpu")
        fill(result)
        return result
    path = check_out(out)
    with locked(path), written_whole(path, overwrite=overwrite) as temporary:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=NUMPY_DTYPES[dtype], shape=shape)
        reserve(temporary, temporary.stat().st_size)
        fill(torch.from_numpy(mapped))
        mapped.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c"))
