"""No score is above its bound, whatever the head's options: beside the definition, in loops and float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.heads.comparison import CrossAttention
from xmodal.search import native
from xmodal.search.bound import MARGIN
from xmodal.search.collection import Collection
from xmodal.search.compressed import Compressed, Query
from xmodal.search.draft import Items, draft, write_segment
from xmodal.search.manifest import SegmentEntry
from xmodal.search.quantize import Quantizer
from xmodal.search.segment import Segment

OPTIONS = [
    CrossAttention(),
    CrossAttention(direction="i2t", temperature=4.0, lse_scale=20.0),
    CrossAttention(normalization="l2", aggregation="mean"),
    CrossAttention(normalization="l1", aggregation="max"),
    CrossAttention("i2t", "clipped_l1", "sum", temperature=4.0),
    CrossAttention(normalization="softmax", aggregation="mean"),
    CrossAttention(normalization="clipped", aggregation="sum"),
    CrossAttention("i2t", "none", "logsumexp"),
    CrossAttention(aggregation="mean", temperature=20.0, focal="prob", both=True),
    CrossAttention(aggregation="mean", temperature=20.0, focal="equal", both=True),
]


def similarity(how: CrossAttention, products: list[list[float]], query: int, contexts: torch.Tensor) -> float:
    """The cosine of one query with what it attends to; `products[j][i]` of context j and query i."""
    slope = [[max(s, 0.1 * s) if how.clips else s for s in row] for row in products]
    logits = []
    for row in slope:
        size = {
            "l2": math.sqrt(sum(s * s for s in row)) + 1e-8,
            "l1": sum(map(abs, row)) + 1e-8,
        }.get(how.normalization.removeprefix("clipped_"), 1.0)
        each = row[query] / size
        if how.normalization == "softmax":
            each = math.exp(row[query]) / sum(map(math.exp, row))
        logits.append(how.temperature * each)
    weights = [math.exp(each - max(logits)) for each in logits]
    weights = [each / sum(weights) for each in weights]
    if how.focal is not None:
        trust = [1.0 if how.focal == "equal" else math.sqrt(each) for each in weights]
        kept = [sum(t * (a - b) for t, b in zip(trust, weights, strict=True)) > 0 for a in weights]
        weights = [a if k or not any(kept) else 0.0 for a, k in zip(weights, kept, strict=True)]
    context = sum(a * v for a, v in zip(weights, contexts, strict=True))
    dot = sum(a * row[query] for a, row in zip(weights, products, strict=True))
    return dot / float(context.norm())


def definition(how: CrossAttention, regions: torch.Tensor, words: torch.Tensor) -> float:
    """The score of one image and one caption."""
    total = 0.0
    for direction in ("t2i", "i2t") if how.both else (how.direction,):
        contexts, queries = (regions, words) if direction == "t2i" else (words, regions)
        products = (contexts @ queries.T).tolist()
        cosines = [similarity(how, products, i, contexts) / float(query.norm()) for i, query in enumerate(queries)]
        if how.aggregation == "logsumexp":
            total += math.log(sum(math.exp(how.lse_scale * each) for each in cosines)) / how.lse_scale
        else:
            total += {"mean": sum(cosines) / len(cosines), "sum": sum(cosines), "max": max(cosines)}[how.aggregation]
    return total


@pytest.mark.parametrize("indexed", ["images", "captions"])
@pytest.mark.parametrize("how", OPTIONS, ids=str)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([None, 3.0]),
    words=st.sampled_from([1, 4, 17]),
    dim=st.sampled_from([13, 85]),
)
def test_no_score_is_above_its_bound(how, indexed, seed, scale, words, dim, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (8,), generator=generator)
    spread = torch.linspace(1, 0.1, dim)  # so that some coordinates tell more than others
    vectors = torch.randn(int(lengths.sum()), dim, generator=generator) + torch.randn(dim, generator=generator)
    vectors = spread * vectors
    query = spread * torch.randn(words, dim, generator=generator) + vectors[torch.arange(words) % len(vectors)]
    if scale is None:
        vectors, query = (torch.nn.functional.normalize(each, dim=1) for each in (vectors, query))
    quantizer = Quantizer.fit(vectors, lead=8)
    path = tmp_path_factory.mktemp("bound") / "segment"
    write_segment(path, [draft(Items([str(n) for n in range(8)], vectors, lengths), quantizer)])
    segment = Segment(path)
    compressed = Compressed(Collection([segment], [SegmentEntry(path.name, 8, 0)]), quantizer, how, indexed)
    asked = Query.of(query, quantizer)
    bounds = [compressed.bounds(asked, torch.arange(8), steps=steps) for steps in (0, 1, 6)]
    bounds.append(compressed.cone_bounds([asked, asked], torch.arange(8))[1])
    if native.served(how, compressed.roles, words):  # the same by the compiled program, and where it stops early
        tight = compressed.natively(asked, torch.arange(8), steps=6)
        assert float((tight - bounds[2]).abs().max()) < 3e-3 * words, "as tight"
        bounds.append(tight)
        for enough in (float(tight.median()), 1e9):
            bounds.append(compressed.natively(asked, torch.arange(8), steps=6, enough=enough))
            assert ((bounds[-1] >= enough) == (tight >= enough)).all()
    for item in range(8):
        items = segment.vectors(torch.tensor([item]))[0][0].double()
        sides = (items, query.double()) if indexed == "images" else (query.double(), items)
        score = definition(how, *sides)
        for bound in bounds:
            assert float(bound[item]) >= score - MARGIN * max(1, abs(score))


@pytest.mark.parametrize("indexed", ["images", "captions"])
@pytest.mark.parametrize("how", OPTIONS, ids=str)
def test_approximate_scores_are_near_and_those_of_several_queries_are_those_of_each(how, indexed, tmp_path):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 7, (30,), generator=generator)  # of one, focal attention is decided by rounding
    vectors = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), 12, generator=generator), dim=1)
    quantizer = Quantizer.fit(vectors)
    write_segment(tmp_path / "s", [draft(Items([str(n) for n in range(30)], vectors, lengths), quantizer)])
    segment = Segment(tmp_path / "s")
    compressed = Compressed(Collection([segment], [SegmentEntry("s", 30, 0)]), quantizer, how, indexed)
    queries = [Query.of(vectors[start : start + size], quantizer) for start, size in ((0, 3), (4, 5), (9, 3))]
    together = compressed.approximate(queries, torch.arange(30))
    for query, row in zip(queries, together, strict=True):
        assert torch.allclose(compressed.approximate([query], torch.arange(30))[0], row, atol=1e-5)
    scores = []
    for item in range(30):
        items = segment.vectors(torch.tensor([item]))[0][0].double()
        query = queries[0].vectors.double()
        scores.append(definition(how, *((items, query) if indexed == "images" else (query, items))))
    assert torch.corrcoef(torch.stack([together[0].double(), torch.tensor(scores, dtype=torch.float64)]))[0, 1] > 0.9


@pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler; install g++")
def test_items_that_lie_far_apart_are_read_from_the_file(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors, lengths = torch.randn(90, 13, generator=generator), torch.full((30,), 3)
    quantizer = Quantizer.fit(vectors, lead=8)
    write_segment(tmp_path / "s", [draft(Items([str(n) for n in range(30)], vectors, lengths), quantizer)])
    compressed = Compressed(
        Collection([Segment(tmp_path / "s")], [SegmentEntry("s", 30, 0)]), quantizer, OPTIONS[0], "images"
    )
    query, items = Query.of(vectors[:4], quantizer), torch.tensor([2, 29])
    (tmp_path / "s").unlink()  # as a writer does that compacts
    found = []
    for apart in (1, 1000):
        monkeypatch.setattr("xmodal.search.native.APART", apart)
        found.append(torch.stack([compressed.estimates(query, items), compressed.natively(query, items, steps=6)]))
    assert torch.equal(*found)


def test_the_program_serves_what_it_computes():
    if native.library() is None:
        pytest.skip("there is no C++ compiler; install g++")
    served = [native.served(how, (True,), 5) for how in OPTIONS]
    assert served == [how.focal is None and how.normalization != "softmax" for how in OPTIONS]
    assert not native.served(OPTIONS[0], (False,), 5)
    assert not native.served(OPTIONS[0], (True,), native.MOST_WORDS + 1)
