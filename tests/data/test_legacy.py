"""Files of the old world are read, Python 2's among them, and none of them can run code."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmodal.data.legacy import load_checkpoint, load_vocabulary, matcher_options, matcher_weights

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "dog", "cat", "caf\xe9"]


def python2_pickle(value, persistent_ids=lambda tensor: None) -> bytes:
    """What Python 2 writes under protocol 2, opcode by opcode: byte strings for text, no memo, NEWOBJ for objects."""

    def emit(value) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int) and abs(value) < 2**31:
            return b"J" + struct.pack("<i", value)
        if isinstance(value, int):
            return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            text = value.encode()
            return b"U" + bytes([len(text)]) + text
        if isinstance(value, tuple):
            return b"(" + b"".join(map(emit, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(emit, value)) + b"e"
        if isinstance(value, OrderedDict):
            return b"ccollections\nOrderedDict\n" + emit(([[k, v] for k, v in value.items()],)) + b"R"
        if isinstance(value, dict):
            return b"}(" + b"".join(emit(k) + emit(v) for k, v in value.items()) + b"u"
        if isinstance(value, argparse.Namespace):
            return b"cargparse\nNamespace\n)\x81" + emit(vars(value)) + b"b"
        if isinstance(value, torch.Tensor):
            storage = b"(" + emit("storage") + b"ctorch\n" + STORAGES[value.dtype] + b"\n"
            storage += b"".join(map(emit, (persistent_ids(value), "cuda:0", value.numel(), None))) + b"tQ"
            layout = emit(0) + emit(tuple(value.shape)) + emit(value.stride()) + emit(False) + emit(OrderedDict())
            return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"tR"
        raise TypeError(type(value))

    return b"\x80\x02" + emit(value) + b"."


STORAGES = {torch.float32: b"FloatStorage", torch.int64: b"LongStorage"}


def save_as_torch_0_4_did(record, path: Path) -> None:
    """torch 0.4's file under Python 2: magic number, version, sizes, record, keys, then every storage, bare."""
    tensors = {}

    def key(tensor):
        return next((k for k, t in tensors.items() if t is tensor), None) or add(tensor)

    def add(tensor):
        tensors[str(len(tensors) + 94000000)] = tensor
        return list(tensors)[-1]

    body = python2_pickle(record, key)
    sizes = {"short": 2, "int": 4, "long": 8}
    with path.open("wb") as file:
        file.write(python2_pickle(0x1950A86A20F9469CFC6C) + python2_pickle(1001))
        file.write(python2_pickle({"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}))
        file.write(body + python2_pickle(list(tensors)))
        for tensor in tensors.values():
            file.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())


def python2_vocabulary(name: bytes = b"__main__\nVocabulary\n", words=WORDS) -> bytes:
    number = {word: index for index, word in enumerate(words)}
    state = {"word2idx": number, "idx2word": dict(enumerate(words)), "idx": len(words)}
    return b"\x80\x02c" + name + b")\x81" + python2_pickle(state)[2:-1] + b"b."


class Runs:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def record(name: str = "s1_scan_basic") -> dict:
    return torch.load(GOLDEN / f"{name}.pth.tar", weights_only=False)


@pytest.mark.parametrize("name", ["s1_scan_basic", "s1_scan_weight_norm", "s1_vsrn_f30k_precomp"])
def test_python2_checkpoints_are_read(name, tmp_path):
    save_as_torch_0_4_did(record(name), tmp_path / "old.pth.tar")
    old, new = load_checkpoint(tmp_path / "old.pth.tar"), load_checkpoint(GOLDEN / f"{name}.pth.tar")
    assert old.options == new.options
    assert old.weights.keys() == new.weights.keys()
    for weight in new.weights:
        assert torch.equal(old.weights[weight], new.weights[weight])
        assert old.weights[weight].device.type == "cpu"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_runs_code_is_refused(zipped, tmp_path):
    path, trace = tmp_path / "bad.pth.tar", tmp_path / "trace"
    torch.save({**record(), "opt": Runs(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"bad\.pth\.tar is refused: it asks for {os.system.__module__}\.system"):
        load_checkpoint(path)
    assert not trace.exists()


def test_a_python2_checkpoint_that_runs_code_is_refused(tmp_path):
    path, trace = tmp_path / "bad.pth.tar", tmp_path / "trace"
    save_as_torch_0_4_did({}, path)
    harmless = python2_pickle({})
    harmful = b"\x80\x02cos\nsystem\nU" + bytes([len(f"touch {trace}")]) + f"touch {trace}".encode() + b"\x85R."
    path.write_bytes(path.read_bytes().replace(harmless, harmful))
    with pytest.raises(ValueError, match=r"is refused: it asks for os\.system"):
        load_checkpoint(path)
    assert not trace.exists()


def test_other_checkpoint_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent\.pth\.tar"):
        load_checkpoint(tmp_path / "absent.pth.tar")
    cut = tmp_path / "cut.pth.tar"
    cut.write_bytes((GOLDEN / "s1_scan_basic.pth.tar").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth\.tar cannot be read as a torch checkpoint"):
        load_checkpoint(cut)
    archive = tmp_path / "really.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.add(GOLDEN / "s1_metrics.npz", name)
    with pytest.raises(ValueError, match=r"really\.tar cannot be read"):
        load_checkpoint(archive)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1], "holds list; wanted 'model'"),
        ({"state_dict": {}}, r"holds keys \['state_dict'\]; wanted 'model'"),
        ({"model": [{}]}, "wanted 'model': "),
        ({"model": [{}, {}], "opt": [1]}, "'opt' is a list; wanted an argparse.Namespace or a dict"),
        ({"model": [{"fc.weight": 3}, {}]}, "image:fc.weight is a int; wanted a tensor"),
    ],
)
def test_other_layouts_are_named(contents, message, tmp_path):
    torch.save(contents, tmp_path / "other.pth.tar")
    with pytest.raises(ValueError, match=rf"other\.pth\.tar.*{message}"):
        load_checkpoint(tmp_path / "other.pth.tar")


def test_python2_vocabularies_keep_their_numbers(tmp_path):
    path = tmp_path / "vocabulary.pkl"
    ascii_words = ["dog", *WORDS[:4], "cat"]  # special words need not come first
    for name in (b"__main__\nVocabulary\n", b"vocab\nVocabulary\n"):
        path.write_bytes(python2_vocabulary(name, ascii_words))
        assert load_vocabulary(path).words == ascii_words


def test_json_vocabularies_keep_their_numbers(tmp_path):
    path = tmp_path / "vocabulary.json"
    number = {word: index for index, word in enumerate(WORDS)}
    path.write_text(json.dumps({"word2idx": number, "idx2word": {}, "idx": len(WORDS)}))
    assert load_vocabulary(path).words == WORDS


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (python2_vocabulary()[:40], "cannot be read as a pickled vocabulary"),
        (python2_pickle({"word2idx": {}}), "holds no vocabulary"),
        (python2_vocabulary(words=["dog", "cat"]), "lacks the special words"),
        (python2_vocabulary().replace(b"J\x06\0\0\0", b"J\x09\0\0\0"), "holds no vocabulary: `word2idx` must number"),
        (b"\x80\x02cos\nsystem\nU\x04exit\x85R.", r"is refused: it asks for os\.system"),
        (pickle.dumps(np.zeros(2), 2), r"is refused: it asks for numpy"),
        (b"{", "is not a vocabulary"),
    ],
)
def test_other_vocabularies_are_named(contents, message, tmp_path):
    path = tmp_path / "vocabulary.pkl"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=rf"vocabulary\.pkl {message}"):
        load_vocabulary(path)


