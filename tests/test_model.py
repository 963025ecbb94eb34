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
from safetensors import SafetensorError
from tiny_data import DIM, make_data

from xmodal import pretrained
from xmodal.data import RegionStore, Vocabulary
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
        features, mask, _ = store.batch([image])
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


def test_a_model_takes_the_place_of_another_one_and_nothing_else_goes(tmp_path):
    make_matcher().save_pretrained(tmp_path / "model")
    for name, text in (("README.md", "my own model card"), ("notes.txt", "mine")):
        (tmp_path / "model" / name).write_text(text)
    other = make_matcher(seed=1)
    other.save_pretrained(tmp_path / "model")
    loaded = Matcher.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in other.state_dict().items())
    assert (tmp_path / "model" / "README.md").read_text() == "my own model card"
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_saved_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    for seed in (0, 1):
        make_matcher(seed=seed).save_pretrained(".")
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    Matcher.from_pretrained(tmp_path)


def test_saving_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    matcher = make_matcher()
    matcher.save_pretrained(tmp_path / "model")

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(pretrained, "save_model", full)
    with pytest.raises(OSError, match=r"no room to write .*model"):
        make_matcher(seed=1).save_pretrained(tmp_path / "model")
    loaded = Matcher.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in matcher.state_dict().items())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path, at=-5):
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)


DAMAGES = {
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "a bit of the header": lambda folder: flip(folder / "model.safetensors", at=30),
    "weights cut off": lambda folder: cut(folder / "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "configuration cut off": lambda folder: cut(folder / "config.json"),
    "no configuration": lambda folder: (folder / "config.json").write_text(""),
    "a list": lambda folder: (folder / "config.json").write_text("[]"),
    "not text": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "an empty object": lambda folder: (folder / "config.json").write_text("{}"),
    "a number for options": lambda folder: (folder / "config.json").write_text('{"image": 1, "text": 2, "head": 3}'),
    "null for a word": lambda folder: edit(folder / "config.json", vocabulary=[None]),
    "another size": lambda folder: edit(folder / "config.json", vocabulary=["a", "b", "c", "d", "e", "f", "g"]),
    "a name that is none": lambda folder: edit(folder / "config.json", image={"name": "reg&ons", "dim": 8}),
}


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("hashed", [True, False], ids=["with a hash", "from before there was one"])
def test_damage_to_a_model_is_noticed_by_name(tmp_path, damage, hashed):
    make_matcher().save_pretrained(tmp_path)
    if not hashed:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["weights_sha256"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    damage(tmp_path)
    if not hashed and damage is DAMAGES["a bit of the weights"]:
        Matcher.from_pretrained(tmp_path)  # nothing could tell
        return
    with pytest.raises(ValueError, match=r"config\.json|model\.safetensors"):
        Matcher.from_pretrained(tmp_path)


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


def test_a_segmenter_is_saved_with_the_model(tmp_path):
    """A vocabulary of characters still is one after `save_pretrained`: the same Chinese caption, the same scores."""
    vocabulary = Vocabulary(["狗", "跑"], "characters")
    parts = {"image": {"name": "regions", "input_dim": 4, "dim": 8}, "text": {"name": "gru", "dim": 8, "word_dim": 4}}
    matcher = Matcher(**parts, head={"name": "scan"}, vocabulary=vocabulary.config).eval()
    matcher.save_pretrained(tmp_path / "model")
    loaded = Matcher.from_pretrained(tmp_path / "model").eval()
    assert loaded.token_words("狗跑了") == ["<start>", "狗", "跑", "<unk>", "<end>"]
    regions = torch.randn(3, 4)
    torch.testing.assert_close(loaded.score(regions, ["狗跑了"]), matcher.score(regions, ["狗跑了"]), rtol=0, atol=0)
