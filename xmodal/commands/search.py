"""`xmodal search`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import SplitOrNone, load_model, source_of

if TYPE_CHECKING:
    from xmodal.search.queries import Query


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


def search(config: Search) -> None:
    """Draw and list the best images of each sentence."""
    from xmodal.data.split import open_source
    from xmodal.evaluation.calibration import calibration_of
    from xmodal.numerics import check_count
    from xmodal.search.pictures import draw_retrieved
    from xmodal.search.queries import Query
    from xmodal.search.retrieve import describe_row, retrieve

    if (config.index is None) == (config.data.folder is None):
        raise ValueError("give either --data.folder or --index: what is searched is a split or an index")
    check_count("top", config.top)
    sentences = config.sentences or ("",)
    queries = [Query.parse(sentence, config.like) for sentence in sentences]
    calibration = calibration_of(config.model)
    if config.index is not None:
        found, notes = _found_by_index(config, config.index, queries)
        known = [calibration if query.is_plain else None for query in queries]
        rows = [_row(*each, config.top) for each in zip(sentences, found, known, strict=True)]
    else:
        matcher = load_model(config.model)
        source = source_of(config.data, config.model, matcher)
        images = open_source(config.data.folder or "", config.data.split, source)
        rows = retrieve(matcher, images, sentences, top=config.top, like=config.like, calibration=calibration)
        notes = [""] * len(rows)
    for row, note in zip(rows, notes, strict=True):
        first, *others = describe_row(row)
        print(first + note, *others, sep="\n")
    if config.images is not None:
        draw_retrieved(rows, config.images, config.output)
        print(f"wrote {config.output}")


def _found_by_index(config: Search, path: Path, queries: list[Query]) -> tuple[list[Any], list[str]]:
    """What an index or a cluster finds, at least the best two of a sentence, and how certain each answer is."""
    from xmodal.search.composed import find_composed
    from xmodal.search.engines.cluster import Cluster
    from xmodal.search.index import Index

    sentences = [query.wanted[0] for query in queries if query.is_plain]
    others = [query for query in queries if not query.is_plain]
    deep = max(2, config.top)  # the lead of the first over the second tells how likely it is a match
    if path.is_file():
        if others:
            raise ValueError(
                f"NOT and --like are not asked of several servers, as {path} has: give an index or a split"
            )
        cluster = Cluster.open(path)  # what is missing is told before the model is loaded
        _check_images(path, cluster.plan.indexed)
        found = cluster.find(load_model(config.model), sentences, deep)
        return found, [f"  ({each.rescored} of {each.searched} scored; {each.describe()})" for each in found]
    index = Index.open(path)
    _check_images(path, index.manifest.indexed)
    matcher = load_model(config.model)
    plain = iter(index.find(matcher, sentences, deep, exact=config.exact, words=False) if sentences else ())
    composed = iter(find_composed(index, matcher, others, config.top) if others else ())
    found = [next(plain if query.is_plain else composed) for query in queries]
    return found, [_told(each) for each in found]


def _check_images(path: Path, indexed: str) -> None:
    if indexed != "images":
        raise ValueError(
            f"{path} holds {indexed}; sentences find images: give an index of a region store (`xmodal index`)"
        )


def _row(sentence: str, found: Any, calibration: Any, top: int) -> Any:
    """What an index found, with the probability of a match where more than one answer says how far the first leads."""
    import torch

    from xmodal.search.pictures import Retrieved

    scores, likely = [hit.score for hit in found.hits], None
    if calibration is not None and len(scores) > 1:
        likely = calibration.probability(torch.tensor(scores), images=found.searched).tolist()[:top]
    names = [hit.image_id for hit in found.hits[:top]]
    return Retrieved(sentence, names, scores[:top], probability=likely)


def _told(found: Any) -> str:
    """How certain an answer of an index is."""
    scored = f"{found.rescored} of {found.searched} scored"
    if found.hits and all(hit.certified for hit in found.hits):
        return f"  (certified, {scored})"
    return f"  ({scored}; " + ("recall not measured)" if found.recall is None else f"recall {found.recall:.1f}%)")
