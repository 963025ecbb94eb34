"""Images for images and captions for captions: the head itself on both sides, and tables of CxC."""

from __future__ import annotations

import gzip

import pytest
import torch

from xmodal.data import Relevance
from xmodal.encoders.base import EncodedSet
from xmodal.evaluation import evaluate_relevance
from xmodal.evaluation import within as within_file
from xmodal.evaluation.within import (
    OneSide,
    as_pairs,
    evaluate_within,
    load_pairs,
    sibling_relevance,
    within_scorer,
)
from xmodal.heads import HEADS, Head
from xmodal.model import Matcher

DIM = 8


def items(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.randint(1, 6, (count, 1), generator=generator)
    return EncodedSet(torch.nn.functional.normalize(torch.randn(count, 5, DIM, generator=generator), dim=-1), mask)


def matcher_of(head):
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": 6, "dim": DIM}, {"name": "gru", "dim": DIM, "word_dim": 4}
    return Matcher(image, text, head, vocabulary=["a", "dog"])


@pytest.mark.parametrize("kind", ["image", "caption"])
@pytest.mark.parametrize("name", ["cosine", "scan", "bfan", "vsrn"])
def test_scores_are_those_of_the_head_on_what_it_makes_of_one_side(name, kind):
    matcher, encoded = matcher_of({"name": name}), items(7)
    head = matcher.head.eval()
    found = within_scorer(matcher, kind, encoded)([4, 1])
    embed = head.embed_images if kind == "image" else head.embed_captions
    with torch.no_grad():
        for row, query in enumerate([4, 1]):
            for item in range(7):  # one pair at a time, without its padding
                sides = [
                    (encoded.items[which : which + 1, :length], encoded.mask[which : which + 1, :length])
                    for which, length in ((place, int(encoded.mask[place].sum())) for place in (query, item))
                ]
                pair = head.compare(*(embed(*side) for side in sides), *(mask for _, mask in sides))
                assert float(found[row, item]) == pytest.approx(float(pair), abs=2e-5)


@pytest.mark.parametrize("name", ["adapt", "scan"])
def test_where_captions_are_embedded_otherwise_regions_are_words(name):
    """ADAPT makes another shape of a caption: it is asked as it is, with images on both sides. SCAN embeds neither."""
    matcher, encoded = matcher_of({"name": name}), items(5)
    found = within_scorer(matcher, "image", encoded)([4, 1])
    with torch.no_grad():
        whole = matcher.head.eval()(encoded.items, encoded.items, encoded.mask, encoded.mask)
    assert torch.allclose(found, whole[[4, 1]], atol=2e-5)


def test_a_head_of_ones_own_is_asked_itself():
    class Sum(Head):
        def compare(self, images, captions, region_mask=None, word_mask=None):
            return (images * region_mask[..., None]).sum(dim=(1, 2))[:, None] - (captions * word_mask[..., None]).sum(
                dim=(1, 2)
            )

    encoded = items(4)
    totals = (encoded.items * encoded.mask[..., None]).sum(dim=(1, 2))
    found = OneSide(Sum(), "image")(encoded.items, encoded.items, encoded.mask, encoded.mask)
    assert torch.allclose(found, totals[:, None] - totals)
    assert OneSide(Sum(), "image").comparison is None
    for name in ("cosine", "scan"):  # what is declared serves either side
        head = HEADS[name]()
        assert OneSide(head, "image").comparison == head.comparison is not None


@pytest.mark.parametrize("queries", [2**20, 9])
def test_a_query_does_not_find_itself(queries, monkeypatch):
    monkeypatch.setattr(within_file, "QUERIES", queries)
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(9, 9, generator=generator) + 5 * torch.eye(9) for _ in range(2))
    pairs = as_pairs({(0, 1), (1, 0), (4, 7), (7, 4), (4, 2)}, 9)
    results = evaluate_within({name: lambda q, s=s: s[q] for name, s in (("one", one), ("two", two))}, pairs)
    for name, scores in (("one", one), ("two", two), ("ensemble", (one + two) / 2)):
        for number in (0, 1, 4, 7):  # each query alone, its own column taken away
            others = [item for item in range(9) if item != number]
            right = [place for place, item in enumerate(others) if (number, item) in zip(*pairs_of(pairs), strict=True)]
            alone = Relevance([0] * len(right), right, None, images=1, captions=8)
            metrics = evaluate_relevance(scores[[number]][:, others], alone)["i2t"]
            results[name].setdefault("alone", []).append(metrics)
        alone = results[name].pop("alone")
        for metric in ("R@1", "R@5", "R-precision", "mAP@R", "nDCG", "MeanR"):
            assert results[name][metric] == pytest.approx(sum(metrics[metric] for metrics in alone) / 4)
    assert results["one"]["queries"] == 4


def pairs_of(relevance):
    return relevance.image.tolist(), relevance.caption.tolist()


