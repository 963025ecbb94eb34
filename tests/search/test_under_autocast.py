"""An index that is built and searched under autocast is the one without: what it certifies is about float32."""

from __future__ import annotations

import pytest
import torch

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.encoders.base import EncodedSet
from xmodal.heads import VSRN
from xmodal.model import Matcher
from xmodal.search.composed import find_composed
from xmodal.search.index import Index
from xmodal.search.queries import Query, score_like


@pytest.mark.parametrize("head", ["scan", "vsrn"])
def test_hits_are_those_of_scoring_everything(tmp_path, head):
    torch.manual_seed(0)
    with RegionStoreWriter(tmp_path / "store.h5", dim=16, extractor="by hand") as writer:
        for image in range(40):
            writer.write(str(image), torch.randn(5, 16))
    store, sentences = RegionStore(tmp_path / "store.h5"), ["a dog", "a red cat on a dog", "cat"]
    image, text = {"name": "regions", "input_dim": 16, "dim": 16}, {"name": "gru", "dim": 16, "word_dim": 8}
    matcher = Matcher(image, text, {"name": head}, vocabulary=["a", "dog", "cat", "red", "on"])
    scores = matcher.score_all(store, sentences)
    with torch.autocast("cpu", torch.bfloat16):
        index = Index.build(matcher, store, tmp_path / "index")
        answers = index.search(matcher, sentences, k=3, words=False)
        (composed,) = find_composed(index, matcher, [Query.parse("a dog")], k=3)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    for hits, column in zip(answers, scores.T, strict=True):
        best = column.topk(3)
        assert [hit.image_id for hit in hits] == [str(place) for place in best.indices.tolist()]
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), abs=2e-6)
        assert all(hit.certified for hit in hits)
    assert [hit.image_id for hit in composed.hits] == [hit.image_id for hit in answers[0]]
    assert [hit.score for hit in composed.hits] == pytest.approx([hit.score for hit in answers[0]], abs=2e-6)


def test_images_like_others():
    images = EncodedSet(torch.randn(6, 5, 16), torch.ones(6, 5, dtype=torch.bool))
    head = VSRN(dim=16)
    expected = score_like(head, images, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert score_like(head, images, images).equal(expected)
