"""The command line: `xmodal train | evaluate | search | ...`, each a dataclass that tyro turns into options."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.arguments import read_arguments
from xmodal.entry import DEBUG, DEBUG_HELP, ends_in_one_line
from xmodal.spelling import near_miss
from xmodal.training.config import LabelledDataConfig, RunConfig, TrainConfig, load_recipe
from xmodal.training.recipes import describe_recipe, known_recipes


@dataclass(frozen=True)
class Split:
    """The part of the data to look at."""

    folder: Path
    """Folder with `{split}.h5` and `captions.jsonl`."""
    split: str = "test"
    """Which split."""
    images: Path | None = None
    """Folder of the photographs, for models that look at pixels; by default the one that the run was trained with."""


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


@dataclass(frozen=True)
class EvaluateEmbedder:
    """Evaluate an embedder by retrieval and clustering of labelled images, and draw what it does."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    path: Path
    """An index, a folder with one folder a class, or a file of features."""
    splits: tuple[str, ...] = ("test",)
    """Splits whose images belong together: test, or query gallery."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Levels K of R@K."""
    resize: int = 256
    """Pixels of the shorter side of an image before it is cropped, as in training."""
    crop: int = 224
    """Side of the square that is cut out of the center."""
    square: bool = False
    """Stretch an image to a square before it is cropped."""
    neighbors: Path | None = None
    """Also draw the nearest images of some queries here."""
    queries: int = 8
    """How many queries to draw, spread evenly over the images."""
    map: Path | None = None
    """Also draw all images on a plane here."""
    json: Path | None = None
    """Also write all numbers here."""


@dataclass(frozen=True)
class SplitOrNone:
    """The part of the data to look at, where there is no index."""

    folder: Path | None = None
    """Folder with `{split}.h5` and `captions.jsonl`."""
    split: str = "test"
    """Which split."""
    images: Path | None = None
    """Folder of the photographs, for models that look at pixels; by default the one that the run was trained with."""


@dataclass(frozen=True)
class BuildIndex:
    """Index images for sentences, or captions for images: a search scores few of them and is certain all the same."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    store: tyro.conf.Positional[Path]
    """Region store (.h5) with the images, or captions.jsonl to index captions."""
    output: Path | None = None
    """Folder of the index; by default STORE with the suffix .index."""
    split: str | None = None
    """Of a file of captions: only those of this split."""
    queries: Path | None = None
    """Captions file with sentences about the images, to measure the recall of inexact search by."""
    measured: int = 200
    """How many of these sentences to use, spread evenly."""
    bits: int = 8
    """Of the certificate: 8, or 4 for a small index that is only approximate."""
    cells: int = 0
    """Parts of the space by which inexact search looks images up instead of scanning all; a thousand for a million."""
    overwrite: bool = False
    """Replace an index that is there."""


@dataclass(frozen=True)
class BuildCluster:
    """Deal the items of an index to several servers of vectors, Milvus or PostgreSQL, which are searched as one."""

    index: tyro.conf.Positional[Path]
    """Folder that `xmodal index` made."""
    servers: tyro.conf.Positional[Path]
    """YAML file with a list of servers: `- {name: milvus, uri: "http://10.0.0.7:19530"}`."""
    output: Path | None = None
    """File to write, for `xmodal search --index`; by default INDEX with the suffix .cluster.json."""
    overwrite: bool = False
    """Replace a cluster that is there, on its servers too."""


@dataclass(frozen=True)
class Search:
    """Show the images that a sentence retrieves, of a split or of an index."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    sentences: tyro.conf.Positional[tuple[str, ...]]
    """Sentences to search for. "a dog NOT red car" asks for dogs without red cars."""
    data: SplitOrNone
    index: Path | None = None
    """Folder that `xmodal index` made, or file that `xmodal cluster` wrote, to search instead of a split."""
    exact: bool = True
    """With --index: find what scoring every image would; otherwise the best of the candidates."""
    images: Path | None = None
    """Folder with the image files, named by image id, to draw those that were found."""
    output: Path = Path("search.png")
    """Picture to write."""
    like: tuple[str, ...] = ()
    """Ids of images of the split that those found should be like; without sentences, look for such images alone."""
    top: int = 5
    """Images a sentence."""


