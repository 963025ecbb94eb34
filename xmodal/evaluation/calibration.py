"""Scores as probabilities: how likely it is that what was found matches, and whether anything does.

A head's score says which image comes first, not whether it is right: SCAN's grows with the length of a sentence, and
the best of a thousand wrong images still has a score. What tells is the score, its lead over the others that were found
and how many images there were to find. A logistic regression on these (Platt, 1999), between a least and a most
probability, says how likely a match is. It is fitted on queries of a split that training has not seen, each asked
twice, with its right answers among the images and without them, and in collections of three sizes: the whole split, its
halves and its quarters.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xmodal.data.atomic import written_whole
from xmodal.evaluation.ranks import BLOCK_ELEMENTS, check_no_nan, check_relevance
from xmodal.numerics import check_number
from xmodal.pretrained import CALIBRATION, model_folder, weights_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.data.relevance import Relevance
    from xmodal.data.split import Split
    from xmodal.model import Matcher

LIKELY = 0.5
"""A best answer less probable than this is no good match."""

PENALTY = 1e-4
"""Of the squared parameters, on standardized features: keeps the fit finite where the answers part without error."""

PARTS = (2, 4)
"""Into how many smaller collections the images are divided as well."""


@dataclass(frozen=True)
class Calibration:
    """From the scores of what a query found to the probability that each of them matches.

    That of the first answer lies between `least` and `most`, as far up as the sigmoid of `score_weight * score +
    lead_weight * lead + size_weight * log(images) + bias` says. The lead of an answer is its score minus the best other
    one: that of the runner-up for the first, of the first for all others, to whose probability `least` is not added.

    Args:
        score_weight: of the score.
        lead_weight: of the lead.
        size_weight: of the logarithm of the number of images that were searched.
        bias: of the logit.
        least: probability of a first answer that nothing else speaks for.
        most: probability of one that everything speaks for.
        model: the hash of the weights that the scores come from; None where that is not known.

    Raises:
        ValueError: a number is not finite, or the probabilities are not in order.

    >>> calibration = Calibration(score_weight=5.0, lead_weight=10.0, size_weight=-1.0, bias=-2.0)
    >>> calibration.probability(torch.tensor([0.8, 0.5, 0.2]), images=100).round(decimals=3)
    tensor([0.5970, 0.0010, 0.0000])
    >>> calibration.says_no_match(torch.tensor([0.3, 0.3, 0.2]), images=100)
    tensor(True)
    """

    score_weight: float
    lead_weight: float
    size_weight: float
    bias: float
    least: float = 0.0
    most: float = 1.0
    model: str | None = None

    def __post_init__(self) -> None:
        for name in ("score_weight", "lead_weight", "size_weight", "bias", "least", "most"):
            check_number(name, getattr(self, name))
        if not 0 <= self.least <= self.most <= 1:
            raise ValueError(f"least is {self.least} and most {self.most}; wanted 0 <= least <= most <= 1")

    @classmethod
    def fit(cls, scores: Float[Tensor, "image caption"], relevance: Int[Tensor, " caption"] | Relevance) -> Calibration:
        """Fit to the first answers of queries with and without their right answers, see `first_answers`.

        Args:
            scores: of images and captions that training has not seen. Captions ask for images.
            relevance: which belong together, a `Relevance` or the image of each caption.

        Raises:
            ValueError: there are fewer than two images, scores and relevance do not go together, or a score is NaN or
                infinitely high.

        >>> scores = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.8, 0.2], [0.1, 0.3, 0.7]])
        >>> calibration = Calibration.fit(scores, torch.tensor([0, 1, 2]))
        >>> bool(calibration.probability(scores[:, 0])[0] > 0.5)
        True
        """
        scores, relevance = check_relevance(scores, relevance)
        inputs, right = [], []
        for images, captions in _collections(relevance):
            answers = first_answers(scores[images][:, captions], relevance.select(images, captions))
            size = torch.full_like(answers.score, math.log(len(images)))
            inputs.append(torch.stack([answers.score, answers.lead, size], dim=1))
            right.append(answers.right)
        (score, lead, size, bias), least, most = _fitted(torch.cat(inputs), torch.cat(right))
        return cls(score, lead, size, bias, least, most)

    def probability(
        self, scores: Float[Tensor, "*query answer"], *, images: int | None = None
    ) -> Float[Tensor, "*query answer"]:
        """How likely it is that each answer matches.

        Args:
            scores: of the answers to a query, along the last axis, in any order. The best two must be among them; the
                others may be left out. A single answer has nothing to compare it with: its lead counts as none.
            images: how many images were searched for them; None for as many as there are answers.

        Raises:
            ValueError: there is no answer, there are more than images, or a score is NaN.

        Returns:
            Probabilities, in at least float32.
        """
        scores = torch.as_tensor(scores)
        if not scores.ndim:
            raise ValueError("scores are a single number; wanted those of the answers to a query along the last axis")
        count = scores.shape[-1]
        if count == 0:
            raise ValueError("there is no score to give a probability to")
        if images is not None and images < count:
            raise ValueError(f"images is {images}, but there are {count} answers; say how many were searched")
        exact = scores.double()
        if bool(exact.isnan().any()):
            raise ValueError("the score of an answer is NaN, which has no probability; look for NaN features")
        lead = leads(exact)
        logit = self.score_weight * exact + self.lead_weight * lead
        logit = logit + self.size_weight * math.log(images or count) + self.bias
        kept = torch.float64 if scores.dtype == torch.float64 else torch.float32
        return ((lead >= 0) * self.least + (self.most - self.least) * logit.sigmoid()).to(kept)

    def says_no_match(
        self, scores: Float[Tensor, "*query answer"], *, images: int | None = None
    ) -> Bool[Tensor, "*query"]:
        """Whether no answer of a query is likely to match; arguments as for `probability`."""
        return self.probability(scores, images=images).amax(dim=-1) < LIKELY

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all; into a folder as `calibration.json`.

        Raises:
            OSError: the file cannot be written.
        """
        with written_whole(_file(path)) as whole:
            whole.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, model: str | None = None) -> Calibration:
        """Read what `save` wrote, from a file or from the folder that it is in.

        Args:
            path: the file or its folder.
            model: the hash of the model whose scores it is for; None to take it whatever it was fitted to.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, or was fitted to the scores of another model.

        >>> Calibration(score_weight=10.0, lead_weight=20.0, size_weight=-1.0, bias=-2.0).save("calibration.json")
        >>> Calibration.load(".").bias
        -2.0
        """
        file = _file(path)
        if not file.is_file():
            raise FileNotFoundError(f"no calibration at {file}; `xmodal evaluate MODEL --calibrate dev` makes one")
        try:
            found = cls(**json.loads(file.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is damaged: it holds no calibration ({error}). Calibrate again.") from error
        if None not in (model, found.model) and model != found.model:
            raise ValueError(f"{file} was fitted to the scores of another model. Calibrate again.")
        return found


def calibrate(matcher: Matcher, folder: str | Path, split: Split, *, progress: bool = False) -> Calibration:
    """Fit the scores of a matcher on a split that training has not seen, and keep the calibration beside the model.

    Args:
        matcher: the model.
        folder: where it is, or its run.
        split: images and captions.
        progress: show bars.

    Raises:
        FileNotFoundError: no model is in the folder.
        OSError: the calibration cannot be written.
        ValueError: the split has fewer than two images.

    >>> from xmodal.data import Caption, RegionStore, RegionStoreWriter
    >>> from xmodal.data.split import Split
    >>> from xmodal.model import Matcher
    >>> with RegionStoreWriter("dev.h5", dim=8, extractor="by hand") as writer:
    ...     for image, row in enumerate(torch.eye(8)):
    ...         writer.write(str(image), row[None])
    >>> split = Split.of(RegionStore("dev.h5"), [Caption(str(i), str(i), "a dog", "dev") for i in range(8)])
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog"])
    >>> matcher.save_pretrained("model")
    >>> calibrate(matcher, "model", split) == calibration_of("model")
    True
    """
    folder = model_folder(folder)
    found = Calibration.fit(matcher.score_all(split.source, split.sentences, progress=progress), split.relevance)
    found = replace(found, model=weights_hash(folder))
    found.save(folder)
    return found


def calibration_of(folder: str | Path) -> Calibration | None:
    """The calibration beside a model, given its folder or its run's; None where there is none.

    Raises:
        ValueError: the calibration is damaged, or of other weights.

    >>> calibration_of("nowhere")
    """
    folder = model_folder(folder)
    return Calibration.load(folder, model=weights_hash(folder)) if (folder / CALIBRATION).is_file() else None


@dataclass(frozen=True)
class Answers:
    """The first answers of queries, each asked with its right answers among the images and again without them."""

    score: Float[Tensor, " asked"]
    lead: Float[Tensor, " asked"]
    right: Bool[Tensor, " asked"]
    """Whether the first answer is one."""
    answerable: Bool[Tensor, " asked"]
    """Whether there was a right answer to find."""


def first_answers(scores: Float[Tensor, "image caption"], relevance: Int[Tensor, " caption"] | Relevance) -> Answers:
    """The image that each caption finds first among all images, and among those that do not belong to it.

    Raises:
        ValueError: there are fewer than two images, scores and relevance do not go together, or a score is NaN or
            infinitely high.

    >>> answers = first_answers(torch.tensor([[0.9, 0.2], [0.3, 0.1], [0.0, 0.8]]), torch.tensor([0, 1]))
    >>> answers.right.tolist(), answers.lead
    ([True, False, False, False], tensor([0.6000, 0.6000, 0.3000, 0.6000], dtype=torch.float64))
    """
    scores, relevance = check_relevance(scores, relevance)
    if len(scores) < 2:
        raise ValueError(f"there are {len(scores)} images; an answer has no other to lead before")
    check_no_nan(scores, range(len(scores)), range(scores.shape[1]))
    if bool(scores.max() == math.inf):
        raise ValueError("a score is infinite, which no probability can be made of; look for features that are huge")
    belongs = torch.zeros(scores.shape, dtype=torch.bool)
    belongs[relevance.image, relevance.caption] = True
    captions = torch.arange(scores.shape[1]).split(max(1, BLOCK_ELEMENTS // len(scores)))
    parts = [_first_answers(scores[:, some].cpu().double(), belongs[:, some]) for some in captions]
    best, right, answerable = (torch.cat(column) for column in zip(*parts, strict=True))
    asked = best[:, 0].isfinite()  # a query to which all images belong has no wrong answer
    return Answers(best[asked, 0], leads(best)[asked, 0], right[asked], answerable[asked])


def _first_answers(
    scores: Float[Tensor, "image caption"], belongs: Bool[Tensor, "image caption"]
) -> tuple[Float[Tensor, "asked 2"], Bool[Tensor, " asked"], Bool[Tensor, " asked"]]:
    """The two best scores of every question, whether the first answer is right, and whether there was a right one."""
    found = scores.topk(2, dim=0)
    without = scores.masked_fill(belongs, -torch.inf).topk(2, dim=0).values
    right = belongs.gather(0, found.indices[:1])[0]
    wrong = torch.zeros_like(right)
    best = torch.cat([found.values, without], dim=1).T
    return best, torch.cat([right, wrong]), torch.cat([belongs.any(dim=0), wrong])


def leads(scores: Float[Tensor, "*query answer"]) -> Float[Tensor, "*query answer"]:
    """How far each answer is before the best other one of its query, below zero for all but the first.

    Where there is no other, or none with a score, it leads by nothing.

    >>> leads(torch.tensor([3.0, 1.0, 2.0]))
    tensor([ 1., -2., -1.])
    """
    if scores.shape[-1] < 2:
        return torch.zeros_like(scores)
    first, second = scores.topk(2, dim=-1).values.unbind(dim=-1)
    is_first = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.argmax(dim=-1, keepdim=True), True)
    ahead = scores - torch.where(is_first, second[..., None], first[..., None])
    return torch.where(ahead.isfinite(), ahead, 0.0)


def evaluate_calibration(
    calibration: Calibration,
    scores: Float[Tensor, "image caption"],
    relevance: Int[Tensor, " caption"] | Relevance,
) -> dict[str, float]:
    """How far the probabilities of first answers can be trusted, on queries with and without their right answers.

    Args:
        calibration: fitted on another split.
        scores: of images and captions.
        relevance: which belong together, a `Relevance` or the image of each caption.

    Returns:
        `ECE`, the expected calibration error of the first answers' probabilities; `AUROC`, how well these tell queries
        with a right answer from those without; `missed` and `false_alarms`, the shares of the former for which nothing
        is said to match, and of the latter for which something is.

    Raises:
        ValueError: as for `first_answers`.

    >>> scores = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.8, 0.2], [0.1, 0.3, 0.7]])
    >>> calibration = Calibration.fit(scores, torch.tensor([0, 1, 2]))
    >>> evaluate_calibration(calibration, scores, torch.tensor([0, 1, 2]))["AUROC"]
    1.0
    """
    answers = first_answers(scores, relevance)
    pairs = torch.stack([answers.score, answers.score - answers.lead], dim=1)
    probability = calibration.probability(pairs, images=len(scores))[:, 0]
    nothing = probability < LIKELY
    return {
        "ECE": expected_calibration_error(probability, answers.right),
        "AUROC": auroc(probability[answers.answerable], probability[~answers.answerable]),
        "missed": nothing[answers.answerable].double().mean().item(),
        "false_alarms": (~nothing)[~answers.answerable].double().mean().item(),
    }


def format_calibration(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each model with a calibration, for the terminal; nothing without one.

    Args:
        results: model name -> a result with what `evaluate_calibration` gives as `calibration`.

    >>> found = {"ECE": 0.0123, "AUROC": 0.95, "missed": 0.1, "false_alarms": 0.2}
    >>> print(format_calibration({"scan": {"calibration": found}, "bfan": {}}))
    probability of a match: scan: ECE 0.012, AUROC of no match 0.950, missed 10.0%, false alarms 20.0%
    """
    return "\n".join(
        f"probability of a match: {name}: ECE {found['ECE']:.3f}, AUROC of no match {found['AUROC']:.3f}, "
        f"missed {100 * found['missed']:.1f}%, false alarms {100 * found['false_alarms']:.1f}%"
        for name, result in results.items()
        if (found := result.get("calibration"))
    )


def expected_calibration_error(
    probability: Float[Tensor, " answer"], right: Bool[Tensor, " answer"], *, bins: int = 15
) -> float:
    """Mean distance between probability and share of right answers, over bins of equal width (Guo et al., 2017, eq. 3).

    >>> expected_calibration_error(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([True, False, False]), bins=2)
    0.2999999...
    """
    which = (probability.double() * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right.double() - probability.double())
    return (gaps.abs().sum() / len(probability)).item()


def auroc(positive: Float[Tensor, " one"], negative: Float[Tensor, " other"]) -> float:
    """Area under the ROC curve: how often a positive is above a negative, ties counted half; NaN without either.

    >>> auroc(torch.tensor([0.9, 0.4]), torch.tensor([0.4, 0.1]))
    0.875
    """
    ordered = negative.double().sort().values
    below = torch.searchsorted(ordered, positive.double().contiguous())
    not_above = torch.searchsorted(ordered, positive.double().contiguous(), right=True)
    pairs = len(positive) * len(negative)
    return math.nan if not pairs else ((below + not_above).sum() / (2 * pairs)).item()


def _collections(relevance: Relevance) -> Iterator[tuple[Int[Tensor, " image"], Int[Tensor, " caption"]]]:
    """All images and captions, and parts of the images with the captions that belong to them; always the same."""
    yield torch.arange(relevance.images), torch.arange(relevance.captions)
    order = torch.randperm(relevance.images, generator=torch.Generator().manual_seed(0))
    for count in PARTS:
        for images in order.chunk(count):
            captions = relevance.caption[torch.isin(relevance.image, images)].unique()
            if len(images) > 1 and len(captions):
                yield images, captions


def _fitted(
    features: Float[Tensor, "answer feature"], right: Bool[Tensor, " answer"]
) -> tuple[list[float], float, float]:
    """Weights of the features and bias, least and most probability, by maximum likelihood; see `PENALTY`."""
    center, spread = features.mean(dim=0), features.std(dim=0)
    spread = spread.where(spread > 0, 1.0)
    inputs = torch.cat([(features - center) / spread, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    start = torch.zeros(inputs.shape[1] + 2, dtype=torch.float64)
    start[-2:] = 4.0  # least and most start near 0 and 1
    values = start.requires_grad_()
    solver = torch.optim.LBFGS([values], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Any:
        solver.zero_grad()
        least, most = (-values[-2]).sigmoid() / 2, 1 - (-values[-1]).sigmoid() / 2
        fit = least + (most - least) * (inputs @ values[:-2]).sigmoid()
        total = torch.nn.functional.binary_cross_entropy(fit.clamp(1e-12, 1 - 1e-12), right.double())
        total = total + PENALTY * values.square().sum()
        total.backward()
        return total

    with torch.inference_mode(False), torch.enable_grad():
        solver.step(loss)
    *slopes, bias, least, most = values.detach()
    slopes = torch.stack(slopes) / spread
    weights = [*slopes.tolist(), (bias - (slopes * center).sum()).item()]
    return weights, (-least).sigmoid().item() / 2, 1 - (-most).sigmoid().item() / 2


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / CALIBRATION if path.is_dir() else path
