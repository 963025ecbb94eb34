"""`xmodal evaluate`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path  # noqa: TC003  # tyro reads the annotations
from typing import Any

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import Split, load_model, open_part


@dataclass(frozen=True)
class Evaluate:
    """Evaluate one checkpoint, or several and their ensemble, with a named protocol."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders written by save_pretrained."""
    data: Split
    protocol: str = "plain"
    """plain, f30k-1k, coco-1k-5fold, coco-5k, cxc, eccv or pmrp; or several of one test set: coco-5k,cxc,eccv."""
    instances: Path | None = None
    """With protocol pmrp: COCO's file of object annotations, instances_val2014.json."""
    i2i: Path | None = None
    """Grades of pairs of images (CxC's sis_test.csv): also evaluate retrieval of images by images."""
    t2t: Path | None = None
    """Grades of pairs of captions (CxC's sts_test.csv), or the word siblings for captions of one image being right
    answers to one another: also evaluate retrieval of captions by captions."""
    relevance: Path | None = None
    """Judgements (JSON lines: image_id, caption_id, grade): also give R-precision, mAP@R and nDCG by these."""
    skip_unknown: bool = False
    """Leave out judgements of images and captions that are not in the split, and say how many they are."""
    normalize: str | None = None
    """Make up for hubs before ranking: dual_softmax, querybank, dbsn or sinkhorn."""
    temperature: float | None = None
    """Of --normalize, in units of the scores; by default one that suits cosines."""
    bank: str | None = None
    """With --normalize: the split whose images and captions tell the hubs; by default those that are evaluated do."""
    bank_images: int = 1000
    """How many images of --bank to take, with their captions."""
    rerank: str | None = None
    """Re-rank the first answers: mtfn; or mtfn_leak as published for captions, which reads the right answers."""
    calibrate: str | None = None
    """Fit what makes probabilities of the models' scores on this split, dev say, and keep it beside each model. Where a
    model has it, its calibration error and how well it tells that nothing matches are printed."""
    scores: Path | None = None
    """Also write all scores, (image, caption), to this .npy file; of several models, their mean."""
    ranks: Path | None = None
    """Also write what every image and caption retrieves, by ids, here: JSON lines."""
    report: Path | None = None
    """Also write a Markdown report here."""
    json: Path | None = None
    """Also write all numbers here."""


def evaluate(config: Evaluate) -> None:
    """Print a table of results."""
    from xmodal.data import load_relevance
    from xmodal.evaluation import write_ranks
    from xmodal.evaluation.matchers import evaluate_matchers

    _check_outputs(config)
    after = _after(config)
    matchers = _load(config.models)
    split = open_part(config.data, matchers)
    caption_ids = [caption.caption_id for caption in split.captions]
    progress, within = sys.stderr.isatty(), _within(config, split)
    judgements = inspect = None
    if config.relevance is not None:
        options = {"skip_unknown": config.skip_unknown}
        judgements = load_relevance(config.relevance, split.source.image_id, caption_ids, **options)
    if config.ranks is not None:
        names = {"image_ids": split.source.image_id, "caption_ids": caption_ids, "after": after}
        inspect = partial(write_ranks, config.ranks, caption_image=split.relevance, judgements=judgements, **names)
    results = evaluate_matchers(
        matchers,
        split.source,
        split.sentences,
        split.relevance,
        protocol=config.protocol.split(","),
        judgements=judgements,
        evaluators=_evaluators(config, split),
        after=after,
        bank=_bank(config, matchers),
        hubs=True,
        calibrations=_calibrations(config, matchers),
        out=config.scores,
        inspect=inspect,
        progress=progress,
    )
    _retrieve_within(within, matchers, split, results, progress)
    if after.leaks:
        print("t2i reads which captions of the test set describe one image: no figure to compare models by\n")
    _tell(config, results)


def _check_outputs(config: Evaluate) -> None:
    """Tell before the work what cannot be written, or is read."""
    from xmodal.data.atomic import check_writable, refuse_inputs
    from xmodal.data.split import files_of

    judged = (config.instances, config.i2i, config.t2t, config.relevance)
    for path in filter(None, (config.scores, config.ranks, config.report, config.json)):
        check_writable(path)
        refuse_inputs(path, [*judged, *files_of(config.data.folder, config.data.split), *config.models])


def _load(models: tuple[Path, ...]) -> dict[str, Any]:
    """The models by their paths; one that is given twice would count once in the ensemble, or under two names twice."""
    from xmodal.pretrained import model_folder

    folders: dict[Path, Path] = {}
    for path in models:
        before = folders.setdefault(model_folder(path).resolve(), path)
        if before is not path:
            raise ValueError(f"{path} is the same model as {before}; give every model once")
    return {str(path): load_model(path) for path in models}


