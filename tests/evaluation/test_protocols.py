from __future__ import annotations

import json

import pytest
import torch

from xmodal.data import Relevance
from xmodal.evaluation import PROTOCOLS, evaluate_protocol, evaluate_retrieval, protocols
from xmodal.evaluation.protocols import Protocol, cut_folds, mean_over_folds


@pytest.fixture
def three_folds(monkeypatch):
    """A protocol of 3 folds of 4 images, small enough to write down."""
    monkeypatch.setitem(PROTOCOLS, "tiny-3fold", Protocol("tiny-3fold", images=12, captions=18, folds=3))
    return torch.randint(5, (12, 18)) / 5, torch.cat([torch.arange(12), torch.randint(12, (6,))])[torch.randperm(18)]


def test_published_sizes():
    sizes = {name: (p.images, p.captions, p.folds) for name, p in PROTOCOLS.items()}
    assert sizes == {
        "plain": (None, None, 1),
        "f30k-1k": (1000, 5000, 1),
        "coco-1k-5fold": (5000, 25000, 5),
        "coco-5k": (5000, 25000, 1),
    }
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())


def test_plain_is_evaluate_retrieval():
    scores, caption_image = torch.randn(4, 9), torch.arange(9) % 4
    result = evaluate_protocol(scores, caption_image)
    expected = evaluate_retrieval(scores, caption_image)
    assert result == {**expected, "protocol": "plain", "folds": [expected]}
    assert json.loads(json.dumps(result)) == result


def test_folds_follow_a_given_order_of_images(three_folds):
    scores, caption_image = three_folds
    result = evaluate_protocol(scores, caption_image, "tiny-3fold", image_order=range(12))
    for number, fold in enumerate(result["folds"]):
        images = list(range(4 * number, 4 * number + 4))
        captions = [caption for caption in range(18) if caption_image[caption] in images]
        local = torch.tensor([images.index(int(caption_image[caption])) for caption in captions])
        assert fold == evaluate_retrieval(scores[images][:, captions], local)
    assert len(result["folds"]) == 3


def test_folds_follow_the_order_in_which_captions_first_speak_of_images(three_folds):
    scores, caption_image = three_folds
    order = list(dict.fromkeys(caption_image.tolist()))
    result = evaluate_protocol(scores, caption_image, "tiny-3fold")
    assert result == evaluate_protocol(scores, caption_image, "tiny-3fold", image_order=order)


def test_order_of_the_store_does_not_matter(three_folds):
    scores, caption_image = three_folds
    shuffle = torch.randperm(12)
    shuffled = evaluate_protocol(scores[shuffle], shuffle.argsort()[caption_image], "tiny-3fold")
    assert shuffled == evaluate_protocol(scores, caption_image, "tiny-3fold")


def test_order_of_captions_does_not_matter_where_that_of_images_is_given(three_folds):
    scores, caption_image = three_folds
    shuffle, order = torch.randperm(18), torch.randperm(12)
    shuffled = evaluate_protocol(scores[:, shuffle], caption_image[shuffle], "tiny-3fold", image_order=order)
    assert shuffled == evaluate_protocol(scores, caption_image, "tiny-3fold", image_order=order)


def hand_made(offset: float) -> dict:
    """A result with a different value in each place, so that no two can be exchanged unseen."""
    return {
        "i2t": {"R@1": 10 + offset, "R@5": 20 + offset, "R@10": 30 + offset, "MedR": 4 + offset, "MeanR": 5 + offset},
        "t2i": {"R@1": 61 + offset, "R@5": 72 + offset, "R@10": 83 + offset, "MedR": 9 + offset, "MeanR": 10 + offset},
        "rsum": 276 + 6 * offset,
    }


def test_every_mean_lands_under_its_own_name(monkeypatch):
    offsets = [0.0, 1.0, 2.0, 3.0, 9.0]
    folds = iter([hand_made(offset) for offset in offsets])
    monkeypatch.setattr(protocols, "evaluate_retrieval", lambda scores, caption_image: next(folds))
    monkeypatch.setitem(PROTOCOLS, "tiny-5fold", Protocol("tiny-5fold", folds=5))
    result = evaluate_protocol(torch.eye(10), torch.arange(10), "tiny-5fold")
    assert result == {
        **hand_made(3.0),
        "protocol": "tiny-5fold",
        "folds": [hand_made(offset) for offset in offsets],
    }


