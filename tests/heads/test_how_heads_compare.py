from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from batches import DIM, LEARNED_HEADS, random_batch

from xmodal.heads import (
    BFAN,
    CHAN,
    HEADS,
    SCAN,
    VSRN,
    Cosine,
    Head,
    attention,
    bfan_attention,
    chan_pair_scores,
    chan_scores,
    scan_attention,
    scan_pair_scores,
)
from xmodal.heads.comparison import CrossAttention, HardAlignment, InnerProduct
from xmodal.names import build


class OwnCompare:
    """A mixin that compares in its own way."""

    def compare(self, images, captions, region_mask=None, word_mask=None):
        return images.new_zeros(len(images), len(captions))


def test_heads_say_how_they_compare():
    assert SCAN("i2t", temperature=4.0).comparison == CrossAttention("i2t", temperature=4.0)
    assert BFAN("equal", 5.0).comparison == CrossAttention("t2i", "clipped_l2", "mean", 5.0, focal="equal", both=True)
    assert CHAN(temperature=0.5).comparison == HardAlignment("logsumexp", 0.5)
    assert Cosine("max").comparison == VSRN(dim=4).comparison == InnerProduct()
    assert Head().comparison is None


def test_changed_options_change_what_is_said():
    head = SCAN()
    head.options["temperature"] = 2.0
    assert head.comparison == CrossAttention(temperature=2.0)
    head.options["aggregation"] = "median"
    with pytest.raises(ValueError, match="aggregation must be one of logsumexp, mean, max, sum; got 'median'"):
        head.comparison  # noqa: B018


@pytest.mark.parametrize("parent", [SCAN, BFAN, CHAN, Cosine], ids=lambda parent: parent.__name__)
@pytest.mark.parametrize("method", ["forward", "compare", "pairs"])
def test_whoever_compares_in_another_way_says_nothing(parent, method):
    def own(self, *inputs):
        return getattr(parent, method)(self, *inputs)

    changed = type("Changed", (parent,), {method: own})
    assert changed().comparison is None
    assert type("Grandchild", (changed,), {})().comparison is None
    mixed = type("Mixed", (type("Mixin", (), {method: own}), parent), {})
    assert mixed().comparison is None
    head = parent()
    setattr(head, method, own.__get__(head))
    assert head.comparison is None


@pytest.mark.parametrize("method", ["embed_images", "embed_captions"])
def test_embeddings_are_part_of_the_promise_of_attention_but_not_of_inner_products(method):
    def own(self, items, mask=None):
        return Cosine().embed_images(items, mask)

    assert type("Changed", (SCAN,), {method: own})().comparison is None
    assert type("Changed", (Cosine,), {method: own})().comparison == InnerProduct()


def test_a_method_replaced_in_its_class_counts(monkeypatch):
    monkeypatch.setattr(SCAN, "compare", lambda self, *inputs: torch.zeros(1, 1))
    assert SCAN().comparison is None


def test_declaring_anew_holds():
    declared = type("Declared", (OwnCompare, SCAN), {"comparison": CrossAttention(temperature=1.0)})
    assert declared().comparison == CrossAttention(temperature=1.0)
    assert type("Renewed", (OwnCompare, SCAN), {"comparison": None})().comparison is None
    assert type("Silent", (declared,), {"compare": OwnCompare.compare, "x": 1})().comparison == declared().comparison
    assert type("Loud", (declared,), {"compare": lambda self, *inputs: 0})().comparison is None


class Says:
    """A mixin that is no head and says how its heads compare."""

    comparison = CrossAttention(temperature=1.0)


def test_what_a_mixin_declares_is_about_the_heads_that_have_it():
    mixed = type("Mixed", (Says, SCAN), {})
    assert mixed().comparison == CrossAttention(temperature=1.0)
    assert type("Changed", (mixed,), {"compare": OwnCompare.compare})().comparison is None
    assert type("Changed", (OwnCompare, mixed), {})().comparison is None


def test_what_is_declared_after_the_class_does_not_outlive_its_methods():
    late = type("Late", (Head,), {"compare": OwnCompare.compare})
    late.comparison = CrossAttention()
    assert type("Same", (late,), {})().comparison == CrossAttention()
    assert type("Changed", (late,), {"compare": SCAN.compare})().comparison is None