class EasyDict(dict):
    """A class of options that the package does not know."""


def test_options_come_in_any_plain_form(tmp_path):
    """`best_rsum` of numpy, options in a dict, a path among them, weights of DataParallel: all of one checkpoint."""
    images, texts = record()["model"]
    options = {**vars(record()["opt"]), "margin": np.float64(0.2), "data_path": Path("/data/f30k"), "flags": {"a"}}
    wrapped = [OrderedDict((f"module.{name}", value) for name, value in part.items()) for part in (images, texts)]
    expected = load_checkpoint(GOLDEN / "s1_scan_basic.pth.tar")
    for number, opt in enumerate((options, argparse.Namespace(**options), SimpleNamespace(**options))):
        for zipped in (True, False):
            path = tmp_path / f"{number}{zipped}.pth.tar"
            saved = {"model": wrapped, "opt": opt, "best_rsum": np.float32(400), "epoch": np.int64(3)}
            torch.save(saved, path, _use_new_zipfile_serialization=zipped)
            found = load_checkpoint(path)
            assert found.weights.keys() == expected.weights.keys()
            assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)
            assert found.options == {**expected.options, "margin": 0.2, "data_path": "/data/f30k", "flags": {"a"}}
            assert type(found.options["margin"]) is float
            assert matcher_options(found, "scan") == matcher_options(expected, "scan")