def test_rsum_of_the_mean_is_the_sum_of_the_mean_recalls(three_folds):
    result = evaluate_protocol(*three_folds, protocol="tiny-3fold")
    recalls = [result[direction][f"R@{k}"] for direction in ("i2t", "t2i") for k in (1, 5, 10)]
    assert result["rsum"] == pytest.approx(sum(recalls))


def test_folds_scored_apart_give_the_same_result(three_folds):
    scores, caption_image = three_folds
    folds = [
        evaluate_retrieval(scores[fold.images][:, fold.captions], fold.caption_image)
        for fold in cut_folds(Relevance.from_caption_image(caption_image), 3)
    ]
    result = evaluate_protocol(scores, caption_image, "tiny-3fold")
    assert mean_over_folds(folds) == {name: result[name] for name in ("i2t", "t2i", "rsum")}


def test_coco_five_folds_at_full_size():
    caption_image = torch.arange(5000).repeat_interleave(5)
    scores = torch.zeros(5000, 25000, dtype=torch.int8)
    scores[caption_image, torch.arange(25000)] = 1
    scores[4000:, :20000] = 2  # another fold's captions mislead the last fold's images, and never meet them here
    result = evaluate_protocol(scores, caption_image, "coco-1k-5fold")
    assert result["rsum"] == 600
    assert evaluate_protocol(scores, caption_image, "coco-5k")["i2t"]["R@10"] == 80


def test_unfit_sizes_are_refused():
    with pytest.raises(ValueError, match=r"'f30k-1k' takes 1000 images and 5000 .* 4 x 8 .* fit: plain$"):
        evaluate_protocol(torch.zeros(4, 8), torch.arange(8) % 4, "f30k-1k")
    with pytest.raises(ValueError, match=r"1000 x 5000 .* fit: plain, f30k-1k$"):
        evaluate_protocol(torch.zeros(1000, 5000), torch.arange(5000) // 5, "coco-5k")
    with pytest.raises(ValueError, match="5 images cannot be cut into 2 folds"):
        cut_folds(torch.arange(5), 2)
    with pytest.raises(ValueError, match="list each of the 4 images once, got 3 entries"):
        cut_folds(torch.arange(4), 2, image_order=[0, 1, 2])


def test_captions_of_several_images_make_no_folds():
    relevance = Relevance([0, 1, 1], [0, 0, 1], None, images=2, captions=2)
    with pytest.raises(ValueError, match="exactly one image each, which those of Relevance"):
        cut_folds(relevance, 2)
    assert evaluate_protocol(torch.eye(2), relevance)["rsum"] == 600


@pytest.mark.parametrize("protocol", ["coco-5k", "coco-1k-5fold"])
def test_images_with_more_than_five_captions_are_told_what_to_do(protocol):
    """Karpathy's COCO test split: 5000 images, ten captions too many."""
    caption_image = torch.cat([torch.arange(5000).repeat_interleave(5), torch.arange(10)])
    scores = torch.zeros(1, 1).expand(5000, 25010)
    with pytest.raises(ValueError, match=r"there are 5000 x 25010 .* --captions-per-image 5"):
        evaluate_protocol(scores, caption_image, protocol)
    with pytest.raises(ValueError, match=r"5000 x 24990 .* fit: plain$"):
        evaluate_protocol(scores[:, :24990], caption_image[:24990], protocol)


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(ValueError, match=r"no protocol 'coco5k' \(did you mean 'coco-5k'\?\); known: plain, "):
        evaluate_protocol(torch.eye(2), torch.arange(2), "coco5k")
    with pytest.raises(ValueError, match="no protocol 'xyz'; known: plain, "):
        evaluate_protocol(torch.eye(2), torch.arange(2), "xyz")


def test_bad_scores_name_their_fold(three_folds):
    scores, caption_image = three_folds
    scores[7] = torch.nan
    with pytest.raises(ValueError, match=r"in the fold of images 4 to 7: the score of image 3 .* is NaN"):
        evaluate_protocol(scores, caption_image, "tiny-3fold", image_order=range(12))
    with pytest.raises(ValueError, match=r"in the fold of images 7, 5, 3, \.\.\.: the score of image 0 .* is NaN"):
        evaluate_protocol(scores, caption_image, "tiny-3fold", image_order=[7, 5, 3, 1, 0, 2, 4, 6, 8, 9, 10, 11])


@pytest.mark.bad_input
@pytest.mark.parametrize("order", [[0.9, 1.2, 2.0, 3.0], [True, False, True, True]])
def test_an_order_is_of_whole_numbers(order):
    with pytest.raises(ValueError, match="wanted whole numbers, the positions of images"):
        cut_folds(torch.arange(4), folds=2, image_order=order)
