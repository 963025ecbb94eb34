"""The fastest matrix product at hand, chosen once.

torch hands float32 products on a CPU to one library, which is not the fastest on every processor: where that one holds
back on AVX-512, oneDNN, which torch brings too, takes down to half of the time. At its first large product a process
times torch's, oneDNN's and NumPy's, drops those whose errors are not those of the dtype, and stays with the fastest;
what it found is kept in a file for the next process. torch's own stays where it is about as fast. Products of two
matrices go through `inner_products`, linear layers through `linear` or `Linear`; gradients, of any order, take the same
way.

The choice decides on the last bits of a product. It is logged (logger `xmodal`, level info), stored with every training
run, which goes on with it, and can be made by hand: `XMODAL_PRODUCT=torch` in the environment, or
`use_product("torch")`.

Small products, other dtypes and devices, autocast and compiled code are left to torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jaxtyping import Float
    from torch import Tensor

Product = Literal["torch", "onednn", "numpy"]

VARIABLE = "XMODAL_PRODUCT"
"""Name of the environment variable that makes the choice."""

SMALLEST = 1 << 21
"""Multiplications below which a product is torch's: calling anything else costs more than it saves."""

MARGIN = 1.15
"""How many times as fast as torch's another product must be: what is about as fast changes nothing."""

WORST_ERROR = 4.0
"""How much larger than torch's the largest error of another product may be: the order of a sum may differ, not its
precision."""

TURNS = 5
"""How often every product is timed; the fastest turn counts, because other load only adds."""

logger = logging.getLogger("xmodal")

_chosen: dict[tuple[torch.dtype, int], Product] = {}
_forced: list[Product | None] = [None]
_lock = threading.RLock()


def inner_products(
    rows: Float[Tensor, "*row dim"],
    columns: Float[Tensor, "column dim"],
    out: Float[Tensor, "*row column"] | None = None,
) -> Float[Tensor, "*row column"]:
    """The inner products of all rows with all columns, `rows @ columns.T`, by the fastest product at hand.

    Args:
        rows: vectors, along any number of axes.
        columns: vectors along one axis.
        out: a buffer that may be used for the result, where no gradient is asked for. The result need not be in it.

    Example:
        >>> import torch
        >>> from xmodal.products import inner_products
        >>> inner_products(torch.tensor([[[1.0, 2.0]]]), torch.eye(2))
        tensor([[[1., 2.]]])
    """
    return _compute(rows, columns, None, out)


def linear(
    items: Float[Tensor, "*item input_dim"],
    weight: Float[Tensor, "output_dim input_dim"],
    bias: Float[Tensor, " output_dim"] | None = None,
) -> Float[Tensor, "*item output_dim"]:
    """`torch.nn.functional.linear` by the fastest product at hand.

    Example:
        >>> import torch
        >>> from xmodal.products import linear
        >>> linear(torch.ones(1, 2), torch.eye(2), torch.tensor([0.0, 0.5]))
        tensor([[1.0000, 1.5000]])
    """
    return _compute(items, weight, bias, None)


class Linear(nn.Linear):
    """`torch.nn.Linear` by the fastest product at hand; parameters, names and start are the same.

    Example:
        >>> import torch
        >>> from xmodal.products import Linear
        >>> Linear(8, 4)(torch.ones(2, 36, 8)).shape
        torch.Size([2, 36, 4])
    """

    def forward(self, input: Float[Tensor, "*item input_dim"]) -> Float[Tensor, "*item output_dim"]:  # torch's name
        """Every item by the weight, with the bias added."""
        return linear(input, self.weight, self.bias)


def use_product(product: Product | None) -> None:
    """Make the choice for this process by hand, also against the environment; None leaves it to measurement again.

    float64 has no oneDNN: there torch's product stays.

    Raises:
        ValueError: for a product that does not exist, or cannot be computed here; it says what can.

    Example:
        >>> from xmodal.products import chosen_product, use_product
        >>> use_product("torch")
        >>> chosen_product()
        'torch'
        >>> use_product(None)
    """
    if product is not None:
        _check(product, "product")
    _forced[0] = product


def chosen_product(dtype: torch.dtype = torch.float32, threads: int | None = None) -> Product:
    """What computes large products of a dtype, by so many threads; measured, and logged, when first asked for.

    Args:
        dtype: of both factors.
        threads: None for the number that torch has now.

    Raises:
        ValueError: the environment names a product that does not exist or cannot be computed here.

    Example:
        >>> import torch
        >>> from xmodal.products import chosen_product
        >>> chosen_product(torch.bfloat16)  # which torch hands to oneDNN itself
        'torch'
    """
    forced = _forced[0] or os.environ.get(VARIABLE)
    if forced:
        return _check(forced, VARIABLE) if dtype in DTYPES.get(forced, {dtype}) else "torch"
    if not any(dtype in dtypes for dtypes in DTYPES.values()):
        return "torch"
    key = dtype, threads or torch.get_num_threads()
    if key not in _chosen:
        with _lock:
            if key not in _chosen:
                _chosen[key] = _choose(*key)
    return _chosen[key]