@pytest.mark.parametrize("margin", [2.0, 0.2])
def test_python2_numpy_scalars_are_read_or_named(margin, tmp_path):
    path = tmp_path / "old.pth.tar"
    save_as_torch_0_4_did({"model": ({}, {}), "opt": {}, "best_rsum": None}, path)
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08" + struct.pack("<d", margin) + b"tR"
    )
    named = b"U\x03opt"
    assert named + b"}(u" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(named + b"}(u", named + b"}(U\x06margin" + scalar + b"u"))
    if margin == 2.0:
        assert load_checkpoint(path).options == {"margin": 2.0}
    else:  # its bytes are no UTF-8, and torch's restricted unpickler takes all strings for that
        with pytest.raises(ValueError, match=r"holds byte strings of Python 2 that are no text, numpy's numbers"):
            load_checkpoint(path)


def test_what_is_not_understood_is_not_called_dangerous(tmp_path):
    path = tmp_path / "other.pth.tar"
    torch.save({**record(), "opt": EasyDict(margin=1)}, path)
    with pytest.raises(ValueError, match=r"asks for \S*EasyDict, a class that is not understood here") as caught:
        load_checkpoint(path)
    assert "could run code" not in str(caught.value)
    torch.save({**record(), "opt": {"date": datetime.date(2018, 9, 8)}}, path)
    with pytest.raises(ValueError, match=r"asks for datetime\.date, a class that is not understood here"):
        load_checkpoint(path)
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear, a class that is not under"):
        load_checkpoint(path)
    torch.save({**record(), "opt": Runs(tmp_path / "trace")}, path)
    with pytest.raises(ValueError, match="could run code"):
        load_checkpoint(path)


class Vocabulary:
    """As in SCAN's vocab.py."""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_vocabularies_of_every_protocol_and_shape_are_read(protocol, tmp_path):
    path = tmp_path / "vocabulary.pkl"
    whole, words_only = Vocabulary(), Vocabulary()
    number = {word: index for index, word in enumerate(WORDS)}
    whole.__dict__ = {"word2idx": number, "idx2word": dict(enumerate(WORDS)), "idx": len(WORDS)}
    words_only.word2idx = OrderedDict((word, np.int64(index)) for word, index in number.items())
    for value in (whole, words_only, {"word2idx": number}, number, OrderedDict(number)):
        path.write_bytes(pickle.dumps(value, protocol))
        assert load_vocabulary(path).words == WORDS


def test_a_protocol_0_vocabulary_of_python2_is_read(tmp_path):
    """An old-style class, text in UTF-8 bytes as Python 2 writes them."""
    path = tmp_path / "vocabulary.pkl"
    words = b"".join(b"S'%s'\nI%d\ns" % (w.encode().replace(b"\xc3\xa9", rb"\xc3\xa9"), n) for n, w in enumerate(WORDS))
    path.write_bytes(b"(i__main__\nVocabulary\n(dS'word2idx'\n(d" + words + b"sb.")
    assert load_vocabulary(path).words == WORDS


def test_a_json_vocabulary_of_words_and_numbers_alone_is_read(tmp_path):
    path = tmp_path / "vocabulary.json"
    number = {word: index for index, word in enumerate(WORDS)}
    path.write_text("\ufeff" + json.dumps(number), encoding="utf-8")
    assert load_vocabulary(path).words == WORDS


def test_absent_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vocabulary at"):
        load_vocabulary(tmp_path / "absent.json")


def changed(options: dict | None = None, weights: dict | None = None, without: str = "", name: str = "s1_scan_basic"):
    """A golden checkpoint with other options and weights, and without one of them."""
    checkpoint = load_checkpoint(GOLDEN / f"{name}.pth.tar")
    kept = {k: v for k, v in {**checkpoint.options, **(options or {})}.items() if k != without}
    weights = {k: v for k, v in {**checkpoint.weights, **(weights or {})}.items() if k != without}
    return checkpoint._replace(options=kept, weights=weights)


