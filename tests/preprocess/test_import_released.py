"""Checkpoints of the later heads, written with random weights in the released formats, score as their equations say.

The references below compute with the weights under their published names, one image and one caption at a time; captions
are of one length, as ADAPT's released encoder reads padding too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional as F

from preprocess.import_checkpoint import Config, TrainingOptions, main
from xmodal.data import legacy
from xmodal.data.legacy import load_checkpoint
from xmodal.heads import naaf_scores
from xmodal.heads.pooling.gpo import position_codes
from xmodal.model import Matcher

if TYPE_CHECKING:
    from pathlib import Path

FEATURES, DIM, WORD, SIM, REGIONS = 6, 8, 5, 4, 3
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "cat", "runs"]
CAPTIONS = ["a dog runs", "cat runs a", "dog dog cat"]
OPTIONS = {"no_imgnorm": False, "no_txtnorm": False, "embed_size": DIM, "margin": 0.2}


class Weights:
    """Random weights by the names that they are asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape):
        return 0.5 * torch.randn(shape, generator=self.generator)

    def linear(self, name, outputs, inputs, bias=True):
        made = {f"{name}.weight": self.tensor(outputs, inputs)}
        return made | ({f"{name}.bias": self.tensor(outputs)} if bias else {})

    def norm(self, name, size, affine=True):
        made = {f"{name}.weight": self.tensor(size), f"{name}.bias": self.tensor(size)} if affine else {}
        statistics = {f"{name}.running_mean": self.tensor(size), f"{name}.running_var": self.tensor(size).abs() + 0.1}
        return made | statistics | {f"{name}.num_batches_tracked": torch.tensor(7)}

    def gru(self, name, inputs, hidden):
        made = {}
        for way in ("", "_reverse"):
            made[f"{name}.weight_ih_l0{way}"] = self.tensor(3 * hidden, inputs)
            made[f"{name}.weight_hh_l0{way}"] = self.tensor(3 * hidden, hidden)
            made |= {f"{name}.bias_{kind}_l0{way}": self.tensor(3 * hidden) for kind in ("ih", "hh")}
        return made