def chosen_products() -> dict[str, Product]:
    """What decides on the last bits of a training run: the choices for float32, on all threads and on one.

    Example:
        >>> import torch
        >>> from xmodal.products import chosen_products, use_product
        >>> use_product("torch")
        >>> chosen_products()["float32 x 1"]
        'torch'
        >>> use_product(None)
    """
    counts = sorted({1, torch.get_num_threads()})
    return {f"float32 x {threads}": chosen_product(torch.float32, threads) for threads in counts}


@contextlib.contextmanager
def products_as(before: Mapping[str, str]) -> Iterator[list[str]]:
    """Products as some run had them, by what it stored of `chosen_products`; yields what cannot be as before.

    A choice that was made by hand stays.

    Example:
        >>> import torch
        >>> from xmodal.products import chosen_product, products_as
        >>> with products_as({"float32 x 1": "torch"}) as lost:
        ...     chosen_product(torch.float32, 1), lost
        ('torch', [])
    """
    kept, lost = dict(_chosen), []
    for threads in {1, torch.get_num_threads()}:
        then = before.get(f"float32 x {threads}")
        if then in candidates(torch.float32, threads):
            _chosen[torch.float32, threads] = then  # type: ignore[assignment]
        if then is not None and chosen_product(torch.float32, threads) != then:
            now = chosen_product(torch.float32, threads)
            lost.append(f"float32 products on {threads} threads were {then}'s, now they are {now}'s")
    try:
        yield lost
    finally:
        _chosen.clear()
        _chosen.update(kept)


def _check(product: Any, name: str) -> Product:
    """A product by its name, if it can be computed here."""
    if product not in get_args(Product):
        raise ValueError(f"{name} must be one of {', '.join(get_args(Product))}; got {product!r}")
    if product == "onednn" and not _has_onednn():
        raise ValueError(f"{name} is 'onednn', which torch {torch.__version__} does not offer here; use 'torch'")
    return product


def _product_for(rows: Tensor, columns: Tensor) -> Product:
    """What computes a product; torch all that the others do not take, or where they do not pay."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return "torch"  # first: a graph whose sizes are compared is one for these sizes
    if rows.device.type != "cpu" or columns.device.type != "cpu" or rows.dtype != columns.dtype:
        return "torch"
    if rows.ndim < 2 or columns.ndim != 2 or rows.shape[-1] != columns.shape[1]:
        return "torch"
    if rows.numel() * len(columns) < SMALLEST:
        return "torch"
    return chosen_product(rows.dtype)


def _compute(rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """`rows @ columns.T + bias` by whatever is chosen, differentiable where a gradient is asked for."""
    product = _product_for(rows, columns)
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (rows, columns, bias)
    )
    if needs_gradient and product != "torch":
        return _Multiplied.apply(rows, columns, bias, product)  # type: ignore[return-value]
    return PRODUCTS[product](rows, columns, bias, None if needs_gradient else out)


class _Multiplied(torch.autograd.Function):
    """A product with its gradients, which are products too: differentiable as often as one likes."""

    @staticmethod
    def forward(rows: Tensor, columns: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        return PRODUCTS[product](rows, columns, bias, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        rows, columns = ctx.saved_tensors
        for_rows, for_columns, for_bias = (None, None, None)
        if ctx.needs_input_grad[0]:
            for_rows = inner_products(gradient, columns.T)
        if ctx.needs_input_grad[1]:
            for_columns = inner_products(gradient.flatten(0, -2).T, rows.flatten(0, -2).T)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.flatten(0, -2).sum(dim=0)
        return for_rows, for_columns, for_bias, None


def _by_torch(rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if bias is not None:
        return F.linear(rows, columns, bias)
    return rows @ columns.T if out is None else torch.matmul(rows, columns.T, out=out)


def _by_onednn(rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if not (columns.is_contiguous() or columns.T.is_contiguous()):
        columns = columns.contiguous()
    # A private operation, for want of a public one: what torch's compiler makes of linear layers.
    return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")


def _by_numpy(rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    import numpy as np

    buffer = rows.new_empty(*rows.shape[:-1], len(columns)) if out is None else out
    left, right = rows.detach().reshape(-1, rows.shape[-1]).numpy(), columns.detach().numpy()
    np.matmul(left, right.T, out=buffer.view(-1, len(columns)).numpy())
    return buffer if bias is None else buffer.add_(bias.detach())


PRODUCTS: dict[Product, Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "torch": _by_torch,
    "onednn": _by_onednn,
    "numpy": _by_numpy,
}
"""(rows, columns, what is added to every row or None, a buffer that may be used or None) -> products."""

DTYPES: dict[str, set[torch.dtype]] = {"onednn": {torch.float32}, "numpy": {torch.float32, torch.float64}}
"""What the products beside torch's take."""