@dataclass(frozen=True)
class Serve:
    """Serve an index: a page to search with, a JSON API (/openapi.json), /health and /metrics."""

    index: tyro.conf.Positional[Path]
    """Folder that `xmodal index` made, of images."""
    model: Path
    """Run folder, or folder written by save_pretrained, that the index was built with."""
    images: Path | None = None
    """Folder with the image files, named by image id; without, the page shows ids."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own let everybody in who reaches them."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    body_bytes: int = 10_000_000
    """Bytes of a photograph that is sent, at most."""
    pixels: int = 16_000_000
    """Pixels of a photograph that is sent, at most."""
    seconds: float = 15.0
    """What a request may take."""


@dataclass(frozen=True)
class Explain:
    """Show why a sentence fits an image as it does: what looks where, how surely, what adds how much to the score."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    image_id: tyro.conf.Positional[str]
    """Image of the split."""
    sentence: tyro.conf.Positional[str]
    """The sentence."""
    data: Split
    images: Path
    """Folder with the image files, named by image id."""
    output: Path = Path("explanation.png")
    """Picture to write."""
    page: Path = Path("explanation.html")
    """Page to write, one file that needs nothing else."""


@dataclass(frozen=True)
class Inspect:
    """Look at one photograph as a matcher does: its regions, their boxes drawn, its scores against sentences."""

    image: tyro.conf.Positional[Path]
    """The photograph."""
    model: Path | None = None
    """Run folder, or folder written by save_pretrained; regions are found as it was trained on them."""
    sentences: tuple[str, ...] = ()
    """With --model: sentences to score against the photograph."""
    extractor: str | None = None
    """Without --model: what finds the regions, see `xmodal prepare regions --help`."""
    output: Path = Path("regions.png")
    """Picture to write."""


@dataclass(frozen=True)
class Export:
    """Write a model as programs for onnxruntime and others, or for torch.export, and check them against it."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    output: Path = Path("exported")
    """Folder to write, or to replace."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx, or torch for torch.export."""


@dataclass(frozen=True)
class Recipes:
    """List the recipes that `xmodal train --recipe NAME` takes, and what each trains."""


def train(config: RunConfig) -> None:
    """Train, then say where things are."""
    from xmodal.training.config import criterion_of
    from xmodal.training.trainer import train as run

    best = run(config)
    if os.environ.get("RANK", "0") == "0":
        value = criterion_of(best, config.criterion)
        print(f"best {config.criterion} {value:.1f} at step {best['step']}; model in {config.output / 'best'}")


def evaluate(config: Evaluate) -> None:
    """Print a table of results."""
    from xmodal.data import load_relevance
    from xmodal.data.atomic import check_writable
    from xmodal.evaluation import write_ranks
    from xmodal.evaluation.after import AfterScoring
    from xmodal.evaluation.matchers import evaluate_matchers

    for path in filter(None, (config.scores, config.ranks, config.report, config.json)):
        check_writable(path)
    after = AfterScoring(config.normalize, config.temperature, config.rerank)
    matchers = {str(path): _load(path) for path in config.models}
    split = _open_split(config.data, matchers)
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
    split = _open_split(replace(config.data, split=config.calibrate), matchers)
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


def _bank(config: Evaluate, matchers: dict[str, Any]) -> Any:
    """The images and captions that tell hubs, None for those that are evaluated."""
    if config.bank is None:
        return None
    if config.normalize is None:
        raise ValueError(f"--bank {config.bank} is for --normalize, which is not given")
    if config.bank_images < 1:
        raise ValueError(f"--bank-images is {config.bank_images}; wanted at least one")
    return _open_split(replace(config.data, split=config.bank), matchers).first(config.bank_images)