@pytest.mark.parametrize("kind", [Head, SCAN, Cosine])
def test_an_instance_declares_nothing_but_may_take_back(kind):
    head = kind()
    with pytest.raises(AttributeError, match=rf"{kind.__name__}.comparison is declared in the class, by a value or"):
        head.comparison = CrossAttention()
    head.comparison = None
    assert copy.deepcopy(head).comparison is None
    assert kind().comparison == kind.comparison or kind is SCAN


@pytest.mark.parametrize("head", [SCAN("i2t"), BFAN("equal"), Cosine("max"), VSRN(dim=4)])
def test_copies_and_pickles_compare_as_the_original(head):
    assert pickle.loads(pickle.dumps(head)).comparison == copy.deepcopy(head).comparison == head.comparison


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"focal": "some"}, "focal must be one of None, prob, equal; got 'some'"),
        ({"lse_scale": 0.0}, "lse_scale must be positive, got 0.0"),
    ],
)
def test_a_comparison_that_nobody_can_compute_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        CrossAttention(**options)
    with pytest.raises(ValueError, match="aggregation must be one of logsumexp, mean; got 'max'"):
        HardAlignment("max")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HEADS)
def test_pairs_follow_the_compare_of_a_subclass(name):
    class Doubled(HEADS[name]):
        def compare(self, images, captions, region_mask=None, word_mask=None):
            return 2 * super().compare(images, captions, region_mask, word_mask)

    batch = random_batch(images=4, captions=4)
    masks = (mask.sort(dim=1, descending=True).values for mask in batch[2:])  # some read in order
    batch = batch._replace(region_mask=next(masks), word_mask=next(masks))
    head = build("head", HEADS, {"name": name}, {"dim": batch.regions.shape[-1]}).double().eval()
    before = head.pairs(*batch)
    head.__class__ = Doubled
    torch.testing.assert_close(head.pairs(*batch), head(*batch).diag())
    torch.testing.assert_close(head.pairs(*batch), 2 * before)


@pytest.mark.parametrize("head", LEARNED_HEADS.values(), ids=LEARNED_HEADS)
@pytest.mark.parametrize("method", ["compare", "embed_images"])
def test_pairs_follow_what_was_replaced_on_an_instance(head, method):
    head, batch = copy.deepcopy(head), random_batch(images=3, captions=3, dim=DIM)
    before = getattr(head, method)
    setattr(head, method, lambda *given: 2 * before(*given) + 1)
    torch.testing.assert_close(head.pairs(*batch), head(*batch).diag())


@pytest.mark.parametrize("name", ["scan", "chan", "naaf", "bfan", "sgr", "rdan", "dprnn word"])
def test_attention_is_that_of_what_a_subclass_embeds(name):
    """Regions that come out in another order are looked at in that order."""
    heads = {**LEARNED_HEADS, "scan": SCAN(), "bfan": BFAN()}
    head, batch = copy.deepcopy(heads[name]), random_batch(images=3, captions=3, dim=DIM)
    wanted = head.attention(batch.regions.flip(1), batch.words, None, batch.word_mask).weights
    plain = type(head).embed_images
    flips = {"embed_images": lambda self, regions, mask=None: plain(self, regions.flip(1), mask)}
    head.__class__ = type("Flipping", (type(head),), flips)
    torch.testing.assert_close(head.attention(batch.regions, batch.words, None, batch.word_mask).weights, wanted)


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        (chan_scores, []),
        (chan_pair_scores, []),
        (scan_attention, []),
        (bfan_attention, []),
        (partial(scan_pair_scores, direction="t2i"), ["images"]),
        (partial(scan_pair_scores, direction="i2t"), ["captions"]),
        (CHAN().attention, []),
        (SCAN("i2t").explain, [[], ["captions"]]),
    ],
)
def test_no_products_are_computed_that_nobody_reads(score, wanted, monkeypatch):
    made = []
    prepare = attention.prepare_side

    def watched(items, mask, *, gram=True):
        side = prepare(items, mask, gram=gram)
        made.append(side.gram.shape[1])
        return side

    monkeypatch.setattr(attention, "prepare_side", watched)
    score(torch.randn(3, 5, 8), torch.randn(3, 4, 8))
    steps = wanted if wanted and isinstance(wanted[0], list) else [wanted]
    assert made == [size for names in steps for size in (5 * ("images" in names), 4 * ("captions" in names))]
