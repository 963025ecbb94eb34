"""One string where a list of them is wanted is refused by name, wherever it would be taken letter by letter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from xmodal.data import Relevance, Vocabulary
from xmodal.data.captions import caption_image_index
from xmodal.data.image_folder import locate_images
from xmodal.data.labelled import LabelledSet
from xmodal.data.labelled.base import rows_in_splits
from xmodal.data.pixels import PixelFolder
from xmodal.data.relevance import load_relevance
from xmodal.data.strings import refuse_string
from xmodal.encoders.bert import SubwordTokenizer
from xmodal.evaluation.after import evaluate_scores
from xmodal.evaluation.coco import places_by_number
from xmodal.evaluation.matchers import evaluate_matchers
from xmodal.evaluation.ranked import write_ranks
from xmodal.model import Matcher

VOCABULARY = Vocabulary(["a", "dog"])
MATCHER = Matcher(
    {"name": "regions", "input_dim": 8, "dim": 4},
    {"name": "gru", "dim": 4, "word_dim": 4},
    {"name": "scan"},
    vocabulary=["a", "dog"],
)
SCORES = torch.eye(2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("judgements.jsonl").write_text('{"image_id": "7", "caption_id": "7"}')
    for name in "78":
        Path(f"{name}.png").touch()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (partial(Vocabulary, "dog"), "words"),
        (partial(Vocabulary.from_config, "dog"), "words"),
        (partial(Vocabulary.build, "dog", min_count=1), "texts"),
        (partial(VOCABULARY, "dog"), "texts"),
        (partial(SubwordTokenizer.__call__, None, "dog"), "captions"),
        (partial(MATCHER.embed_captions, "dog"), "captions"),
        (partial(MATCHER.score_all, range(2), "dog"), "captions"),
        (partial(evaluate_matchers, {"scan": MATCHER}, range(2), "78", torch.tensor([0, 1])), "captions"),
        (partial(evaluate_scores, SCORES, Relevance.from_caption_image([0, 1]), "plain"), "protocols"),
        (partial(write_ranks, "ranks.jsonl", SCORES, torch.tensor([0, 1]), "78", ["a", "b"]), "image_ids"),
        (partial(write_ranks, "ranks.jsonl", SCORES, torch.tensor([0, 1]), ["7", "8"], "ab"), "caption_ids"),
        (partial(caption_image_index, [], "78", every_image=False), "image_ids"),
        (partial(load_relevance, "judgements.jsonl", "78", ["7"]), "image_ids"),
        (partial(load_relevance, "judgements.jsonl", ["7"], "78"), "caption_ids"),
        (partial(places_by_number, "image", "78"), "image_ids"),
        (partial(locate_images, Path(), "78"), "image_ids"),
        (partial(PixelFolder, ".", "78"), "image_id"),
        (partial(rows_in_splits, "birds.h5", ["a", "b"], "ab"), "wanted"),
        (partial(LabelledSet, ["1", "2"], "ab", ["test"] * 2), "class_of"),
    ],
    ids=lambda part: part if isinstance(part, str) else getattr(part.func, "__qualname__", type(part.func).__name__),
)
def test_it_is_refused(call, name):
    with pytest.raises(
        ValueError, match=rf"^{name} is the string '.+'; wanted a list of .+, \['.+'\] for one of them$"
    ):
        call()


def test_what_is_no_string_passes_and_a_long_one_is_cut():
    for fine in (["dog"], ("dog",), {"dog": 1}, iter("dog"), None, []):
        refuse_string("ids", fine, "ids")
    with pytest.raises(ValueError, match=r"ids is the string b'7'"):
        refuse_string("ids", b"7", "ids")
    with pytest.raises(ValueError) as refused:
        refuse_string("ids", "x" * 1000, "ids")
    assert len(str(refused.value)) < 300
