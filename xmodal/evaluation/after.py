"""What is done between scoring and ranking, and evaluation by several protocols in one pass over the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from xmodal.data.strings import refuse_string
from xmodal.evaluation.hubs import check_takes_bank, find_normalization, hubness, subtract_offsets
from xmodal.evaluation.protocols import evaluate_fold, find_protocol, join_folds, protocol_folds
from xmodal.evaluation.ranks import RECALL_LEVELS, as_matrix, check_relevance, evaluate_retrieval
from xmodal.evaluation.relevance import DIRECTIONS, with_rsum
from xmodal.evaluation.reranking import rerank
from xmodal.numerics import check_number
from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from xmodal.data.relevance import Relevance
    from xmodal.evaluation.hubs import Bank
    from xmodal.evaluation.protocols import Fold
    from xmodal.evaluation.relevance import Direction

LAST_RECALL = f"R@{RECALL_LEVELS[-1]}"

LEAK = "mtfn_leak"

RERANKINGS = ("mtfn", LEAK)
"""`mtfn` asks where the query stands with its answers; `mtfn_leak`, as published for captions, also where the other
captions of the image that it is about stand, which only the right answers of the test set tell."""


class Evaluator(Protocol):
    """One direction of an evaluation by other right answers than the image that a caption is about."""

    def __call__(self, scores: Float[Tensor, "image caption"], *, direction: Direction) -> dict[str, float]:
        """Named metrics."""
        ...


@dataclass(frozen=True)
class AfterScoring:
    """Steps between scoring and ranking: make up for hubs, then re-rank.

    Args:
        normalize: a name in `xmodal.evaluation.hubs.NORMALIZATIONS`, or None.
        temperature: of the normalization, in units of the scores; None for its own.
        rerank: a name in `RERANKINGS`, or None.

    Raises:
        ValueError: a name that does not exist, with the nearest that does, or a temperature that is not positive or
            without a normalization.

    >>> AfterScoring(normalize="querybank").leaks, AfterScoring(rerank="mtfn_leak").leaks
    (False, True)
    """

    normalize: str | None = None
    temperature: float | None = None
    rerank: str | None = None

    def __post_init__(self) -> None:
        if self.normalize is not None:
            find_normalization(self.normalize)
            if self.temperature is not None:
                check_number("temperature", self.temperature, above=0)
        elif self.temperature is not None:
            raise ValueError(f"temperature is {self.temperature} without a normalization that takes it")
        if self.rerank not in (None, *RERANKINGS):
            guess = near_miss(self.rerank, RERANKINGS)
            raise ValueError(f"there is no re-ranking {self.rerank!r}{guess}; known: {', '.join(RERANKINGS)}")

    def check_bank(self, is_given: bool) -> None:
        """Make sure that there is a bank where the normalization needs one, and none where it takes none.

        Raises:
            ValueError: it is otherwise.

        >>> AfterScoring(normalize="sinkhorn").check_bank(False)
        >>> AfterScoring(normalize="dbsn").check_bank(False)
        Traceback (most recent call last):
        ...
        ValueError: dbsn needs a bank of other images and captions; without one take sinkhorn
        """
        if self.normalize is not None:
            check_takes_bank(self.normalize, is_given)

    @property
    def leaks(self) -> bool:
        """Whether the ranking of captions reads the right answers of the test set."""
        return self.rerank == LEAK

    def normalized(
        self, scores: Float[Tensor, "image caption"], bank: Bank | None = None
    ) -> Float[Tensor, "image caption"]:
        """The scores with the offsets of hubs taken from them; for both directions.

        >>> import torch
        >>> AfterScoring(normalize="dual_softmax").normalized(torch.eye(2)).argmax(dim=0)
        tensor([0, 1])
        """
        if self.normalize is None:
            return scores
        options = {} if self.temperature is None else {"temperature": self.temperature}
        return subtract_offsets(scores, find_normalization(self.normalize)(scores, bank, **options))

    def reranked(
        self, scores: Float[Tensor, "image caption"], direction: Direction, relevance: Relevance
    ) -> Float[Tensor, "image caption"]:
        """Normalized scores whose order, for one direction, is that after re-ranking.

        >>> import torch
        >>> from xmodal.data import Relevance
        >>> scores = torch.tensor([[0.9, 0.8], [0.95, 0.1]])
        >>> AfterScoring(rerank="mtfn").reranked(scores, "i2t", Relevance.from_caption_image([0, 1])).argmax(dim=1)
        tensor([1, 0])
        """
        if self.rerank is None:
            return scores
        return rerank(scores, direction, siblings=relevance if self.leaks and direction == "t2i" else None)


NOTHING = AfterScoring()


def evaluate_scores(
    scores: Float[Tensor, "image caption"],
    relevance: Relevance,
    protocols: Sequence[str] = ("plain",),
    evaluators: Mapping[str, Evaluator] | None = None,
    *,
    after: AfterScoring = NOTHING,
    bank: Bank | None = None,
    hubs: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate scores by several protocols, each step after scoring being done once for all that are not cut in folds.

    Args:
        scores: similarity of every image to every caption, higher is more alike.
        relevance: which image each caption is about.
        protocols: names in `xmodal.evaluation.PROTOCOLS`. Within a fold only its own images and captions are there:
            normalization and re-ranking see no others.
        evaluators: evaluations by other right answers, by name.
        after: what is done before ranking.
        bank: what the normalization looks at; None for the test set.
        hubs: also give `hubness` for every protocol.

    Returns:
        What `evaluate_protocol` gives for each protocol, and `{"i2t": ..., "t2i": ...}` for each evaluator, with `rsum`
        where it has recalls.

    Raises:
        ValueError: no such protocol, a test set of another size, or scores that cannot be ranked.

    >>> import torch
    >>> from functools import partial
    >>> from xmodal.data import Relevance
    >>> from xmodal.evaluation.relevance import evaluate_direction
    >>> relevance = Relevance.from_caption_image([0, 1])
    >>> judged = partial(evaluate_direction, judgements=relevance)
    >>> results = evaluate_scores(torch.eye(2), relevance, ["plain"], {"mine": judged})
    >>> results["plain"]["rsum"], results["mine"]["i2t"]["mAP@R"]
    (600.0, 100.0)
    """
    refuse_string("protocols", protocols, "protocols")
    scores, evaluators = as_matrix(scores), evaluators or {}
    whole = [name for name in protocols if find_protocol(name).folds == 1]
    results: dict[str, dict[str, Any]] = {}
    for name in protocols:
        folds = protocol_folds(relevance, name)
        if name not in whole:
            parts = [_evaluate_part(scores, fold, after, bank, hubs) for fold in folds]
            results[name] = join_folds(parts, name)
    if whole or evaluators:
        recalls, found = _evaluate(scores, relevance, evaluators, after, bank, recalls=bool(whole), hubs=hubs)
        results |= {name: join_folds([recalls], name) for name in whole} | found
    return results