STS = """caption1,caption2,agg_score,sampling_method
COCO_val2014:sentid:10,COCO_val2014:sentid:30,3.0,c2c_isim
COCO_val2014:sentid:20,COCO_val2014:sentid:30,2.99,c2c_isim
COCO_val2014:sentid:10,COCO_val2014:sentid:20,2.5,c2c_cocaption
COCO_val2014:sentid:40,COCO_val2014:sentid:10,2.0,c2c_isim
COCO_val2014:sentid:10,COCO_val2014:sentid:40,4.2,c2c_isim
"""


def test_tables_of_cxc(tmp_path):
    """Captions 10, 20 and 50 are about one image; 10 with 20 is graded low, and 10 with 40 is there twice."""
    path = tmp_path / "sts.csv"
    path.write_text(STS)
    names, siblings = ["10", "20", "30", "40", "50"], [0, 0, 1, 2, 0]
    alone = {(0, 2), (0, 3)}
    for given, wanted in ((None, alone), (siblings, alone | {(0, 4), (1, 4)})):
        found = set(zip(*pairs_of(load_pairs(path, "caption", names, given)), strict=True))
        assert found == wanted | {(b, a) for a, b in wanted}
    assert len(load_pairs(path, "caption", names, at_least=3.05).image) == 2
    assert len(load_pairs(path, "caption", names[:3], skip_unknown=True).image) == 2
    assert set(zip(*pairs_of(sibling_relevance(siblings)), strict=True)) == {
        (a, b) for a in (0, 1, 4) for b in (0, 1, 4) if a != b
    }


@pytest.mark.bad_input
def test_what_cannot_be_compared_or_read_is_named(tmp_path):
    path = tmp_path / "sts.csv"
    path.write_text(STS)
    with pytest.raises(ValueError, match=r"sts.csv, line 2: caption 'COCO_val2014:sentid:30' is not among the 1"):
        load_pairs(path, "caption", ["10"])
    with pytest.raises(ValueError, match=r"wanted image1, image2, agg_score among them"):
        load_pairs(path, "image", ["10"])
    with pytest.raises(ValueError, match=r"no pair of these captions that is graded 5 or better"):
        load_pairs(path, "caption", ["10", "20", "30", "40"], at_least=5)
    with pytest.raises(FileNotFoundError, match=r"sis_test\.csv"):
        load_pairs(tmp_path / "none.csv", "caption", [])
    path.write_text("caption1,caption2,agg_score\n1,2,high\n")
    with pytest.raises(ValueError, match=r"line 2: agg_score is 'high'"):
        load_pairs(path, "caption", ["1", "2"])
    with pytest.raises(ValueError, match="no two captions"):
        sibling_relevance([0, 1])


@pytest.mark.parametrize("encode", [lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode())])
def test_tables_as_people_have_them(tmp_path, encode):
    path, plain = tmp_path / "sts.csv", tmp_path / "plain.csv"
    path.write_bytes(encode(STS))
    plain.write_text(STS)
    names = ["10", "20", "30", "40", "50"]
    assert pairs_of(load_pairs(path, "caption", names)) == pairs_of(load_pairs(plain, "caption", names))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("10,30,nan,x", "agg_score is 'nan', wanted a number"),
        ("10,30,inf,x", "agg_score is 'inf', wanted a number"),
        ("10,30,good,x", "agg_score is 'good', wanted a number"),
        ("10,30", "is too short: wanted caption1, caption2, agg_score"),
        ("a dog,30,3.0,x", "caption 'a dog' is not among the 5"),
        (f"{'1' * 200_000},30,3.0,x", "no table, field larger than field limit"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, row, problem):
    path = tmp_path / "sts.csv"
    path.write_text(f"{STS}{row}\n")
    with pytest.raises(ValueError, match=r"sts.csv, line [67]:? " + problem):
        load_pairs(path, "caption", ["10", "20", "30", "40", "50"])


@pytest.mark.bad_input
def test_tables_in_other_encodings_and_names_of_others(tmp_path):
    path = tmp_path / "sts.csv"
    path.write_bytes(f"{STS}caf\xe9,10,3.0,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"sts.csv, line 7: 'utf-8' codec can't decode"):
        load_pairs(path, "caption", ["10", "20", "30", "40"])
    path.write_text(f"{STS}a dog,10,3.0,x\n")
    found = load_pairs(path, "caption", ["10", "20", "30", "40"], skip_unknown=True)
    assert set(zip(*pairs_of(found), strict=True)) == {(0, 2), (2, 0), (0, 3), (3, 0)}
    with pytest.raises(ValueError, match="no two of the 3 items are right answers to one another"):
        as_pairs({(1, 1)}, 3)
    with pytest.raises(ValueError, match=r"Relevance\(0 pairs .* has no pair that belongs together"):
        evaluate_within({"mine": lambda queries: torch.eye(2)}, Relevance([], [], None, images=2, captions=2))
