"""Looking at data with a model does not depend on the mode it is in, and leaves no trace in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.data.labelled import LabelledFeatures
from xmodal.embedder import Embedder, embed_all
from xmodal.model import Matcher

SENTENCES = ["a dog", "a cat and a dog", "cat"]
DIM = 6


def vsrn(seed: int = 0) -> Matcher:
    """A matcher with running statistics, dropout and a captioner, its parameters drawn so that none of them idles."""
    torch.manual_seed(seed)
    matcher = Matcher(
        image={"name": "regions", "input_dim": DIM, "dim": 8, "normalize": False},
        text={"name": "gru", "dim": 8, "word_dim": 4, "bidirectional": False, "normalize": False},
        head={"name": "vsrn", "layers": 2, "norm": "batch"},
        vocabulary=["a", "dog", "cat", "and"],
        captioner={"hidden_dim": 8, "word_dim": 4, "dropout": 0.5},
    )
    for parameter in matcher.parameters():
        nn.init.normal_(parameter, std=0.5)
    return matcher


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "test.h5"
    generator = np.random.default_rng(0)
    with RegionStoreWriter(path, dim=DIM, extractor="by hand") as writer:
        for image in range(5):
            writer.write(str(image), generator.normal(size=(1 + image, DIM)))
    return RegionStore(path)


LOOKS = {
    "score": lambda matcher, store: matcher.score([store[0], store[1]], SENTENCES),
    "score_all": lambda matcher, store: matcher.score_all(store, SENTENCES),
    "embed_store": lambda matcher, store: matcher.embed_store(store).items,
    "embed_captions": lambda matcher, store: matcher.embed_captions(SENTENCES).items,
    "attention": lambda matcher, store: matcher.attention(store[2].numpy(), SENTENCES[1]).weights,
    "caption": lambda matcher, store: matcher.caption([store[3], store[4]]),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_matcher_is_the_same_afterwards_and_gives_the_same_in_every_mode(store, look):
    matcher = vsrn()
    evaluated = LOOKS[look](matcher.eval(), store)
    matcher.train()
    matcher.head.graph[0].eval()
    modes = [module.training for module in matcher.modules()]
    before = {name: value.clone() for name, value in matcher.state_dict().items()}
    result = LOOKS[look](matcher, store)
    assert [module.training for module in matcher.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in matcher.state_dict().items())
    if look == "caption":
        assert result == evaluated
        return
    torch.testing.assert_close(result, evaluated, atol=1e-6, rtol=0)
    assert not result.is_inference()
    assert not result.requires_grad
    (result * torch.ones((), requires_grad=True)).sum().backward()
    with torch.inference_mode():
        assert not LOOKS[look](matcher, store).is_inference()


def test_two_images_scored_together_are_scored_as_each_alone(store):
    matcher = vsrn().train()
    both = matcher.score([store[1], store[4]], SENTENCES)
    for row, image in enumerate((1, 4)):
        torch.testing.assert_close(matcher.score(store[image], SENTENCES), both[row : row + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("look", "error"),
    [
        (lambda matcher, store: matcher.score(store[0], " "), ValueError),
        (lambda matcher, store: matcher.score("nowhere.png", "a dog"), FileNotFoundError),
        (lambda matcher, store: matcher.score_all(store, []), ValueError),
        (lambda matcher, store: matcher.caption(torch.ones(3, DIM + 1)), ValueError),
        (lambda matcher, store: matcher.attention(store[0], " "), ValueError),
    ],
)
def test_modes_come_back_after_an_error(store, look, error):
    matcher = vsrn().train()
    matcher.captioner.eval()
    modes = [module.training for module in matcher.modules()]
    with pytest.raises(error):
        look(matcher, store)
    assert [module.training for module in matcher.modules()] == modes
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_matcher_in_another_precision_takes_what_it_always_takes(store, dtype):
    matcher = Matcher({"name": "regions", "input_dim": DIM, "dim": 8}, {"name": "gru"}, {"name": "scan"}, ["a", "dog"])
    wanted = matcher.score_all(store, SENTENCES)
    low = matcher.to(dtype)
    torch.testing.assert_close(low.score_all(store, SENTENCES).float(), wanted, atol=0.1, rtol=0)
    torch.testing.assert_close(low.score(store[1].numpy(), SENTENCES).float(), wanted[1:2], atol=0.1, rtol=0)


def features(count: int = 7) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, DIM, generator=generator)
    return LabelledFeatures(values, list(map(str, range(count))), ["wren"] * count, ["test"] * count)


def test_an_embedder_is_the_same_afterwards():
    torch.manual_seed(0)
    embedder = Embedder({"name": "projected", "backbone": {"name": "mlp", "input_dim": DIM}}, dim=4).train()
    embedder.backbone.norm.eval()
    modes = [module.training for module in embedder.modules()]
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    embeddings = embedder.embed_all(features(), batch_size=3)
    assert [module.training for module in embedder.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in embedder.state_dict().items())
    assert not embeddings.is_inference()
    with torch.no_grad():
        torch.testing.assert_close(embeddings, embedder.eval()(features().features), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="features have shape"):
        embed_all(Embedder({"name": "mlp", "input_dim": 9}).train(), features())


@pytest.mark.parametrize(
    "backbone", [{"name": "mlp", "input_dim": DIM}, {"name": "mlp", "input_dim": DIM, "hidden": [5]}]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_embedder_in_another_precision_embeds(backbone, dtype):
    embedder = Embedder(backbone, dim=4)
    wanted = embedder.embed_all(features())
    embeddings = embedder.to(dtype).embed_all(features())
    assert embeddings.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(embeddings.float(), wanted, atol=0.05, rtol=0)
