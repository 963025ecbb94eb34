"""Items of an index, embedded block by block: images of a source, or captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from tqdm import tqdm

from xmodal.data.captions import Caption
from xmodal.data.strings import refuse_string
from xmodal.encoders.base import EncodedSet
from xmodal.heads.comparison import CrossAttention, InnerProduct
from xmodal.inference import comparing
from xmodal.model import BATCH_SIZE
from xmodal.scoring.blocks import bar_options
from xmodal.scoring.embedding import check_lengths, in_dtype
from xmodal.search.draft import Items
from xmodal.search.segment import id_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xmodal.data.image_source import ImageSource
    from xmodal.model import Matcher
    from xmodal.search.manifest import Indexed


def indexed_side(given: Any) -> Indexed:
    """Whether images or captions are to be indexed.

    >>> indexed_side([Caption("7", "0", "a dog", "test")])
    'captions'
    """
    return "captions" if isinstance(given, Sequence) else "images"


def item_ids(given: ImageSource | Sequence[Caption]) -> list[str]:
    """The ids of images or captions.

    Raises:
        ValueError: there are none, or an id is there twice or is none that an index can keep.

    >>> item_ids([Caption("7", "0", "a dog", "test")])
    ['0']
    """
    refuse_string("what is to be indexed", given, "captions")
    if isinstance(given, Sequence):
        if strangers := [each for each in given if not isinstance(each, Caption)]:
            raise ValueError(
                f"an index holds images of a source or a list of xmodal.data.Caption; got {strangers[0]!r} in the list"
            )
        ids = [caption.caption_id for caption in given]
    else:
        ids = list(given.image_id)
    if not ids:
        raise ValueError("there is nothing to index: pass at least one image or caption")
    seen: set[str] = set()
    for name in ids:
        id_bytes(name)
        if name in seen:
            raise ValueError(f"id {name!r} is there twice; ids must be unique")
        seen.add(name)
    return ids


OF_CAPTIONS = {"caption", "image_id"}
"""Metadata that an index of captions keeps itself."""


def check_metadata(metadata: Any, ids: Sequence[str], indexed: Indexed) -> None:
    """Make sure that metadata can be kept of items, and that none of it would be lost.

    Args:
        metadata: what to keep, by id.
        ids: of the items.
        indexed: what they are.

    Raises:
        ValueError: it is no mapping of mappings, is of no item, has a name that the index needs, or is not for JSON.

    >>> check_metadata({"7": {"license": "CC0"}}, ["7"], "images")
    >>> check_metadata({7: {"license": "CC0"}}, ["7"], "images")
    Traceback (most recent call last):
    ...
    ValueError: metadata is given of 7, which is not among the ids to be indexed, '7' for one
    """
    if not isinstance(metadata, Mapping):
        raise ValueError(
            f"metadata is a {type(metadata).__name__}; wanted a mapping by id, {{'7': {{'license': 'CC0'}}}}"
        )
    known = set(ids)
    for item, values in metadata.items():
        if item not in known:
            raise ValueError(
                f"metadata is given of {item!r}, which is not among the ids to be indexed, {ids[0]!r} for one"
            )
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"metadata of {item!r} is {values!r}; wanted a mapping by name, {{'license': 'CC0'}}")
        if indexed == "captions" and (taken := OF_CAPTIONS & values.keys()):
            raise ValueError(f"metadata of {item!r} names {min(taken)!r}, which an index of captions keeps itself")
        try:
            json.dumps(dict(values), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"metadata of {item!r} is {values!r}, which cannot be kept as JSON: {error}") from error


def embedded_blocks(
    matcher: Matcher,
    given: ImageSource | Sequence[Caption],
    *,
    places: Sequence[int] | None = None,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    size: int = BATCH_SIZE,
    progress: bool = False,
) -> Iterator[Items]:
    """Images or captions as an index keeps them, some at a time.

    Args:
        matcher: embeds them.
        given: the images or captions.
        places: which of them, by position; None for all.
        metadata: what to keep of items, by id.
        size: how many at a time.
        progress: show a bar.

    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> (block,) = embedded_blocks(matcher, [Caption("7", "0", "a dog", "test")])
    >>> block.ids, block.vectors.shape, block.metadata
    (['0'], torch.Size([4, 4]), {'caption': ['a dog'], 'image_id': ['7']})
    """
    ids, encode = _encoder(matcher, given)
    chosen = range(len(ids)) if places is None else places
    names = sorted({name for values in (metadata or {}).values() for name in values})
    with comparing(matcher, matcher.device):
        starts = range(0, len(chosen), size)
        for start in tqdm(starts, "embedding", unit="block", **bar_options(progress)):
            some = list(chosen[start : start + size])
            rows, mask, boxes, known = encode(some)
            of = [(metadata or {}).get(ids[place], {}) for place in some]
            known |= {name: [values.get(name) for values in of] for name in names}
            in_place = torch.tensor(some, dtype=torch.long)
            yield Items([ids[place] for place in some], rows, mask.sum(dim=1), boxes, in_place, known)


def is_one(queries: Any) -> bool:
    """Whether what is asked is one query, a batch of a source say, and no list of them.

    >>> is_one("a dog"), is_one(["a dog"])
    (True, False)
    """
    return not isinstance(queries, (list, tuple)) or hasattr(queries, "_fields")


def embedded_queries(matcher: Matcher, queries: Sequence[Any], indexed: Indexed) -> list[Float[Tensor, "place dim"]]:
    """The vectors of every query: of sentences for an index of images, of images for one of captions.

    Raises:
        ValueError: the queries are no list, a sentence has no words, or one query holds several images.

    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> [query.shape for query in embedded_queries(matcher, ["a dog", "a"], "images")]
    [torch.Size([4, 4]), torch.Size([3, 4])]
    """
    refuse_string("queries", queries, "queries")
    if hasattr(queries, "_fields"):
        raise ValueError(f"queries is one {type(queries).__name__}; wanted a list of queries, be it of one")
    if not len(queries):
        return []
    if indexed == "images":
        return query_vectors(matcher, matcher.embed_captions(queries), indexed)
    encoded = matcher.embed_images(list(queries))
    if len(encoded.mask) != len(queries):
        raise ValueError(
            f"{len(queries)} queries hold {len(encoded.mask)} images; wanted one image a query: for several, a list of "
            "them instead of a batch"
        )
    return query_vectors(matcher, encoded, indexed)


def query_vectors(matcher: Matcher, encoded: EncodedSet, indexed: Indexed) -> list[Float[Tensor, "place dim"]]:
    """The vectors of every query, as items of the other side are compared with them.

    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog", "cat"])
    >>> [query.shape for query in query_vectors(matcher, matcher.embed_captions(["a dog", "a"]), "images")]
    [torch.Size([4, 4]), torch.Size([3, 4])]
    """
    head = in_dtype(matcher.head, torch.float32)
    with comparing(head, matcher.device):
        embed = head.embed_captions if indexed == "images" else head.embed_images
        rows, mask = _compared(head, embed, encoded, lambda number: f"query {number}")
    return list(rows.split(mask.sum(dim=1).tolist()))


def _encoder(
    matcher: Matcher, given: ImageSource | Sequence[Caption]
) -> tuple[Sequence[str], Callable[[list[int]], tuple[Tensor, Tensor, Tensor | None, dict[str, list[Any]]]]]:
    """The ids, which nobody checks again, and what turns positions into vectors, mask, boxes and metadata."""
    head = in_dtype(matcher.head, torch.float32)
    if isinstance(given, Sequence):

        def encode_captions(some: list[int]) -> tuple[Tensor, Tensor, None, dict[str, list[Any]]]:
            captions = [given[place] for place in some]
            encoded = matcher.embed_captions([caption.caption for caption in captions])
            known = {
                "caption": [caption.caption for caption in captions],
                "image_id": [caption.image_id for caption in captions],
            }
            rows, mask = _compared(
                head, head.embed_captions, encoded, lambda number: f"caption {captions[number].caption_id!r}"
            )
            return rows, mask, None, known

        return [caption.caption_id for caption in given], encode_captions

    def encode_images(some: list[int]) -> tuple[Tensor, Tensor, Tensor | None, dict[str, list[Any]]]:
        batch = given.batch(some)
        encoded = EncodedSet(*matcher.image_encoder(send_to_device(batch, matcher.device)))
        rows, mask = _compared(
            head, head.embed_images, encoded, lambda number: f"image {given.image_id[some[number]]!r}"
        )
        boxes = getattr(batch, "boxes", None)
        if boxes is not None:
            boxes = boxes[mask] if boxes.shape[:2] == mask.shape else None
        return rows, mask, boxes, {}

    return given.image_id, encode_images


def _compared(
    head: Any, embed: Callable[[Tensor, Tensor], Tensor], encoded: EncodedSet, name: Callable[[int], str]
) -> tuple[Float[Tensor, "row dim"], Bool[Tensor, "item place"]]:
    """What is compared, one vector a row, and which places of each item they are; items have names for errors."""
    items, mask = encoded.items.float(), encoded.mask
    if isinstance(head.comparison, (CrossAttention, InnerProduct)):  # others are asked themselves, for what they embed
        items = embed(items, mask)
    if isinstance(head.comparison, InnerProduct):
        items, mask = items[:, None], torch.ones(len(items), 1, dtype=torch.bool, device=items.device)
    rows, mask = items[mask].cpu(), mask.cpu()
    check_lengths(rows, lambda row: name(int(mask.nonzero()[row, 0])))
    return rows, mask
