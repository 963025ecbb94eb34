"""Plausible matches against the definition in plain loops."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data import Relevance
from xmodal.evaluation import plausible
from xmodal.evaluation.plausible import evaluate_plausible, load_classes, pmrp_evaluator


@st.composite
def problems(draw):
    images, captions, classes = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    scores = torch.randint(levels, (images, captions), generator=generator) / 4 - 1
    shown = torch.rand(images, classes, generator=generator) < 0.4
    of_image = torch.randint(images, (captions,), generator=generator)
    shown[of_image[0], 0] = True  # and a caption is about it
    return scores, shown, of_image


def slow(scores, asked, answers, mismatches):
    """R-precision and R@1, averaged over queries, and then over z; the worst order of what is equal."""
    sums, answered = [], set()
    for allowed in mismatches:
        precisions, firsts = [], []
        for number, (row, query) in enumerate(zip(scores, asked, strict=True)):
            found = [(-score, len(query ^ item) <= allowed) for score, item in zip(row, answers, strict=True) if item]
            ranked = [right for _, right in sorted(found)]
            if query and any(ranked):
                precisions.append(sum(ranked[: sum(ranked)]) / sum(ranked))
                firsts.append(ranked[0])
                answered.add(number)
        if precisions:
            sums.append([sum(values) / len(values) for values in (precisions, firsts)])
    means = [100 * sum(values) / len(sums) for values in zip(*sums, strict=True)]
    return {"R-precision": means[0], "R@1": means[1], "queries": len(answered)}


@given(problems(), st.sampled_from([(0, 1, 2), (0,), (3, 1)]), st.sampled_from([2**20, 9]))
def test_all_numbers_equal_the_definition(problem, mismatches, block):
    scores, shown, of_image = problem
    sets = [set(row.nonzero().flatten().tolist()) for row in shown]
    of_captions = [sets[image] for image in of_image.tolist()]
    options = {"shown": shown, "caption_image": of_image, "mismatches": mismatches}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plausible, "BLOCK_ELEMENTS", block)
        i2t, t2i = (evaluate_plausible(scores, direction=direction, **options) for direction in ("i2t", "t2i"))
    assert i2t == pytest.approx(slow(scores.tolist(), sets, of_captions, mismatches))
    assert t2i == pytest.approx(slow(scores.T.tolist(), of_captions, sets, mismatches))


def test_an_image_without_a_right_caption_does_not_count():
    shown = torch.tensor([[True, False, False, False], [False, True, True, True]])
    options = {"shown": shown, "caption_image": torch.tensor([0]), "direction": "i2t"}
    found = evaluate_plausible(torch.tensor([[0.5], [0.6]]), **options)
    assert found == {"R-precision": 100.0, "R@1": 100.0, "queries": 1}


@pytest.mark.bad_input
def test_what_is_no_table_of_objects_is_named(tmp_path):
    path = tmp_path / "instances.json"
    with pytest.raises(FileNotFoundError, match=r"instances_val2014\.json"):
        load_classes(path, ["1"])
    for text in ("[]", "{", '{"annotations": [{"image_id": 1}]}', '{"annotations": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"instances\.json is no file of object annotations like COCO's"):
            load_classes(path, ["1"])
    path.write_text(json.dumps({"annotations": [{"image_id": 1, "category_id": 5}]}))
    with pytest.raises(ValueError, match="no object in any of the 1 images"):
        load_classes(path, ["2"])
    with pytest.raises(ValueError, match="image 'dog' has no number"):
        load_classes(path, ["dog"])
    with pytest.raises(ValueError, match="exactly one image each"):
        pmrp_evaluator(path, ["1", "2"], Relevance([0, 1], [0, 0], None, images=2, captions=1))
    with pytest.raises(ValueError, match="shown has shape"):
        evaluate_plausible(torch.eye(2), shown=torch.ones(3, 1).bool(), caption_image=torch.arange(2), direction="i2t")
    far = {"shown": torch.tensor([[0, 0], [1, 0]]).bool(), "caption_image": torch.tensor([0]), "mismatches": [0]}
    with pytest.raises(ValueError, match="no i2t query has a plausible match"):
        evaluate_plausible(torch.ones(2, 1), direction="i2t", **far)


def test_means_over_queries_come_before_the_mean_over_mismatches():
    """By hand: 2 of 2 queries at z = 0, 2 of 3 at z = 1 and at z = 2; all together they would be 6 of 8."""
    shown = torch.tensor([[True, False, False, False], [True, True, False, False], [False, False, True, True]])
    scores = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    options = {"shown": shown, "caption_image": torch.tensor([1, 2]), "direction": "i2t"}
    means = [evaluate_plausible(scores, mismatches=[z], **options) for z in (0, 1, 2)]
    found = evaluate_plausible(scores, **options)
    for name in ("R-precision", "R@1"):
        assert found[name] == pytest.approx(sum(mean[name] for mean in means) / 3)
    assert found["R-precision"] == pytest.approx(77.8, abs=0.05)


@pytest.mark.parametrize("encode", [lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode())])
def test_tables_of_objects_as_people_have_them(tmp_path, encode):
    boxes = [{"image_id": "7", "category_id": 90.0}, {"image_id": 8, "category_id": 1}]
    (tmp_path / "instances.json").write_bytes(encode(json.dumps({"annotations": boxes})))
    assert load_classes(tmp_path / "instances.json", ["7", "8"]).tolist() == [[False, True], [True, False]]


@pytest.mark.bad_input
@pytest.mark.parametrize("number", ["1e999", "NaN", "7.5", "[]", "null"])
def test_numbers_of_images_are_whole(tmp_path, number):
    path = tmp_path / "instances.json"
    path.write_text(f'{{"annotations": [{{"image_id": {number}, "category_id": 1}}]}}')
    with pytest.raises(ValueError, match=r"instances\.json is no file of object annotations like COCO's"):
        load_classes(path, ["7"])