def inside(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def linear(weights, name, items):
    return F.linear(items, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def normed(weights, name, items):
    """Batch norm over the last axis."""
    scaled = (items - weights[f"{name}.running_mean"]) / (weights[f"{name}.running_var"] + 1e-5).sqrt()
    return scaled * weights.get(f"{name}.weight", 1.0) + weights.get(f"{name}.bias", 0.0)


def read(weights, name, embedded):
    """The mean of both directions of a GRU of one sentence."""
    given = inside(weights, f"{name}.")
    rnn = torch.nn.GRU(embedded.shape[-1], given["weight_hh_l0"].shape[1], batch_first=True, bidirectional=True)
    rnn.load_state_dict(given)
    states = rnn(embedded[None])[0][0]
    half = states.shape[-1] // 2
    return (states[:, :half] + states[:, half:]) / 2


def unit(items):
    return F.normalize(items, dim=-1)


def tokens_of(caption, words=WORDS):
    return torch.tensor([1, *(words.index(word) for word in caption.split()), 2])


def images():
    return torch.randn(2, REGIONS, FEATURES, generator=torch.Generator().manual_seed(99))


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({"word2idx": {word: number for number, word in enumerate(WORDS)}}))
    return path


def write(tmp_path, record) -> Path:
    path = tmp_path / "model_best.pth.tar"
    torch.save(record, path)
    return path


def checkpoint(tmp_path, models, **options):
    options = argparse.Namespace(**{**OPTIONS, **options})
    return write(tmp_path, {"epoch": 3, "model": models, "best_rsum": 500.0, "opt": options, "Eiters": 9})


def imported(path, architecture, vocabulary=None, text_model=None, **given) -> Matcher:
    output = path.parent / "models" / "imported"
    main(Config(path, architecture, output, vocabulary, text_model, TrainingOptions(**given)))
    return Matcher.from_pretrained(output)


@torch.no_grad()
def check(matcher, score):
    found = matcher.score(list(images()), CAPTIONS)
    expected = torch.stack([torch.stack([score(image, caption) for caption in CAPTIONS]) for image in images()])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def scan_sides(made, word_weights="embed", rnn="rnn"):
    return (
        made.linear("fc", DIM, FEATURES),
        {f"{word_weights}.weight": made.tensor(len(WORDS), WORD)} | made.gru(rnn, WORD, DIM),
    )


def self_attended(weights, name, items, *, norms):
    """SGRAF's global vector: the mean of a set asks its items; the norm of local ones is over slots."""
    local, mean = linear(weights, f"{name}.embedding_local.0", items), items.mean(dim=0)
    whole = linear(weights, f"{name}.embedding_global.0", mean)
    if norms:
        local = normed(weights, f"{name}.embedding_local.1", local.T).T
        whole = normed(weights, f"{name}.embedding_global.1", whole)
    logits = linear(weights, f"{name}.embedding_common.0", local.tanh() * whole.tanh())[:, 0]
    return unit(logits.softmax(dim=0) @ items)


def attended(regions, words):
    products = F.leaky_relu(regions @ words.T, 0.1)
    products = products / (products.norm(dim=1, keepdim=True) + 1e-8)
    return unit((9.0 * products).softmax(dim=0).T @ regions)


@pytest.mark.parametrize("module", ["SGR", "SAF"])
def test_sgraf(module, tmp_path, vocabulary):
    made = Weights(1)
    image, text = scan_sides(made, rnn="cap_rnn")
    sim = {}
    for name in ("v_global_w", "t_global_w"):
        sim |= made.linear(f"{name}.embedding_local.0", DIM, DIM) | made.linear(f"{name}.embedding_global.0", DIM, DIM)
        sim |= made.linear(f"{name}.embedding_common.0", 1, DIM)
    sim |= made.norm("v_global_w.embedding_local.1", REGIONS) | made.norm("v_global_w.embedding_global.1", DIM)
    sim |= made.linear("sim_tranloc_w", SIM, DIM) | made.linear("sim_tranglo_w", SIM, DIM)
    sim |= made.linear("sim_eval_w", 1, SIM)
    if module == "SAF":
        sim |= made.linear("SAF_module.attn_sim_w", 1, SIM) | made.norm("SAF_module.bn", 1)
    for step in range(3 if module == "SGR" else 0):
        for part in ("graph_query_w", "graph_key_w", "sim_graph_w"):
            sim |= made.linear(f"SGR_module.{step}.{part}", SIM, SIM)

    def score(features, caption):
        regions, words = unit(linear(image, "fc", features)), text["embed.weight"][tokens_of(caption)]
        words = unit(read(text, "cap_rnn", words))
        local = unit(linear(sim, "sim_tranloc_w", (attended(regions, words) - words) ** 2))
        globals_ = (self_attended(sim, "v_global_w", regions, norms=True),
                    self_attended(sim, "t_global_w", words, norms=False))  # fmt: skip
        whole = unit(linear(sim, "sim_tranglo_w", (globals_[0] - globals_[1]) ** 2))
        nodes = torch.cat([whole[None], local])
        if module == "SAF":
            gates = normed(sim, "SAF_module.bn", linear(sim, "SAF_module.attn_sim_w", nodes))[:, 0].sigmoid()
            vector = unit(gates / gates.sum() @ nodes)
        else:
            for step in range(3):
                query, key = (linear(sim, f"SGR_module.{step}.graph_{part}_w", nodes) for part in ("query", "key"))
                edges = (query @ key.T).softmax(dim=-1)
                nodes = linear(sim, f"SGR_module.{step}.sim_graph_w", edges @ nodes).relu()
            vector = nodes[0]
        return linear(sim, "sim_eval_w", vector).sigmoid()[0]

    path = checkpoint(tmp_path, [image, text, sim], module_name=module)
    matcher = imported(path, "sgraf", vocabulary)
    assert matcher.head.module == module.lower()
    check(matcher, score)


@pytest.mark.parametrize("kind", ["basic", "selfattention"])
@pytest.mark.parametrize("pooling", ["LSEPooling", "MeanPooling"])
def test_chan(kind, pooling, tmp_path, vocabulary):
    made = Weights(2)
    image, text = scan_sides(made)
    text["embed.weight"] = made.tensor(len(WORDS) + 1, WORD)  # training adds <mask>
    text |= made.linear("fc", DIM, DIM)  # made and never called
    if kind == "selfattention":
        attention = torch.nn.MultiheadAttention(DIM, 8, batch_first=True)
        image |= {"feedforward.ln.weight": made.tensor(DIM), "feedforward.ln.bias": made.tensor(DIM)}
        given = {name: made.tensor(*value.shape) for name, value in attention.state_dict().items()}
        attention.load_state_dict(given)
        image |= {f"feedforward.attn.{name}": value for name, value in given.items()}

    def score(features, caption):
        regions = linear(image, "fc", features)
        if kind == "selfattention":
            asked = F.layer_norm(regions, (DIM,), image["feedforward.ln.weight"], image["feedforward.ln.bias"])[None]
            regions = regions + attention(asked, asked, asked)[0][0]
        words = unit(read(text, "rnn", text["embed.weight"][tokens_of(caption)]))
        best = (unit(regions) @ words.T).amax(dim=0)
        return (best / 0.1).logsumexp(dim=0) if pooling == "LSEPooling" else best.mean()

    path = checkpoint(tmp_path, [image, text, {}, {}], coding_type="VHACoding", pooling_type=pooling, belta=0.1)
    matcher = imported(path, "chan", vocabulary)
    assert matcher.tokenizer.words[-1] == "<mask>"
    check(matcher, score)


@pytest.mark.parametrize("words", ["basic", "GloVe"])
def test_naaf(words, tmp_path, vocabulary):
    image, text = scan_sides(Weights(3), "embed" if words == "basic" else "embed.glove")
    table = text["embed.weight" if words == "basic" else "embed.glove.weight"]

    def score(features, caption):
        sides = unit(linear(image, "fc", features))[None], unit(read(text, "rnn", table[tokens_of(caption)]))[None]
        return naaf_scores(*sides, threshold=0.15, temperature=20.0, intra_temperature=5.0)[0, 0]

    path = checkpoint(tmp_path, [image, text], lambda_softmax=20.0, alpha=2.0, thres=0.3, thres_safe=0.15)
    matcher = imported(path, "naaf", vocabulary)
    assert matcher.head.threshold.item() == pytest.approx(0.3)
    check(matcher, score)


def ranked(weights, name, items):
    """GPO: the values of every channel in order, weighted by what a GRU makes of their ranks."""
    codes = position_codes(len(items), 4).float()
    given = linear(weights, f"{name}.linear", read(weights, f"{name}.gru", codes))[:, 0]
    return unit((given / 0.1).softmax(dim=0) @ items.sort(dim=0, descending=True).values)


def gpo_image(made):
    image = made.linear("fc", DIM, FEATURES) | made.linear("mlp.layers.0", 4, FEATURES)
    image |= made.linear("mlp.layers.1", DIM, 4) | made.norm("mlp.bns.0", 4) | made.norm("mlp.bns.1", DIM)
    return image | made.gru("gpool.gru", 4, 3) | made.linear("gpool.linear", 1, 3, bias=False)


def gpo_vector(image, features):
    hidden = normed(image, "mlp.bns.0", linear(image, "mlp.layers.0", features)).relu()
    return ranked(image, "gpool", linear(image, "fc", features) + linear(image, "mlp.layers.1", hidden))


def test_gpo_with_a_gru_and_names_of_data_parallel(tmp_path, vocabulary):
    made = Weights(4)
    image, text = gpo_image(made), scan_sides(made)[1]
    text |= made.gru("gpool.gru", 4, 3) | made.linear("gpool.linear", 1, 3, bias=False)

    def score(features, caption):
        words = read(text, "rnn", text["embed.weight"][tokens_of(caption)])
        return gpo_vector(image, features) @ ranked(text, "gpool", words)

    parallel = [{f"module.{name}": value for name, value in part.items()} for part in (image, text)]
    check(imported(checkpoint(tmp_path, parallel), "gpo", vocabulary), score)


def test_gpo_with_bert(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS[4:]]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    folder = tmp_path / "bert"
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    bert = BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)).eval()
    bert.config.save_pretrained(folder)  # no weights: these are the checkpoint's
    made = Weights(5)
    image, text = gpo_image(made), {f"bert.{name}": value for name, value in bert.state_dict().items()}
    text["bert.embeddings.position_ids"] = torch.arange(512)[None]
    text |= made.linear("linear", DIM, 12) | made.gru("gpool.gru", 4, 3) | made.linear("gpool.linear", 1, 3, bias=False)

    def score(features, caption):
        states = bert(tokens_of(caption, words)[None]).last_hidden_state[0]
        return gpo_vector(image, features) @ ranked(text, "gpool", linear(text, "linear", states))

    path = checkpoint(tmp_path, [image, text])
    check(imported(path, "gpo", text_model=str(folder)), score)
    with pytest.raises(ValueError, match="has a transformer; name it with --text-model"):
        main(Config(path, "gpo", tmp_path / "other"))