def _has_onednn() -> bool:
    """Whether this torch has the operation."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def candidates(dtype: torch.dtype, threads: int) -> list[Product]:
    """What may be chosen here: all that take the dtype and that number of threads.

    Example:
        >>> import torch
        >>> from xmodal.products import candidates
        >>> candidates(torch.bfloat16, 1)
        ['torch']
    """
    names: list[Product] = ["torch"]
    if dtype in DTYPES["onednn"] and _has_onednn():
        names.append("onednn")
    # With several threads NumPy has a pool of its own, whose threads go on spinning between its products and take the
    # cores from torch's: what is fastest by itself then makes everything around it several times slower.
    if dtype in DTYPES["numpy"] and threads == _numpy_threads() == 1:
        names.append("numpy")
    return names


def _numpy_threads() -> int:
    """How many threads NumPy's products take, which a process cannot change."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdecimal():
            return int(os.environ[variable])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose(dtype: torch.dtype, threads: int) -> Product:
    """The choice that an earlier process made and kept, or the one that is measured now."""
    kept, key = _read_kept(), _key(dtype, threads)
    able = candidates(dtype, threads)
    if kept.get(key) in able:
        logger.info("products of %s by %s: measured before (%s)", key, kept[key], _kept_in())
        return kept[key]
    if len(able) == 1:
        return "torch"
    seconds = _seconds(dtype, threads, able)
    fastest = min(seconds, key=seconds.__getitem__)
    product = fastest if seconds[fastest] * MARGIN < seconds["torch"] else "torch"
    told = ", ".join(f"{name} {1e3 * each:.2f} ms" for name, each in seconds.items())
    logger.info("products of %s by %s: %s", key, product, told)
    _keep({**kept, key: product})
    return product


def _seconds(dtype: torch.dtype, threads: int, names: list[Product]) -> dict[Product, float]:
    """Of the fastest turn of every product that computes, and computes well enough."""
    generator = torch.Generator("cpu").manual_seed(0)
    rows, aligned, any_number = (
        torch.randn(size, 1024, generator=generator, dtype=dtype, device="cpu") for size in (768, 512, 505)
    )
    exact = rows[:64].double() @ aligned.double().T
    out, errors, seconds = rows.new_empty(len(rows), len(aligned)), {}, {}
    with _threads(threads), torch.no_grad():
        for name in names:
            found = _tried(name, rows, aligned, out)
            if found is not None:
                errors[name] = float((found[:64].double() - exact).abs().max())
        least = 4 * torch.finfo(dtype).eps * float(exact.abs().max())  # float64 is not exact about itself
        able = [name for name, error in errors.items() if error <= WORST_ERROR * max(errors["torch"], least)]
        for _ in range(TURNS):  # in turns, so that other load on the machine falls on all alike
            for name in able:
                start = perf_counter()
                PRODUCTS[name](rows, aligned, None, out)
                PRODUCTS[name](rows, any_number, None, None)  # words are rarely a multiple of what fills a cache line
                seconds[name] = min(seconds.get(name, float("inf")), perf_counter() - start)
    return seconds


def _tried(name: Product, rows: Tensor, columns: Tensor, out: Tensor) -> Tensor | None:
    """A product, or None where it fails: a private operation may have changed in any way."""
    try:
        return PRODUCTS[name](rows, columns, None, out)
    except Exception as error:
        logger.info("products by %s fail here: %s", name, error)
        return None


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for torch meanwhile."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(dtype: torch.dtype, threads: int) -> str:
    """What a choice depends on, in words: dtype, threads, processor and libraries."""
    from importlib.metadata import version

    name = str(dtype).removeprefix("torch.")
    machine = f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{name} on {threads} threads, {machine}, torch {torch.__version__}, numpy {version('numpy')}"


def processor() -> str:
    """What the machine calls its processor.

    Example:
        >>> from xmodal.products import processor
        >>> len(processor()) > 0
        True
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _kept_in() -> Path:
    """The file of choices in the user's cache.

    Raises:
        FileNotFoundError: there is no cache.
    """
    if (folder := cache_folder()) is None:
        raise FileNotFoundError("there is no home; set XDG_CACHE_HOME")
    return folder / "products.json"


def _read_kept() -> dict[str, Any]:
    """The choices that were kept; none where the file is missing, unreadable or damaged: they are measured again."""
    try:
        kept = json.loads(_kept_in().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(choices: dict[str, Any]) -> None:
    """Write the choices, whole or not at all; where there is no place for them every process measures."""
    try:
        path = _kept_in()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            temporary = Path(file.name)
            try:
                json.dump(choices, file, indent=2)
                file.close()
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.info("the choice of products is not kept: %s", error)
