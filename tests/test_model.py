"""The matcher: two encoders and a head, from real input to scores, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from tiny_data import DIM, make_data

from xmodal.data import RegionStore
from xmodal.model import Matcher

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat", "and"]
SENTENCES = ["a dog", "a cat and a dog and a cat", "cat"]


def make_matcher(seed=0, head=None, **options):
    torch.manual_seed(seed)
    return Matcher(
        image={"name": "regions", "input_dim": DIM, "dim": 16},
        text={"name": "gru", "dim": 16, "word_dim": 4},
        head=head or {"name": "scan"},
        vocabulary=WORDS,
        **options,
    ).eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RegionStore(make_data(tmp_path_factory.mktemp("data")) / "train.h5")


@pytest.mark.parametrize("head", [{"name": "scan", "direction": "i2t"}, {"name": "bfan"}, {"name": "cosine"}])
@torch.no_grad()
def test_scores_are_those_of_every_pair_alone(store, head):
    matcher = make_matcher(head=head)
    scores = matcher.score_all(store, SENTENCES)
    assert scores.shape == (len(store), len(SENTENCES))
    tokens = [matcher.tokenizer([sentence]) for sentence in SENTENCES]
    for image in range(5):
        features, mask = store.batch([image])
        alone = torch.cat([matcher(features, *pair[:1], mask, *pair[1:]) for pair in tokens], dim=1)
        torch.testing.assert_close(scores[image : image + 1], alone, atol=2e-5, rtol=0)
        torch.testing.assert_close(matcher.score(store[image], SENTENCES), alone, atol=2e-5, rtol=0)


def test_scores_do_not_depend_on_the_batches(store):
    matcher = make_matcher()
    images = matcher.embed_store(store, batch_size=3)
    whole = matcher.embed_store(store)
    for image in range(len(store)):
        assert torch.equal(images.mask[image], whole.mask[image])
        torch.testing.assert_close(images.items[image][images.mask[image]], whole.items[image][whole.mask[image]])
    captions = matcher.embed_captions(SENTENCES, batch_size=1)
    torch.testing.assert_close(captions.items, matcher.embed_captions(SENTENCES).items)


def test_score_takes_one_or_many_of_anything(store):
    matcher = make_matcher()
    one, two = store[0], store[1]
    both = matcher.score([one, two], SENTENCES)
    assert both.shape == (2, 3)
    torch.testing.assert_close(matcher.score([one.numpy(), two.half().float()], SENTENCES), both, atol=1e-2, rtol=0)
    torch.testing.assert_close(matcher.score(one.numpy(), "a dog"), both[:1, :1])
    torch.testing.assert_close(matcher.score(torch.stack([one, one]), ("a dog",)), both[[0, 0], :1])
    assert not both.requires_grad


def test_score_takes_image_files_where_the_extractor_is_known(tmp_path, monkeypatch):
    from xmodal.encoders import extractors

    class Extractor:
        def __call__(self, images):
            return [extractors.Regions(torch.full((2, DIM), float(image.width)), torch.zeros(2, 4)) for image in images]

    monkeypatch.setitem(extractors.EXTRACTORS, "by hand", Extractor)
    path = tmp_path / "image.png"
    Image.new("L", (3, 5)).save(path)
    matcher = make_matcher(extractor="by hand")
    wanted = matcher.score(torch.full((2, DIM), 3.0), SENTENCES)
    torch.testing.assert_close(matcher.score(path, SENTENCES), wanted)
    mixed = matcher.score([torch.ones(1, DIM), str(path)], SENTENCES)
    torch.testing.assert_close(mixed[1:], wanted)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        matcher.score("nowhere.png", SENTENCES)
    with pytest.raises(ValueError, match="extractor None, which is not one of"):
        make_matcher().score(path, SENTENCES)


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (torch.ones(3, DIM + 1), "a", f"dim {DIM + 1}, this encoder takes {DIM}"),
        (torch.ones(DIM), "a", "image 0: region features must be"),
        ([torch.ones(2, DIM), torch.ones(0, DIM)], "a", "image 1: region features must be"),
        (torch.ones(3, DIM), " ", "has no words"),
        (torch.ones(3, DIM), [], "nothing to encode"),
        ([], "a", "nothing to encode"),
    ],
)
def test_what_cannot_be_scored_is_refused(images, captions, message):
    with pytest.raises(ValueError, match=message):
        make_matcher().score(images, captions)


def test_a_vocabulary_without_special_words_gets_them():
    matcher = Matcher(
        image={"name": "regions", "input_dim": DIM, "dim": 4},
        text={"name": "gru", "dim": 4},
        head={"name": "cosine"},
        vocabulary=["dog"],
    )
    assert matcher.token_words("a dog") == ["<start>", "<unk>", "dog", "<end>"]
    assert matcher.score(torch.ones(1, DIM), "dog").shape == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"name": "region"}}, "unknown image encoder 'region' .*'regions'"),
        ({"text": {"name": "GRU", "dim": 16}}, "unknown text encoder 'GRU'"),
        ({"text": {"name": "gru", "dim": 17}}, "image encoder has dim 16 and the text encoder dim 17"),
        ({"head": {"name": "scan", "directoin": "t2i"}}, "no option 'directoin' .*'direction'"),
        ({"vocabulary": None}, "'gru' needs a vocabulary"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    options = {
        "image": {"name": "regions", "input_dim": DIM, "dim": 16},
        "text": {"name": "gru", "dim": 16},
        "head": {"name": "scan"},
        "vocabulary": WORDS,
    }
    with pytest.raises(ValueError, match=message):
        Matcher(**{**options, **changes})


@pytest.mark.parametrize("kind", [str, Path])
def test_saved_and_loaded_it_gives_the_same_scores(store, tmp_path, capfd, kind):
    matcher = make_matcher(extractor="by hand")
    matcher.save_pretrained(tmp_path / "model")
    loaded = Matcher.from_pretrained(kind(tmp_path / "model"))
    assert not loaded.training
    assert loaded.extractor == "by hand"
    assert loaded.tokenizer.words == WORDS
    assert torch.equal(loaded.score_all(store, SENTENCES), matcher.score_all(store, SENTENCES))
    assert isinstance(loaded, PyTorchModelHubMixin)
    assert capfd.readouterr() == ("", "")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "model").iterdir()}


def test_weights_are_replaced_whole(tmp_path):
    make_matcher().save_pretrained(tmp_path)
    other = make_matcher(seed=1)
    other.save_weights(tmp_path)
    loaded = Matcher.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in other.state_dict().items())


def test_a_folder_without_a_model_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no model: config\.json is missing"):
        Matcher.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        Matcher.from_pretrained(Path("runs/nowhere"))
    make_matcher().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        Matcher.from_pretrained(tmp_path)


def test_loading_from_the_hub_downloads_the_whole_model(tmp_path, monkeypatch):
    make_matcher().save_pretrained(tmp_path)
    asked = []

    def download(model, **options):
        asked.append((model, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr("xmodal.pretrained.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    loaded = Matcher.from_pretrained("someone/scan", revision="v1")
    assert asked == [("someone/scan", "v1")]
    assert loaded.tokenizer.words == WORDS


def test_attention_has_a_row_for_every_token(store):
    matcher = make_matcher()
    caption = "a zebra and a dog"
    weights = matcher.attention(store[0], caption).weights
    words = matcher.token_words(caption)
    assert words == ["<start>", "a", "<unk>", "and", "a", "dog", "<end>"]
    assert weights.shape == (1, len(words), len(store[0]))
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(1, len(words)))


def test_the_matcher_and_the_trainer_import_no_torchvision():
    """Beside a CPU-only torch, the torchvision of the package index does not import; only extractors need it."""
    script = "import json, sys, xmodal.model, xmodal.training.trainer; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torchvision", "transformers", "matplotlib"}.isdisjoint(json.loads(done.stdout))
