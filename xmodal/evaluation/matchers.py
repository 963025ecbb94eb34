"""Evaluating trained matchers, alone and as an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xmodal.data.atomic import written_whole
from xmodal.data.split import SomeImages
from xmodal.evaluation.protocols import evaluate_fold, evaluate_protocol, join_folds, protocol_folds
from xmodal.evaluation.ranks import BLOCK_ELEMENTS, as_relevance
from xmodal.evaluation.relevance import evaluate_relevance
from xmodal.scoring.memory import check_out, fill_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.data.image_source import ImageSource
    from xmodal.data.relevance import Relevance
    from xmodal.model import Matcher

ENSEMBLE = "ensemble"


def evaluate_matchers(
    matchers: Mapping[str, Matcher],
    store: ImageSource,
    captions: Sequence[str],
    caption_image: Int[Tensor, " caption"] | Relevance,
    *,
    protocol: str = "plain",
    judgements: Relevance | None = None,
    out: str | Path | None = None,
    inspect: Callable[[Float[Tensor, "image caption"]], None] | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Results of every matcher on a split and, for two or more, of the mean of their score matrices.

    The mean is how the ensembles of the published tables are made (SCAN t-i AVG with i-t LSE, BFAN equal with prob,
    VSRN with two seeds). All matchers must take the same region features; tokenization is each one's own.

    A protocol that cuts folds compares pairs within a fold only, and only these are scored (for `coco-1k-5fold` a fifth
    of all) unless one of the last three options asks for the whole matrix.

    Args:
        matchers: the matchers by name.
        store: the images.
        captions: the captions, in the order of their file, which decides on folds (see `cut_folds`).
        caption_image: which image each caption describes, or a `Relevance`.
        protocol: a name in `xmodal.evaluation.PROTOCOLS`.
        judgements: also evaluate by these, with `evaluate_relevance`.
        out: also write the scores, (image, caption), to this `.npy` file (of several matchers, their mean). They are
            never in memory as a whole then; with several matchers the disk takes the scores of all for a while.
        inspect: called with the scores that `out` would have.
        progress: show bars.

    Returns:
        Name to the dict of `evaluate_protocol`, and `judged`, that of `evaluate_relevance`, if there are judgements;
        the ensemble is named "ensemble".

    Raises:
        ValueError: no matcher, no such protocol, a test set of another size, or an `out` that is no `.npy` file, before
            anything is scored; and scores that cannot be ranked.

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
    if not matchers:
        raise ValueError("there is no matcher to evaluate")
    relevance = as_relevance(caption_image, len(store), len(captions))
    folds = protocol_folds(relevance, protocol)
    if judgements is not None:
        as_relevance(judgements, len(store), len(captions))
    if out is not None:
        check_out(out)
    if len(folds) > 1 and judgements is None and out is None and inspect is None:
        of_folds: dict[str, list[dict[str, Any]]] = {}
        for fold in folds:
            images = SomeImages(store, fold.images.tolist())
            sentences: list[str] = [captions[int(caption)] for caption in fold.captions.tolist()]
            for name, scores in _scored(matchers, images, sentences, None, progress):
                of_folds.setdefault(name, []).append(evaluate_fold(scores, fold))
        return {name: join_folds(results, protocol) for name, results in of_folds.items()}
    results, scores = {}, torch.empty(0)
    for name, scores in _scored(matchers, store, captions, out, progress):
        results[name] = evaluate_protocol(scores, relevance, protocol)
        if judgements is not None:
            results[name]["judged"] = evaluate_relevance(scores, judgements)
    if inspect is not None:
        inspect(scores)
    return results


def _scored(
    matchers: Mapping[str, Matcher],
    store: ImageSource,
    captions: Sequence[str],
    out: str | Path | None,
    progress: bool,
) -> Iterator[tuple[str, Float[Tensor, "image caption"]]]:
    """The scores of every matcher and, last, of the ensemble of several; the last one is written to `out`."""
    if out is not None:
        yield from _scored_on_disk(matchers, store, captions, Path(out), progress)
        return
    total = None
    for name, matcher in matchers.items():
        scores = matcher.score_all(store, captions, progress=progress)
        yield name, scores
        total = scores if total is None else total.add_(scores)
    if total is not None and len(matchers) > 1:
        yield ENSEMBLE, total / len(matchers)


def _scored_on_disk(
    matchers: Mapping[str, Matcher], store: ImageSource, captions: Sequence[str], out: Path, progress: bool
) -> Iterator[tuple[str, Float[Tensor, "image caption"]]]:
    """As `_scored`, without a whole matrix in memory."""
    options: dict[str, Any] = {"progress": progress, "overwrite": True}
    if len(matchers) == 1:
        for name, matcher in matchers.items():
            yield name, matcher.score_all(store, captions, out=out, **options)
        return
    with written_whole(out) as mean_file:  # its hidden folder, in which it lies until it is whole, has room for others
        matrices: list[Tensor] = []
        for name, matcher in matchers.items():
            file = mean_file.with_name(f"{len(matrices)}.npy")
            matrices.append(matcher.score_all(store, captions, out=file, **options))
            yield name, matrices[-1]

        def fill(mean: Tensor) -> None:
            rows = max(1, BLOCK_ELEMENTS // mean.shape[1])
            for start in range(0, len(mean), rows):
                part = slice(start, start + rows)
                mean[part] = sum(matrix[part] for matrix in matrices) / len(matrices)

        yield ENSEMBLE, fill_matrix((len(store), len(captions)), matrices[0].dtype, mean_file, True, fill)
