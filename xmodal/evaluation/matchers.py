"""Evaluating trained matchers, alone and as an ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xmodal.data.atomic import written_whole
from xmodal.data.split import SomeImages
from xmodal.data.strings import refuse_string
from xmodal.evaluation.after import NOTHING, AfterScoring, evaluate_after, evaluate_scores
from xmodal.evaluation.calibration import evaluate_calibration
from xmodal.evaluation.hubs import Bank
from xmodal.evaluation.protocols import find_protocol, join_folds, protocol_folds
from xmodal.evaluation.ranks import BLOCK_ELEMENTS, as_relevance
from xmodal.evaluation.relevance import as_judgements, evaluate_direction
from xmodal.evaluation.within import ENSEMBLE, check_names
from xmodal.scoring.memory import check_out, fill_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from xmodal.data.image_source import ImageSource
    from xmodal.data.relevance import Judgements, Relevance
    from xmodal.data.split import Split
    from xmodal.evaluation.after import Evaluator
    from xmodal.evaluation.calibration import Calibration
    from xmodal.evaluation.protocols import Fold
    from xmodal.model import Matcher

JUDGED = "judged"


def evaluate_matchers(
    matchers: Mapping[str, Matcher],
    store: ImageSource,
    captions: Sequence[str],
    caption_image: Int[Tensor, " caption"] | Relevance,
    *,
    protocol: str | Sequence[str] = "plain",
    judgements: Relevance | Judgements | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
    after: AfterScoring = NOTHING,
    bank: Split | None = None,
    hubs: bool = False,
    calibrations: Mapping[str, Calibration] | None = None,
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
        protocol: a name in `xmodal.evaluation.PROTOCOLS` or in `evaluators`, or several: all are evaluated in one pass.
        judgements: also evaluate by these, with `evaluate_relevance`.
        evaluators: evaluations by other right answers, which `protocol` may name.
        after: what is done to the scores before they are ranked; each fold and each matcher by itself.
        bank: images and captions that the normalization looks at, instead of those that are evaluated.
        hubs: also give `hubness`.
        calibrations: of matchers by name: also evaluate these, on the scores as they are before `after`.
        out: also write the scores, (image, caption), to this `.npy` file (of several matchers, their mean), as they are
            before `after`. They are never in memory as a whole then; with several matchers the disk takes the scores of
            all for a while.
        inspect: called with the scores that `out` would have, normalized where `after` says so.
        progress: show bars.

    Returns:
        Name to the dict of `evaluate_protocol` for the first protocol, and `judged`, that of `evaluate_relevance`, if
        there are judgements. Of further protocols, `also` has the results by their names. The ensemble is named
        "ensemble". `calibration` has what `evaluate_calibration` gives.

    Raises:
        ValueError: no matcher, one of several that is called "ensemble", no such protocol, a test set of another size,
            a normalization without the bank that it needs, or an `out` that is no `.npy` file, before anything is
            scored; and scores that cannot be ranked.

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
    refuse_string("captions", captions, "captions")
    check_names(matchers)
    after.check_bank(bank is not None)
    relevance = as_relevance(caption_image, len(store), len(captions))
    chosen = _Chosen.of([protocol] if isinstance(protocol, str) else protocol, evaluators or {}, relevance)
    if judgements is not None:
        as_judgements(judgements, len(store), len(captions))
        chosen.evaluators[JUDGED] = partial(evaluate_direction, judgements=judgements)
    if out is not None:
        check_out(out)
    banks = _banks(matchers, store, captions, bank, progress)
    if not chosen.evaluators and out is None and inspect is None and (folds := chosen.only_folds(relevance)):
        of_folds: dict[str, list[dict[str, Any]]] = {}
        for fold in folds:
            images = SomeImages(store, fold.images.tolist())
            sentences: list[str] = [captions[int(caption)] for caption in fold.captions.tolist()]
            for name, scores in _scored(matchers, images, sentences, None, progress):
                part = banks[name].select(fold.images, fold.captions) if banks else None
                result = evaluate_after(scores, fold, after, part, hubs)
                result |= _calibrated(calibrations, name, scores, fold.caption_image)
                of_folds.setdefault(name, []).append(result)
        return {name: join_folds(results, chosen.protocols[0]) for name, results in of_folds.items()}
    results, scores, name = {}, torch.empty(0), ""
    for name, scores in _scored(matchers, store, captions, out, progress):
        options: dict[str, Any] = {"after": after, "bank": banks.get(name), "hubs": hubs}
        results[name] = chosen.arranged(
            evaluate_scores(scores, relevance, chosen.protocols, chosen.evaluators, **options)
        )
        results[name] |= _calibrated(calibrations, name, scores, relevance)
    if inspect is not None:
        inspect(after.normalized(scores, banks.get(name)))
    return results


def _calibrated(
    calibrations: Mapping[str, Calibration] | None,
    name: str,
    scores: Float[Tensor, "image caption"],
    relevance: Int[Tensor, " caption"] | Relevance,
) -> dict[str, Any]:
    """What is said about the probabilities of a matcher that has a calibration."""
    if calibrations is None or name not in calibrations:
        return {}
    return {"calibration": evaluate_calibration(calibrations[name], scores, relevance)}


@dataclass(frozen=True)
class _Chosen:
    """What is evaluated, in the order in which it was asked for."""

    names: list[str]
    protocols: list[str]
    evaluators: dict[str, Evaluator]

    @classmethod
    def of(cls, names: Sequence[str], evaluators: Mapping[str, Evaluator], relevance: Relevance) -> _Chosen:
        """Those of these names that are protocols and that are evaluators.

        Raises:
            ValueError: no name, one that comes twice or is neither, or a test set of another size.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"protocols are {', '.join(names) or 'not given'}; wanted at least one, each once")
        protocols = [name for name in names if name not in evaluators]
        for name in protocols:
            protocol_folds(relevance, name)
        return cls(list(names), protocols, {name: evaluators[name] for name in names if name in evaluators})

    def only_folds(self, relevance: Relevance) -> list[Fold]:
        """The folds, where nothing but pairs within them is looked at."""
        if len(self.protocols) != 1 or find_protocol(self.protocols[0]).folds == 1:
            return []
        return protocol_folds(relevance, self.protocols[0])

    def arranged(self, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The first protocol's result, with the others in it."""
        first, *others = self.names
        arranged = {"protocol": first, **results[first]}
        if others:
            arranged["also"] = {name: {"protocol": name, **results[name]} for name in others}
        return {**arranged, JUDGED: results[JUDGED]} if JUDGED in results else arranged


def _banks(
    matchers: Mapping[str, Matcher], store: ImageSource, captions: Sequence[str], bank: Split | None, progress: bool
) -> dict[str, Bank]:
    """Scores of every matcher and of the ensemble that a bank has part in."""
    if bank is None:
        return {}
    sides = ((store, bank.sentences), (bank.source, captions), (bank.source, bank.sentences))
    parts = [
        {name: scores.clone() for name, scores in _scored(matchers, source, sentences, None, progress)}
        for source, sentences in sides
    ]
    return {name: Bank(*(part[name] for part in parts)) for name in parts[0]}


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
