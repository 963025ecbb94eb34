"""Judgements of COCO's test split: those of the eccv-caption package, and what it makes of them."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from xmodal.data.relevance import Judgements, Relevance
from xmodal.evaluation import coco, evaluate_protocol, evaluate_relevance
from xmodal.evaluation.coco import JUDGED, judged_protocols, judgements_by_number, load_cxc, load_eccv


@pytest.fixture(scope="module")
def package():
    """The package's own metrics, with its judgements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like ujson
        return pytest.importorskip("eccv_caption", reason="pip install 'xmodal[eval]'").Metrics()


@pytest.fixture(scope="module")
def split(package):
    """The names of all images and captions of the test split, in an order of their own."""
    captions = [int(number) for number in package.coco_ids]
    images = sorted(package.coco_gts["i2t"])
    return [f"COCO_val2014_{number:012d}.jpg" for number in images], [str(number) for number in captions]


def numbers(names):
    return [int(name.removesuffix(".jpg").rpartition("_")[2]) for name in names]


@pytest.mark.parametrize(("name", "load"), [("cxc", load_cxc), ("eccv", load_eccv)])
def test_all_judgements_of_the_package_are_there(package, split, name, load):
    images, captions = (numbers(names) for names in split)
    judged, truth = load(*split), getattr(package, f"{name}_gts")
    here = set(captions)
    wanted = {(image, caption) for image, right in truth["i2t"].items() for caption in right if caption in here}
    assert {(images[i], captions[c]) for i, c in zip(*pairs(judged.i2t), strict=True)} == wanted
    wanted = {(image, caption) for caption, right in truth["t2i"].items() for image in right}
    assert {(images[i], captions[c]) for i, c in zip(*pairs(judged.t2i), strict=True)} == wanted
    absent = {images[i]: int(judged.absent_captions[i]) for i in judged.absent_captions.nonzero().flatten().tolist()}
    assert absent == ({575916: 1, 421999: 1} if name == "eccv" else {})
    assert not judged.absent_images.any()


def pairs(relevance):
    return relevance.image.tolist(), relevance.caption.tolist()


def test_metrics_are_those_of_the_package_on_its_own_judgements(package):
    """Of 60 images that ECCV Caption asked about, one of them with a right caption that is not in the split."""
    asked = [575916, *sorted(package.eccv_gts["i2t"])[:59]]
    captions = [caption for image in asked for caption in package.coco_gts["i2t"][image]]
    here, scores = set(asked), torch.rand(60, 300, generator=torch.Generator().manual_seed(0))
    truths = {"coco_gts": package.coco_gts, "cxc_gts": package.cxc_gts, "eccv_gts": package.eccv_gts}
    names = [str(image) for image in asked], [str(caption) for caption in captions]
    i2t = {image: [captions[c] for c in row.argsort(descending=True)] for image, row in zip(asked, scores, strict=True)}
    t2i = {text: [asked[i] for i in row.argsort(descending=True)] for text, row in zip(captions, scores.T, strict=True)}
    try:
        found = {}
        for name, truth in truths.items():
            right = {"i2t": {image: truth["i2t"][image] for image in asked}}
            right["t2i"] = {text: truth["t2i"][text] for text in captions if here & set(truth["t2i"].get(text, ()))}
            setattr(package, name, right)
            found[name] = judgements_by_number(right["i2t"], right["t2i"], *names)
        metrics = ("coco_5k_recalls", "cxc_recalls", "eccv_r1", "eccv_map_at_r", "eccv_rprecision")
        published = package.compute_all_metrics(i2t, t2i, target_metrics=metrics, Ks=(1, 5, 10))
    finally:
        for name, truth in truths.items():
            setattr(package, name, truth)
    assert int(found["eccv_gts"].absent_captions[0]) > 0
    cxc, eccv = (evaluate_relevance(scores, found[name]) for name in ("cxc_gts", "eccv_gts"))
    plain = evaluate_protocol(scores, torch.arange(60).repeat_interleave(5))
    for side in ("i2t", "t2i"):
        for k in (1, 5, 10):
            assert plain[side][f"R@{k}"] == pytest.approx(100 * published[f"coco_5k_r{k}"][side])
            assert cxc[side][f"R@{k}"] == pytest.approx(100 * published[f"cxc_r{k}"][side])
        for ours, theirs in (("R@1", "eccv_r1"), ("mAP@R", "eccv_map_at_r"), ("R-precision", "eccv_rprecision")):
            assert eccv[side][ours] == pytest.approx(100 * published[theirs][side])


def test_absent_answers_are_missed():
    """An image with two right captions, the first of which it finds first; the second is not there."""
    relevance = Relevance([0, 1], [0, 1], None, images=2, captions=2)
    judgements = Judgements(relevance, relevance, absent_captions=torch.tensor([1, 0]))
    result = evaluate_relevance(torch.eye(2), judgements)
    assert result["i2t"]["R-precision"] == 75.0 == result["i2t"]["mAP@R"]
    assert result["i2t"]["R@1"] == 100.0 == result["t2i"]["mAP@R"]


@pytest.mark.bad_input
def test_other_images_and_captions_are_refused(split, monkeypatch):
    images, captions = split
    for load in JUDGED.values():
        with pytest.raises(ValueError, match=r"25000 captions, .* but there are 4999 x 25000 .*--relevance"):
            load(images[1:], captions)
        with pytest.raises(ValueError, match="caption 'one' has no number at the end"):
            load(images, [*captions[:-1], "one"])
        with pytest.raises(ValueError, match=r"but image [0-9]+ is not among the 5000 images; evaluate that split"):
            load([*images[:-1], "1"], captions)
        with pytest.raises(ValueError, match=r"captions .* have the same number"):
            load(images, [*captions[:-1], f"x{captions[0]}"])
    with pytest.raises(ValueError, match=r"no protocol 'eccvv' .did you mean 'eccv'"):
        judged_protocols(["eccvv"], images, captions)
    relevance = Relevance([0], [0], None, images=1, captions=2)
    with pytest.raises(ValueError, match="absent answers have shape"):
        evaluate_relevance(torch.zeros(1, 2), Judgements(relevance, relevance, torch.zeros(2)))
    monkeypatch.setattr(coco, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'xmodal\[eval\]'"):
        load_cxc(images, captions)


def test_the_package_is_not_imported(split):
    loaded = sys.modules.pop("eccv_caption", None)
    try:
        judged_protocols(["plain", "eccv"], *split)
        assert "eccv_caption" not in sys.modules
    finally:
        if loaded is not None:
            sys.modules["eccv_caption"] = loaded


def test_a_query_whose_right_answers_are_all_absent_is_missed():
    """By hand: image 7 finds its caption first, of image 8 nothing is there to be found."""
    both = judgements_by_number({7: [70], 8: [99]}, {70: [7]}, ["7", "8"], ["70", "71", "72"])
    found = evaluate_relevance(torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3]]), both)["i2t"]
    assert found == {
        "R@1": 50.0, "R@5": 100.0, "R@10": 100.0, "MedR": 2.0, "MeanR": 2.5,
        "R-precision": 50.0, "mAP@R": 50.0, "nDCG": 50.0, "queries": 2,
    }  # fmt: skip