class Dict(dict):
    """A dict of the package addict, as it pickles itself."""

    def __getstate__(self):
        return self

    def __setstate__(self, state):
        self.update(state)


@pytest.fixture
def addict(monkeypatch):
    """The package, as far as it is needed to write a file."""
    module = types.ModuleType("addict.addict")
    module.Dict = Dict
    monkeypatch.setattr(Dict, "__module__", "addict.addict")
    monkeypatch.setitem(sys.modules, "addict", types.ModuleType("addict"))
    monkeypatch.setitem(sys.modules, "addict.addict", module)
    return Dict


def adapt_weights(direction):
    made = Weights(6)
    layer = "adapt_img" if direction == "t2i" else "adapt_txt"
    sim = made.norm("norm.norm", DIM, affine=False)
    sim |= made.linear(f"{layer}.fc_gamma.0", DIM, DIM) | made.linear(f"{layer}.fc_beta.0", DIM, DIM)
    image, text = made.linear("fc", DIM, FEATURES), made.gru("rnn", 3 + WORD, DIM)
    text |= {"embed.glove.weight": made.tensor(8, 3), "embed.embed.weight": made.tensor(8, WORD)}
    parts = {"img_enc": image, "txt_enc": text, "similarity.similarity": sim, "ml_similarity.similarity": sim}
    whole = {f"{part}.{name}": value for part, given in parts.items() for name, value in given.items()}
    return image, text, sim, layer, whole


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_adapt(direction, tmp_path, vocabulary, addict):
    image, text, sim, layer, whole = adapt_weights(direction)

    def score(features, caption):
        regions = unit(F.leaky_relu(linear(image, "fc", features), 0.1))
        tokens = tokens_of(caption)
        embedded = torch.cat([text["embed.glove.weight"][tokens], text["embed.embed.weight"][tokens]], dim=-1)
        words = unit(read(text, "rnn", embedded))
        values, query = (regions, words.mean(0)) if direction == "t2i" else (words, regions.mean(0))
        values = normed(sim, "norm.norm", values)
        values = values * (linear(sim, f"{layer}.fc_gamma.0", query) + 1) + linear(sim, f"{layer}.fc_beta.0", query)
        values = (7.0 * values).softmax(dim=0) * values
        return unit(values.mean(0) if direction == "t2i" else values.amax(0)) @ unit(query)

    similarity = addict(name=f"adapt_{direction}", params=addict(gamma=7, latent_size=DIM))
    args = addict(model=addict(similarity=similarity, img_enc=addict(params=addict(img_dim=FEATURES))))
    path = write(tmp_path, {"model": whole, "optimizer": {"state": {}}, "iteration": 500, "args": args})
    check(imported(path, "adapt", vocabulary), score)