def test_scan_options_are_translated():
    released = {"cross_attn": "i2t", "raw_feature_norm": "no_norm", "agg_func": "Mean", "no_txtnorm": True}
    options = matcher_options(changed(released), "scan")
    expected = {"name": "scan", "direction": "i2t", "normalization": "none", "aggregation": "mean", "temperature": 9.0}
    assert options["head"] == expected
    assert (options["image"]["normalize"], options["text"]["normalize"]) == (True, False)
    assert matcher_options(changed(), "scan")["head"]["lse_scale"] == 6.0


def test_sizes_are_read_off_the_weights():
    layers = {f"text:rnn.{n}_l1{r}": torch.zeros(48, 32) for n in ("weight_ih", "weight_hh") for r in ("", "_reverse")}
    options = matcher_options(changed(weights=layers), "bfan")
    assert options["head"] == {"name": "bfan", "focal": "prob", "temperature": 9.0}
    assert options["image"] == {
        "name": "regions", "input_dim": 11, "dim": 16, "normalize": True, "weight_norm": False
    }  # fmt: skip
    assert options["text"] == {
        "name": "gru", "dim": 16, "word_dim": 5, "bidirectional": True, "layers": 2, "normalize": True
    }  # fmt: skip


def test_vsrn_flavor_is_read_off_the_weights():
    for data, norm in (("coco", "l2"), ("f30k", "batch")):
        head = matcher_options(changed(name=f"s1_vsrn_{data}_precomp"), "vsrn")["head"]
        assert head == {"name": "vsrn", "dim": 16, "layers": 4, "norm": norm}


def test_options_that_the_checkpoint_lacks_can_be_given():
    checkpoint = changed(without="cross_attn")
    with pytest.raises(ValueError, match=r"s1_scan_basic.*does not say which cross_attn .* give --cross-attn"):
        matcher_options(checkpoint, "scan")
    assert matcher_options(checkpoint, "scan", {"cross_attn": "i2t"})["head"]["direction"] == "i2t"
    with pytest.raises(ValueError, match="was trained with agg_func='LogSumExp'; 'Mean' cannot replace it"):
        matcher_options(changed(), "scan", {"agg_func": "Mean"})


@pytest.mark.parametrize(
    ("checkpoint", "architecture", "message"),
    [
        (changed({"agg_func": "Median"}), "scan", "agg_func='Median' is unknown; known: LogSumExp"),
        (changed({"focal_type": "none"}), "bfan", "focal_type='none' is unknown; known: prob, equal"),
        (changed({"measure": "order"}, name="s1_vsrn_coco_precomp"), "vsrn", "measure='order'; wanted 'cosine'"),
        (changed(without="image:fc.weight"), "scan", "no weight image:fc.weight"),
        (changed(), "vsrn", "no weight image:Rs_GCN_1.g.bias; is it a checkpoint of another architecture"),
    ],
)
def test_options_that_cannot_be_imported_are_named(checkpoint, architecture, message):
    with pytest.raises(ValueError, match=message):
        matcher_options(checkpoint, architecture)


def test_weights_must_fit_one_to_one():
    wanted = {"image_encoder.projection.weight": torch.zeros(2, 3), "image_encoder.projection.bias": torch.zeros(2)}
    released = {"image:fc.weight": torch.ones(2, 3), "image:fc.bias": torch.ones(2)}
    checkpoint = changed()._replace(weights=released)
    assert matcher_weights(checkpoint, wanted).keys() == wanted.keys()
    extra = checkpoint._replace(weights={**released, "image:cnn.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"holds \['image:cnn.weight'\] besides"):
        matcher_weights(extra, wanted)
    lacking = checkpoint._replace(weights={"image:fc.weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"lacks \['image:fc.bias'\]"):
        matcher_weights(lacking, wanted)
    wrong = checkpoint._replace(weights={**released, "image:fc.weight": torch.ones(3, 2)})
    with pytest.raises(ValueError, match=r"image:fc.weight has shape \(3, 2\); wanted \(2, 3\)"):
        matcher_weights(wrong, wanted)