def _tell(config: Evaluate, results: dict[str, Any]) -> None:
    """Print the tables, and write the report and all numbers where they were asked for."""
    from xmodal.data.atomic import written_whole
    from xmodal.evaluation.calibration import format_calibration
    from xmodal.evaluation.report import format_results, write_report

    print(format_results(results))
    if told := format_calibration(results):
        print(f"\n{told}")
    if config.report is not None:
        write_report(config.report, results, details={"data": str(config.data.folder), "split": config.data.split})
    if config.json is not None:
        with written_whole(config.json) as whole:
            whole.write_text(json.dumps(results, indent=2), encoding="utf-8")


def _calibrations(config: Evaluate, matchers: dict[str, Any]) -> dict[str, Any]:
    """What makes probabilities of the scores of those models that have it, or of all where it is asked for."""
    from xmodal.evaluation.calibration import calibrate, calibration_of

    if config.calibrate is None:
        return {path: found for path in matchers if (found := calibration_of(path)) is not None}
    split = open_part(replace(config.data, split=config.calibrate), matchers)
    progress = sys.stderr.isatty()
    return {path: calibrate(matcher, path, split, progress=progress) for path, matcher in matchers.items()}


def _evaluators(config: Evaluate, split: Any) -> dict[str, Any]:
    """The protocols that know other right answers than the image a caption is about."""
    from xmodal.evaluation.coco import judged_protocols
    from xmodal.evaluation.plausible import PMRP, pmrp_evaluator

    protocols, image_ids = config.protocol.split(","), split.source.image_id
    caption_ids = [caption.caption_id for caption in split.captions]
    evaluators: dict[str, Any] = judged_protocols(protocols, image_ids, caption_ids, others=[PMRP])
    if (PMRP in protocols) != (config.instances is not None):
        raise ValueError("protocol pmrp and --instances, the objects of every image, go together: give both or neither")
    if config.instances is not None:
        evaluators[PMRP] = pmrp_evaluator(config.instances, image_ids, split.relevance)
    return evaluators


def _within(config: Evaluate, split: Any) -> dict[str, tuple[Any, Any]]:
    """What is asked of retrieval within one modality: the kind of items, and which belong together."""
    from xmodal.evaluation.within import load_pairs, sibling_relevance

    asked: dict[str, tuple[Any, Any]] = {}
    skip = config.skip_unknown
    if config.i2i is not None:
        asked["i2i"] = "image", load_pairs(config.i2i, "image", split.source.image_id, skip_unknown=skip)
    if config.t2t is not None:
        siblings = split.relevance.caption_image.tolist()
        if str(config.t2t) == "siblings":
            asked["t2t"] = "caption", sibling_relevance(siblings)
        else:
            caption_ids = [caption.caption_id for caption in split.captions]
            asked["t2t"] = "caption", load_pairs(config.t2t, "caption", caption_ids, siblings, skip_unknown=skip)
    return asked


def _retrieve_within(
    asked: dict[str, tuple[Any, Any]], matchers: dict[str, Any], split: Any, results: dict[str, Any], progress: bool
) -> None:
    """Add retrieval within one modality to the results of every matcher and of all together."""
    from xmodal.evaluation.within import evaluate_within, within_scorer

    for name, (kind, pairs) in asked.items():
        scorers = {}
        for model, matcher in matchers.items():
            embed, items = (
                (matcher.embed_store, split.source) if kind == "image" else (matcher.embed_captions, split.sentences)
            )
            scorers[model] = within_scorer(matcher, kind, embed(items, progress=progress))
        for model, found in evaluate_within(scorers, pairs, progress=progress).items():
            results[model][name] = found


def _after(config: Evaluate) -> Any:
    """What is done between scoring and ranking."""
    from xmodal.evaluation.after import AfterScoring

    after = AfterScoring(config.normalize, config.temperature, config.rerank)
    after.check_bank(config.bank is not None)
    return after


def _bank(config: Evaluate, matchers: dict[str, Any]) -> Any:
    """The images and captions that tell hubs, None for those that are evaluated."""
    if config.bank is None:
        return None
    if config.normalize is None:
        raise ValueError(f"--bank {config.bank} is for --normalize, which is not given")
    if config.bank_images < 1:
        raise ValueError(f"--bank-images is {config.bank_images}; wanted at least one")
    return open_part(replace(config.data, split=config.bank), matchers).first(config.bank_images)