def evaluate_embedder(config: EvaluateEmbedder) -> None:
    """Print the metrics of an embedder, and draw."""
    from xmodal.data.atomic import check_writable, written_whole
    from xmodal.embedder import Embedder
    from xmodal.evaluation.labelled import check_evaluable, evaluate_embeddings
    from xmodal.search.neighbors import draw_map, draw_neighbors
    from xmodal.training.retrieval import load_split

    if config.queries < 1:
        raise ValueError(f"--queries is {config.queries}; wanted at least one to draw")
    for path in (config.json, config.neighbors, config.map):
        if path is not None:
            check_writable(path)
    data = LabelledDataConfig(config.path, resize=config.resize, crop=config.crop, square=config.square)
    images = load_split(data, config.splits, train=False)
    check_evaluable(images.labels, images.query, config.recall_at, ks_name="recall_at")
    embedder = _load(config.model, Embedder)
    progress = sys.stderr.isatty()
    embeddings = embedder.embed_all(images, progress=progress)
    options = {"query": images.query, "ks": config.recall_at, "normalize": embedder.normalize, "progress": progress}
    results = evaluate_embeddings(embeddings, images.labels, **options)
    print("\n".join(f"{name:12} {value:6.1f}" for name, value in results.items()))
    if config.json is not None:
        with written_whole(config.json) as whole:
            whole.write_text(json.dumps(results, indent=2), encoding="utf-8")
    if config.neighbors is not None:
        asked = range(len(images)) if images.query is None else images.query.nonzero().flatten().tolist()
        queries = asked[:: max(1, len(asked) // config.queries)][: config.queries]
        how = {"query": images.query, "normalize": embedder.normalize}
        draw_neighbors(embeddings, images.labels, images.image_id, queries, config.neighbors, **how)
        print(f"wrote {config.neighbors}")
    if config.map is not None:
        names = images.class_names
        draw_map(embeddings, images.labels, config.map, class_names=names, normalize=embedder.normalize)
        print(f"wrote {config.map}")


def build_index(config: BuildIndex) -> None:
    """Build an index and say what it takes."""
    from xmodal.data import RegionStore, load_captions
    from xmodal.search.index import Index

    of_captions = config.store.suffix == ".jsonl"
    items: Any = load_captions(config.store, config.split) if of_captions else RegionStore(config.store)
    output = config.output or config.store.with_suffix(".index")
    options = {"bits": config.bits, "cells": config.cells, "overwrite": config.overwrite}
    matcher = _load(config.model)
    index = Index.build(matcher, items, output, progress=sys.stderr.isatty(), **options)
    print(f"{output}: {len(index)} {index.manifest.indexed}, {index.describe_bytes()}")
    if config.queries is not None:
        known = set(index.ids)
        sentences = [each.caption for each in load_captions(config.queries) if each.image_id in known]
        if not sentences:
            raise ValueError(f"{config.queries} has no caption of an image of {config.store}")
        some = sentences[:: max(1, len(sentences) // config.measured)][: config.measured]
        print(f"inexact search finds {index.measure(matcher, some):.1f}% of the exact top 10 ({len(some)} sentences)")


def build_cluster(config: BuildCluster) -> None:
    """Deal an index to servers and say what each holds."""
    from xmodal.search.engines.cluster import Cluster
    from xmodal.search.index import Index
    from xmodal.training.read_yaml import read_yaml

    if not config.servers.is_file():
        raise FileNotFoundError(f"there is no file {config.servers} with a list of servers")
    servers = read_yaml(config.servers.read_text(encoding="utf-8"))
    if not isinstance(servers, list) or not all(isinstance(each, dict) for each in servers):
        raise ValueError(f"{config.servers} holds {servers!r}; wanted a list: - {{name: folder, path: /disk1}}")
    output = config.output or config.index.with_suffix(".cluster.json")
    cluster = Cluster.build(Index.open(config.index), output, servers, overwrite=config.overwrite)
    print(f"{output}: {len(cluster)} {cluster.plan.indexed}")
    for server, items in zip(cluster.roster.servers, cluster.plan.items, strict=True):
        print(f"  {items} on {server.address}")


def search(config: Search) -> None:
    """Draw and list the best images of each sentence."""
    from xmodal.data.split import open_source
    from xmodal.evaluation.calibration import calibration_of
    from xmodal.search.pictures import draw_retrieved
    from xmodal.search.queries import Query
    from xmodal.search.retrieve import describe_row, retrieve

    if (config.index is None) == (config.data.folder is None):
        raise ValueError("give either --data.folder or --index: what is searched is a split or an index")
    sentences = config.sentences or ("",)
    queries = [Query.parse(sentence, config.like) for sentence in sentences]
    calibration = calibration_of(config.model)
    if config.index is not None:
        if not all(query.is_plain for query in queries):
            raise ValueError("NOT and --like look at every image: give --data.folder in the place of --index")
        found, notes = _found_by_index(config, config.index, sentences)
        rows = [_row(*each, calibration) for each in zip(sentences, found, strict=True)]
    else:
        matcher = _load(config.model)
        source = _source(config.data, config.model, matcher)
        images = open_source(config.data.folder or "", config.data.split, source)
        rows = retrieve(matcher, images, sentences, top=config.top, like=config.like, calibration=calibration)
        notes = [""] * len(rows)
    for row, note in zip(rows, notes, strict=True):
        first, *others = describe_row(row)
        print(first + note, *others, sep="\n")
    if config.images is not None:
        draw_retrieved(rows, config.images, config.output)
        print(f"wrote {config.output}")


def _found_by_index(config: Search, path: Path, sentences: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """What an index or a cluster finds, and how certain each answer is."""
    from xmodal.search.engines.cluster import Cluster
    from xmodal.search.index import Index

    if path.is_file():
        cluster = Cluster.open(path)  # what is missing is told before the model is loaded
        found = cluster.find(_load(config.model), list(sentences), config.top)
        return found, [f"  ({each.rescored} of {each.searched} scored; {each.describe()})" for each in found]
    index = Index.open(path)
    found = index.find(_load(config.model), list(sentences), config.top, exact=config.exact, words=False)
    return found, [_told(each) for each in found]


def _row(sentence: str, found: Any, calibration: Any) -> Any:
    """What an index found, with the probability of a match where more than one answer says how far the first leads."""
    import torch

    from xmodal.search.pictures import Retrieved

    row = Retrieved(sentence, [hit.image_id for hit in found.hits], [hit.score for hit in found.hits])
    if calibration is None or len(found.hits) < 2:
        return row
    return row._replace(probability=calibration.probability(torch.tensor(row.scores), images=found.searched).tolist())


def _told(found: Any) -> str:
    """How certain an answer of an index is."""
    scored = f"{found.rescored} of {found.searched} scored"
    if found.hits and all(hit.certified for hit in found.hits):
        return f"  (certified, {scored})"
    return f"  ({scored}; " + ("recall not measured)" if found.recall is None else f"recall {found.recall:.1f}%)")


def serve(config: Serve) -> None:
    """Open everything, say where it is, and serve until Ctrl-C."""
    from importlib.util import find_spec

    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise ImportError(f"serving needs {', '.join(missing)}: pip install 'xmodal[serve]'")
    from xmodal.search.serve.guard import Limits
    from xmodal.search.serve.server import allowed_hosts, listen, open_app, run

    limits = Limits(config.body_bytes, config.pixels, config.seconds)
    hosts = allowed_hosts(config.host)
    app = open_app(config.index, config.model, config.images, limits=limits, hosts=hosts)
    with listen(config.host, config.port) as listening:
        name = f"[{config.host}]" if ":" in config.host else config.host
        print(f"http://{name}:{listening.getsockname()[1]}/ serves {config.index}; Ctrl-C stops it", flush=True)
        run(app, listening)


def explain(config: Explain) -> None:
    """Write the picture and the page of one pair."""
    from xmodal.data import RegionStore
    from xmodal.data.split import store_file
    from xmodal.search.explained_page import write_page
    from xmodal.search.explained_picture import draw_explanation
    from xmodal.search.explanation import explained
    from xmodal.search.pictures import find_image

    store = RegionStore(store_file(config.data.folder, config.data.split))
    image = find_image(config.images, config.image_id)
    pair = explained(_load(config.model), store, config.image_id, image, config.sentence)
    draw_explanation(pair, config.output)
    write_page(pair, config.page)
    print(f"score {pair.score:.4f}\nwrote {config.output} and {config.page}")


def inspect(config: Inspect) -> None:
    """Print and draw the regions of a photograph, and score it."""
    from xmodal.data.images import read_image
    from xmodal.encoders.extractors import EXTRACTORS
    from xmodal.given import build_extractor
    from xmodal.names import build
    from xmodal.search.photograph import describe_regions, describe_scores
    from xmodal.search.pictures import draw_regions

    if (config.model is None) == (config.extractor is None):
        raise ValueError("give either --model or --extractor: a model brings the extractor that it was trained with")
    if config.sentences and config.model is None:
        raise ValueError("--sentences need --model to score them")
    image = read_image(config.image)
    matcher = None if config.model is None else _load(config.model)
    if matcher is not None:
        extractor = build_extractor(matcher.extractor)
    else:
        extractor = build("extractor", EXTRACTORS, {"name": config.extractor})
    (regions,) = extractor([image])
    scores: list[str] = []
    if matcher is not None and config.sentences:
        scores = describe_scores(matcher, regions, image.size, config.sentences)
    print(f"{config.image}: {image.width} x {image.height}, {len(regions.boxes)} regions by {extractor.name}")
    print(*describe_regions(regions, extractor.class_names), *scores, sep="\n")
    draw_regions(image, regions, extractor.class_names, config.output, notes=scores)
    print(f"wrote {config.output}")


def export(config: Export) -> None:
    """Write the programs and say how far they are from the model."""
    from xmodal.export import export_matcher

    differences = export_matcher(_load(config.model), config.output, form=config.format)
    for name, difference in differences.items():
        print(f"{name:6} differs from the model by at most {difference:.1e}")
    print(f"wrote {config.output}")


def recipes(_config: Recipes) -> None:
    """Print names and first sentences, by what is trained; ablations last."""
    groups: dict[str, list[str]] = {}
    known = known_recipes()
    width = max(map(len, known))
    for name, path in known.items():
        group = name.rpartition("/")[0] or load_recipe(path).task
        groups.setdefault(group, []).append(f"  {name:{width}}  {describe_recipe(path)}")
    for group, lines in groups.items():
        print(f"{group}:", *lines, sep="\n")


COMMANDS: dict[str, tuple[Any, type]] = {
    "train": (train, TrainConfig),
    "recipes": (recipes, Recipes),
    "evaluate": (evaluate, Evaluate),
    "evaluate-embedder": (evaluate_embedder, EvaluateEmbedder),
    "index": (build_index, BuildIndex),
    "cluster": (build_cluster, BuildCluster),
    "search": (search, Search),
    "serve": (serve, Serve),
    "explain": (explain, Explain),
    "inspect": (inspect, Inspect),
    "export": (export, Export),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: wrong input ends with one clear line and exit status 2, not with a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _import_from_here()
    name = next((argument for argument in arguments if argument != DEBUG), "--help")
    if name in ("-h", "--help"):
        print(_overview())
        return
    with ends_in_one_line(f"xmodal {name}" if name in (*COMMANDS, "prepare") else "xmodal", arguments) as rest:
        if name == "prepare":
            # A wheel has these programs in another folder than a checkout, so that only their name is the same.
            import_module("xmodal.prepare.programs").run([*rest[1:], *([DEBUG] if DEBUG in arguments else [])])
        elif name in COMMANDS:
            _run(name, rest[1:])
        else:
            known = (*COMMANDS, "prepare")
            raise ValueError(f"unknown command {name!r}{near_miss(name, known)}; known: {', '.join(known)}")


def _import_from_here() -> None:
    """Let names lead to classes in files beside the user, as under `python -m`; what is installed goes first."""
    if "" not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.append("")


def _run(name: str, arguments: list[str]) -> None:
    """Run one of the commands with its options."""
    command, kind = COMMANDS[name]
    prog = f"xmodal {name}"
    if kind is not TrainConfig:
        command(read_arguments(kind, arguments, prog=prog, description=f"{_description(kind)} {DEBUG_HELP}"))
        return
    from xmodal.training.command_line import parse

    recipe, arguments = _recipe(arguments)
    about = f"{_description(type(recipe))} {DEBUG_HELP}"
    command(parse(recipe, arguments, prog=prog, description=about))


def _recipe(arguments: list[str]) -> tuple[RunConfig, list[str]]:
    """Take `--recipe FILE` out of the arguments; everything else on the command line overrides the recipe."""
    places = [at for at, argument in enumerate(arguments) if argument.partition("=")[0] == "--recipe"]
    if not places:
        return TrainConfig(), arguments
    if len(places) > 1:
        raise ValueError("--recipe is given more than once; a recipe may name another as its base instead")
    (at,) = places
    _, is_joined, recipe = arguments[at].partition("=")
    after = at + (1 if is_joined else 2)
    recipe = recipe if is_joined else "".join(arguments[at + 1 : after])
    if not recipe:
        raise ValueError("--recipe needs the path of a YAML file, or a name that `xmodal recipes` lists")
    return load_recipe(recipe), arguments[:at] + arguments[after:]


def _description(kind: type) -> str:
    text = (kind.__doc__ or "").strip()
    return (
        text + " --recipe FILE or NAME reads a YAML recipe first, see `xmodal recipes`."
        if issubclass(kind, RunConfig)
        else text
    )


def _overview() -> str:
    lines = [f"  {name:19}{_description(kind)}" for name, (_, kind) in COMMANDS.items()]
    lines.append(f"  {'prepare':19}Make region stores, captions and vocabularies of what you have.")
    end = f"xmodal COMMAND --help lists a command's options. {DEBUG_HELP}"
    return "\n".join(["usage: xmodal COMMAND ...", "", *lines, "", end])


def _load(path: Path, kind: Any = None) -> Any:
    """A model, a matcher unless said otherwise."""
    from xmodal.model import Matcher

    return (kind or Matcher).from_pretrained(path)


def _open_split(data: Split, matchers: dict[str, Any]) -> Any:
    """The part of the data to look at, with its images as the matchers were trained to see them."""
    from xmodal.data.split import open_split

    first, *others = [_source(data, Path(path), matcher) for path, matcher in matchers.items()] or [{}]
    for path, source in zip(list(matchers)[1:], others, strict=True):
        if source != first:
            raise ValueError(
                f"{path} takes images of {source or 'region stores'} and {next(iter(matchers))} of "
                f"{first or 'region stores'}; evaluate together what takes the same images"
            )
    return open_split(data.folder, data.split, first)


def _source(data: Split | SplitOrNone, path: Path, matcher: Any) -> dict[str, Any]:
    """Where a matcher takes images from: as its run did, or, of a matcher alone, as its extractor says."""
    from xmodal.data.split import SOURCES
    from xmodal.training.checkpoints import CONFIG

    run = path / CONFIG
    source = dict(load_recipe(run).data.source) if run.is_file() else {}
    if not source and isinstance(matcher.extractor, dict) and matcher.extractor["name"] in SOURCES:
        source = dict(matcher.extractor)
    return source if data.images is None else {**source, "folder": str(data.images)}


if __name__ == "__main__":
    main()
