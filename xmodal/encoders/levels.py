"""Levels of a network of torchvision: what its modules give on the way to the end, as maps."""

from __future__ import annotations

from contextlib import suppress
from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xmodal.data.strings import refuse_string
from xmodal.inference import evaluating
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor, nn

PROBE_SIZES = (224, 256)
"""Sides of the blank images that show which axis of a map is that of its channels: the one that does not grow. The
first is the only one that some transformers take."""


class Levels(NamedTuple):
    """Where the levels of a network are among its outputs, and how they lie.

    >>> outputs = {"tokens": torch.arange(10.0).view(1, 5, 2), "map": torch.zeros(1, 4, 6, 3), "end": torch.zeros(1, 7)}
    >>> tokens, fmap = Levels(["tokens", "map"], [2, 3], [2, 3], "end").maps(outputs)
    >>> tokens[0, 0].tolist(), fmap.shape
    ([[2.0, 4.0], [6.0, 8.0]], torch.Size([1, 3, 4, 6]))
    """

    names: list[str]
    """Of their outputs."""

    channel_axes: list[int]
    """1 or 3 for a map, 2 for the tokens of a transformer."""

    dims: list[int]
    """Channels of each."""

    end: str
    """The name of the last output."""

    def maps(self, outputs: Mapping[str, Tensor]) -> list[Float[Tensor, "image dim height width"]]:
        """The levels with their channels first; tokens, after that of the class, as maps of patches."""
        return [_as_map(outputs[name], axis) for name, axis in zip(self.names, self.channel_axes, strict=True)]


def extract_levels(
    network: str, model: nn.Module, levels: Sequence[str], with_end: bool = False
) -> tuple[nn.Module, Levels]:
    """A network that computes some of its levels and no more, or all and its end; and where they are in what it gives.

    A level gives what its last step does. Several may end in the same step.

    Args:
        network: what errors call it.
        model: of torchvision.
        levels: modules, as `model.named_modules()` calls them, or steps of the computation.
        with_end: also compute what the whole network gives.

    Raises:
        ValueError: the network has no such level, or it is no map.

    >>> from torchvision.models import swin_t
    >>> extractor, levels = extract_levels("swin_t", swin_t(), ["features.3"])
    >>> levels.maps(run_network(extractor, torch.zeros(1, 3, 64, 96)))[0].shape  # what the network gives has dims last
    torch.Size([1, 192, 8, 12])
    """
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    refuse_string("levels", levels, "levels")
    training, evaluation = get_graph_node_names(model)
    for level in levels:
        if not (_steps(training, level) and _steps(evaluation, level)):
            known = {node.rsplit(".", cut)[0] for node in evaluation for cut in range(node.count(".") + 1)}
            raise ValueError(
                f"{network} has no level {level!r}{near_miss(level, known)}; it has "
                f"{', '.join(name for name, _ in model.named_children())} and the modules inside them"
            )
    ends = [(_steps(training, level)[-1], _steps(evaluation, level)[-1]) for level in levels]
    names = [name for _, name in ends]
    wanted = dict(ends) | ({training[-1]: evaluation[-1]} if with_end else {})
    extractor = create_feature_extractor(
        model, train_return_nodes=wanted, eval_return_nodes={name: name for name in wanted.values()}
    )
    axes, dims = _channels(extractor, network, levels, names)
    return extractor, Levels(names, axes, dims, evaluation[-1])


def run_network(network: Callable[[Tensor], Any], images: Float[Tensor, "image 3 height width"]) -> Any:
    """What a network gives.

    Raises:
        ValueError: it fails, as networks do on sizes that they do not take.

    >>> run_network(torch.nn.Conv2d(3, 1, kernel_size=5), torch.zeros(1, 3, 4, 4))
    Traceback (most recent call last):
    ...
    ValueError: the network fails on images of 4 x 4 pixels: Calculated padded input size per channel: (4 x 4). ...
    """
    try:
        return network(images)
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # these say nothing of the size
        raise
    except (AssertionError, RuntimeError) as error:
        height, width = images.shape[2:]
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the network fails on images of {width} x {height} pixels: {reason}") from error


def _steps(nodes: Sequence[str], level: str) -> list[str]:
    """The steps of a computation that belong to a level."""
    return [node for node in nodes if node == level or node.startswith(f"{level}.")]


def _channels(
    extractor: nn.Module, network: str, levels: Sequence[str], names: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The axis of the channels of each level and their number, found by looking at nothing."""
    if not levels:
        return [], []
    with evaluating(extractor):  # `forward`, because a call writes of a failure before it raises
        seen = [run_network(extractor.forward, torch.zeros(1, 3, PROBE_SIZES[0], PROBE_SIZES[0]))]
        with suppress(ValueError):
            seen.append(run_network(extractor.forward, torch.zeros(1, 3, PROBE_SIZES[1], PROBE_SIZES[1])))
    axes, dims = [], []
    for level, name in zip(levels, names, strict=True):
        shapes = [tuple(getattr(outputs[name], "shape", ())) for outputs in seen]
        axis = _channel_axis(shapes)
        if axis is None:
            raise ValueError(
                f"level {level!r} of {network} gives {shapes[0] or type(seen[0][name]).__name__} for an image; wanted "
                "(image, dim, height, width), (image, height, width, dim), or patches of a transformer after its class "
                "token. Name a module before the pooling."
            )
        axes.append(axis)
        dims.append(shapes[0][axis])
    return axes, dims


def _channel_axis(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The axis of the channels, from the shapes for one square image of each size; None if this is no map."""
    if any(not shape or shape[0] != 1 for shape in shapes):
        return None
    if all(len(shape) == 3 and isqrt(shape[1] - 1) ** 2 == shape[1] - 1 for shape in shapes):
        return 2
    if all(len(shape) == 4 for shape in shapes):
        for channels, height, width in ((1, 2, 3), (3, 1, 2)):
            if len({shape[channels] for shape in shapes}) == 1 and all(s[height] == s[width] for s in shapes):
                return channels
    return None


def _as_map(output: Tensor, channel_axis: int) -> Float[Tensor, "image dim height width"]:
    if output.ndim == 4:
        return output.movedim(channel_axis, 1)
    side = isqrt(output.shape[1] - 1)
    return output[:, 1:].transpose(1, 2).unflatten(2, (side, side))
