"""What a batch must be for an objective to judge it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xmodal.masks import first_empty

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Refuse a tensor that would be stretched to the shape that it should have.

    Raises:
        ValueError: it has another shape.

    Example:
        >>> import torch
        >>> from xmodal.objectives.checks import check_shape
        >>> check_shape("caption_image", torch.tensor([0]), (4,))
        Traceback (most recent call last):
        ...
        ValueError: caption_image must have shape (4,), got (1,)
    """
    if tensor.shape != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


def check_square(name: str, scores: Float[Tensor, "pair pair"]) -> None:
    """Refuse scores that are not those of matched pairs, or of none.

    Raises:
        ValueError: they are not square or empty.

    Example:
        >>> import torch
        >>> from xmodal.objectives.checks import check_square
        >>> check_square("scores", torch.ones(4, 3))
        Traceback (most recent call last):
        ...
        ValueError: scores must be (pair, pair) with matched pairs on the diagonal, at least one, got (4, 3)
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        shape = tuple(scores.shape)
        raise ValueError(f"{name} must be (pair, pair) with matched pairs on the diagonal, at least one, got {shape}")


def check_matched(
    words: Float[Tensor, "pair word dim"],
    regions: Float[Tensor, "pair region dim"],
    word_mask: Bool[Tensor, "pair word"] | None,
    region_mask: Bool[Tensor, "pair region"] | None,
    *,
    look: bool = False,
) -> None:
    """Refuse words and regions that are not those of matched pairs in one joint space.

    Args:
        words: caption side.
        regions: image side.
        word_mask: True = real; None means that all are.
        region_mask: True = real; None means that all are.
        look: look for sets without a real item in masks of a device that computes, too, which may wait for it.

    Raises:
        ValueError: for a wrong rank, no pair, unequal numbers or dims, a mask that is not boolean or does not fit, and
            a pair without a real word or region.

    Example:
        >>> import torch
        >>> from xmodal.objectives.checks import check_matched
        >>> check_matched(torch.ones(4, 12, 8), torch.ones(1, 36, 8), None, None)
        Traceback (most recent call last):
        ...
        ValueError: words and regions must be of the same pairs and dim, got (4, 12, 8) and (1, 36, 8)
    """
    for name, items, mask in (("word", words, word_mask), ("region", regions, region_mask)):
        if items.ndim != 3 or 0 in items.shape[:2]:
            raise ValueError(f"{name}s must be (pair, {name}, dim), at least one of each, got {tuple(items.shape)}")
        if mask is None:
            continue
        if mask.dtype != torch.bool:
            raise ValueError(f"{name}_mask must be boolean with True = real, got {mask.dtype}; pass mask.bool()")
        check_shape(f"{name}_mask", mask, tuple(items.shape[:2]))
        may_look = (look or mask.device.type == "cpu") and not torch.compiler.is_compiling()
        empty = first_empty(mask) if may_look else None
        if empty is not None:
            raise ValueError(f"pair {empty} has no real {name} in {name}_mask; remove it first")
    if words.shape[::2] != regions.shape[::2]:
        sides = f"{tuple(words.shape)} and {tuple(regions.shape)}"
        raise ValueError(f"words and regions must be of the same pairs and dim, got {sides}")
