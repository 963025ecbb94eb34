"""Lists of what is retrieved carry the names, ranks and order that the metrics are made of."""

from __future__ import annotations

import json

import pytest
import torch

from xmodal.data import Relevance
from xmodal.evaluation import retrieval_ranks, write_ranks
from xmodal.evaluation.relevance import evaluate_relevance


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("values", [2, 5, 1000])
def test_every_query_its_rank_and_what_it_retrieves(tmp_path, values):
    generator = torch.Generator().manual_seed(values)
    scores = torch.randint(values, (7, 15), generator=generator) / 8
    caption_image = torch.arange(15) % 7
    image_ids, caption_ids = [f"i{n}" for n in range(7)], [f"c{n}" for n in range(15)]
    write_ranks(tmp_path / "ranks.jsonl", scores, caption_image, image_ids, caption_ids, top=4)
    lines, ranks = read(tmp_path / "ranks.jsonl"), retrieval_ranks(scores, caption_image)
    assert [(line["direction"], line["query"]) for line in lines] == [
        *(("i2t", image) for image in image_ids),
        *(("t2i", caption) for caption in caption_ids),
    ]
    assert [line["rank"] for line in lines] == [*ranks.i2t.tolist(), *ranks.t2i.tolist()]
    right = {(f"i{image}", f"c{caption}") for caption, image in enumerate(caption_image.tolist())}
    for line, row in zip(lines, [*scores, *scores.T], strict=True):
        found, query = line["retrieved"], line["query"]
        assert [answer["score"] for answer in found] == row.sort(descending=True).values[:4].tolist()
        places = [n for n, a in enumerate(found, 1) if {(query, a["id"]), (a["id"], query)} & right]
        assert (places[0] if places else 5) == min(line["rank"], 5)
        assert len({answer["id"] for answer in found}) == 4


def test_judged_ranks_and_queries_without_any(tmp_path):
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]])
    relevance = Relevance([0, 1], [0, 2], None, images=2, captions=3)
    judgements = Relevance([0, 0], [1, 2], [0.5, 1.0], images=2, captions=3)
    names = (["x", "y"], ["a", "b", "c"])
    write_ranks(tmp_path / "ranks.jsonl", scores, relevance, *names, judgements=judgements)
    lines = {line["query"]: (line["rank"], line["judged_rank"]) for line in read(tmp_path / "ranks.jsonl")}
    assert lines == {"x": (1, 2), "y": (1, None), "a": (1, None), "b": (None, 1), "c": (1, 2)}
    assert evaluate_relevance(scores, judgements)["t2i"]["MeanR"] == 1.5


@pytest.mark.bad_input
def test_ids_must_fit(tmp_path):
    path = tmp_path / "ranks.jsonl"
    with pytest.raises(ValueError, match=r"1 image ids and 2 caption ids do not fit .* \(2, 2\)"):
        write_ranks(path, torch.eye(2), torch.arange(2), ["x"], ["a", "b"])
    with pytest.raises(ValueError, match="top must be at least 0, got -1"):
        write_ranks(path, torch.eye(2), torch.arange(2), ["x", "y"], ["a", "b"], top=-1)
    with pytest.raises(ValueError, match="is NaN"):
        write_ranks(path, torch.eye(2).log() * 0, torch.arange(2), ["x", "y"], ["a", "b"])
    assert not path.exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8])
@pytest.mark.parametrize("top", [0, 1, 4, 40])
def test_the_order_is_that_of_sorting_and_the_matrix_stays_as_it_is(tmp_path, dtype, top):
    """Sorted in plain Python: by score, and of equal ones the wrong ones first."""
    scores = torch.randint(5, (6, 12), generator=torch.Generator().manual_seed(top)).to(dtype)
    if dtype == torch.float64:  # the nearest number below another is another score
        scores[:, ::2] = torch.nextafter(scores[:, ::2], scores.new_tensor(-1.0))
    before, caption_image = scores.clone(), torch.arange(12) % 6
    names = [str(n) for n in range(6)], [str(n) for n in range(12)]
    write_ranks(tmp_path / "ranks.jsonl", scores, caption_image, *names, top=top)
    assert torch.equal(scores, before)
    for line in read(tmp_path / "ranks.jsonl"):
        query, i2t = int(line["query"]), line["direction"] == "i2t"
        row = (scores[query] if i2t else scores[:, query]).tolist()
        right = [
            bool(caption_image[item] == query if i2t else caption_image[query] == item) for item in range(len(row))
        ]
        order = sorted(range(len(row)), key=lambda item: (-row[item], right[item]))[:top]
        found = [(answer["score"], right[int(answer["id"])]) for answer in line["retrieved"]]
        assert found == [(row[item], right[item]) for item in order]
        assert len({answer["id"] for answer in line["retrieved"]}) == len(order)
        if True in [is_right for _, is_right in found]:
            assert line["rank"] == 1 + [is_right for _, is_right in found].index(True)


def test_one_image_or_one_caption_alone_leaves_the_matrix_as_it_is(tmp_path):
    """Rows and columns of one are the matrix itself, not copies."""
    for scores, right in (
        (torch.tensor([[0.5, 0.25]]).double(), [0, 0]),
        (torch.tensor([[0.5], [0.25]]).double(), [0]),
    ):
        before = scores.clone()
        names = [str(n) for n in range(scores.shape[0])], [str(n) for n in range(scores.shape[1])]
        write_ranks(tmp_path / "ranks.jsonl", scores, Relevance.from_caption_image(right, len(scores)), *names)
        assert torch.equal(scores, before)


def test_infinite_scores_are_no_numbers_of_json(tmp_path):
    scores = torch.tensor([[float("-inf"), float("-inf")], [0.0, float("inf")]])
    write_ranks(tmp_path / "ranks.jsonl", scores, torch.arange(2), ["x", "y"], ["a", "b"])
    assert "Infinity" not in (tmp_path / "ranks.jsonl").read_text()
    first, second, *_ = read(tmp_path / "ranks.jsonl")
    assert first["retrieved"] == [{"id": "b", "score": None}, {"id": "a", "score": None}]
    assert second["retrieved"] == [{"id": "b", "score": None}, {"id": "a", "score": 0.0}]