def test_what_adapt_does_not_say_must_be_given(tmp_path, vocabulary):
    whole = adapt_weights("t2i")[-1]
    path = write(tmp_path, {"model": whole})
    with pytest.raises(ValueError, match="does not say which gamma it was trained with; give --gamma"):
        imported(path, "adapt", vocabulary)
    assert imported(path, "adapt", vocabulary, gamma=5.0).head.temperature == 5.0
    whole["ml_similarity.similarity.adapt_img.fc_beta.0.bias"] = torch.ones(DIM)
    with pytest.raises(ValueError, match=r"holds \['criterion:ml_similarity.similarity.adapt_img.fc_beta.0.bias'\]"):
        imported(write(tmp_path / "models", {"model": whole}), "adapt", vocabulary, gamma=5.0)


@pytest.mark.bad_input
def test_what_is_not_understood_is_named(tmp_path, vocabulary):
    image, text = scan_sides(Weights(7))
    known = {"coding_type": "VHACoding", "pooling_type": "LSEPooling", "belta": 0.1}
    for models, options, message in (
        ([image, text, {}, {}], {**known, "coding_type": "VSACoding"}, "coding_type='VSACoding'; only 'VHACoding' can"),
        (
            [image, text, {}, {}],
            {**known, "pooling_type": "MaxPooling"},
            "pooling_type='MaxPooling' is unknown; known: ",
        ),
        ([image, text, {}, {}], {"coding_type": "VHACoding"}, "does not say which pooling_type .* give --pooling-type"),
        ([{**image, "feedforward.mlp.c_fc.weight": torch.ones(2)}, text, {}, {}], known, "feedforward.mlp.c_fc.weight"),
        ([image, text, {"coding.w": torch.ones(2)}, {}], known, r"holds \['sim:coding.w'\] besides"),
    ):
        with pytest.raises(ValueError, match=message):
            imported(checkpoint(tmp_path, models, **options), "chan", vocabulary)
    with pytest.raises(ValueError, match=r"no weight sim:v_global_w.embedding_local.1.weight"):
        imported(checkpoint(tmp_path, [image, text]), "sgraf", vocabulary)
    grown = {"backbone.conv1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"a network of its own \(image:backbone.conv1.weight, ...\); only models on"):
        imported(checkpoint(tmp_path, [grown, text]), "gpo", vocabulary)
    with pytest.raises(ValueError, match="has words of its own; give the vocabulary with --vocabulary"):
        imported(checkpoint(tmp_path, [image, text], **{**known, "lambda_softmax": 1.0, "alpha": 1.0, "thres": 0.0,
                                                        "thres_safe": 0.0}), "naaf")  # fmt: skip
    assert not (tmp_path / "models" / "imported").exists()


def test_a_dict_of_addict_is_a_dict_and_nothing_more(tmp_path, addict):
    path = write(tmp_path, {"model": [{}, {}], "opt": addict(a=addict(b=[1, math.pi]))})
    options = load_checkpoint(path).options
    assert options == {"a": {"b": [1, math.pi]}}
    assert type(options["a"]) is not Dict
    assert legacy.PARTS[2] == "sim"
