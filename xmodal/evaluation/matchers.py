"""Evaluating trained matchers, alone and as an ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xmodal.evaluation.protocols import evaluate_protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Int
    from torch import Tensor

    from xmodal.data.image_source import ImageSource
    from xmodal.model import Matcher

ENSEMBLE = "ensemble"


def evaluate_matchers(
    matchers: Mapping[str, Matcher],
    store: ImageSource,
    captions: Sequence[str],
    caption_image: Int[Tensor, " caption"],
    *,
    protocol: str = "plain",
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Results of every matcher on a split and, for two or more, of the mean of their score matrices.

    The mean is how the ensembles of the published tables are made (SCAN t-i AVG with i-t LSE, BFAN equal with prob,
    VSRN with two seeds). All matchers must take the same region features; tokenization is each one's own.

    Returns:
        Name to the dict of `evaluate_protocol`; the ensemble is named "ensemble".

    >>> import torch
    >>> from xmodal.data import RegionStore, RegionStoreWriter
    >>> from xmodal.model import Matcher
    >>> with RegionStoreWriter("test.h5", dim=8, extractor="by hand") as writer:
    ...     writer.write("dog", torch.eye(8)[:3])
    ...     writer.write("cat", torch.eye(8)[4:])
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> heads = [{"name": "scan"}, {"name": "bfan"}]
    >>> both = {head["name"]: Matcher(image, text, head, vocabulary=["a", "dog", "cat"]) for head in heads}
    >>> results = evaluate_matchers(both, RegionStore("test.h5"), ["a dog", "a cat"], torch.tensor([0, 1]))
    >>> list(results), results["ensemble"]["t2i"]["R@5"]
    (['scan', 'bfan', 'ensemble'], 100.0)
    """
    results, total = {}, None
    for name, matcher in matchers.items():
        scores = matcher.score_all(store, captions, progress=progress)
        results[name] = evaluate_protocol(scores, caption_image, protocol)
        total = scores if total is None else total.add_(scores)
    if total is None:
        raise ValueError("there is no matcher to evaluate")
    if len(matchers) > 1:
        results[ENSEMBLE] = evaluate_protocol(total / len(matchers), caption_image, protocol)
    return results