def _evaluate_part(
    scores: Float[Tensor, "image caption"], fold: Fold, after: AfterScoring, bank: Bank | None, hubs: bool
) -> dict[str, Any]:
    """One fold of a test set, from the scores of all of it."""
    part = scores[fold.images.to(scores.device)][:, fold.captions.to(scores.device)]
    return evaluate_after(part, fold, after, None if bank is None else bank.select(fold.images, fold.captions), hubs)


def evaluate_after(
    scores: Float[Tensor, "image caption"],
    fold: Fold,
    after: AfterScoring = NOTHING,
    bank: Bank | None = None,
    hubs: bool = False,
) -> dict[str, Any]:
    """`evaluate_fold` after normalization and re-ranking, given the fold's own scores and its own part of a bank.

    >>> import torch
    >>> from xmodal.evaluation.protocols import cut_folds
    >>> first, second = cut_folds(torch.tensor([0, 1, 2, 3]), folds=2)
    >>> evaluate_after(torch.eye(2), second, AfterScoring(rerank="mtfn"))["rsum"]
    600.0
    """

    def evaluate(scores: Tensor, caption_image: Tensor | Relevance) -> dict[str, Any]:
        scores, relevance = check_relevance(scores, caption_image)
        return _evaluate(scores, relevance, {}, after, bank, hubs=hubs)[0]

    return evaluate_fold(scores, fold, evaluate)


def _evaluate(
    scores: Float[Tensor, "image caption"],
    relevance: Relevance,
    evaluators: Mapping[str, Evaluator],
    after: AfterScoring,
    bank: Bank | None,
    *,
    recalls: bool = True,
    hubs: bool = False,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Retrieval of what belongs together, and what the evaluators find."""
    scores = after.normalized(scores, bank)
    retrieval: list[dict[str, Any]] = []
    found: dict[str, dict[str, Any]] = {name: {} for name in evaluators}
    for direction in DIRECTIONS:
        directed = after.reranked(scores, direction, relevance)
        for name, evaluator in evaluators.items():
            found[name][direction] = evaluator(directed, direction=direction)
        if recalls and (after.rerank is not None or not retrieval):  # one matrix for both directions: once is enough
            retrieval.append(_recalls(directed, relevance, hubs))
    found = {name: with_rsum(sides) if LAST_RECALL in sides["i2t"] else sides for name, sides in found.items()}
    return (_joined(retrieval[0], retrieval[-1]) if retrieval else {}), found


def _recalls(scores: Float[Tensor, "image caption"], relevance: Relevance, hubs: bool) -> dict[str, Any]:
    result = evaluate_retrieval(scores, relevance)
    return {**result, "hubness": hubness(scores)} if hubs else result


def _joined(i2t: dict[str, Any], t2i: dict[str, Any]) -> dict[str, Any]:
    """Each direction from the results that are its own."""
    joined = with_rsum({"i2t": i2t["i2t"], "t2i": t2i["t2i"]})
    return {**joined, "hubness": {**i2t["hubness"], "t2i": t2i["hubness"]["t2i"]}} if "hubness" in i2t else joined
