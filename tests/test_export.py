"""Programs of a matcher give its numbers, whatever the sizes; ONNX is run by onnxruntime."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from xmodal import export
from xmodal.cli import main
from xmodal.data.region_store import RegionBatch
from xmodal.encoders.base import ImageEncoder
from xmodal.export import PACKAGES, WRITERS, export_matcher
from xmodal.heads.recurrent import _step_by_step, read_in_order
from xmodal.inference import evaluating
from xmodal.model import IMAGE_ENCODERS, Matcher

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in PACKAGES), reason="pip install 'xmodal[export]' for ONNX"
)
WORDS = ["a", "dog", "red", "car", "runs"]


def make(head, image="regions", **options):
    torch.manual_seed(0)
    normalize = head != "vsrn"
    sides = {"name": image, "input_dim": 6, "dim": 8, "normalize": normalize}
    text = {"name": "gru", "dim": 8, "word_dim": 4, "bidirectional": normalize, "normalize": normalize}
    return Matcher(sides, text, {"name": head, **options}, vocabulary=WORDS)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_reading_step_by_step_is_reading_packed(bidirectional, layers):
    torch.manual_seed(0)
    rnn = torch.nn.GRU(3, 5, layers, batch_first=True, bidirectional=bidirectional)
    items, mask = torch.randn(4, 7, 3), torch.arange(7) < torch.tensor([[7], [1], [4], [6]])
    with torch.no_grad():
        torch.testing.assert_close(_step_by_step(rnn, items, mask), read_in_order(rnn, items, mask))


def run_onnx(folder, name, *tensors):
    import onnxruntime

    described = json.loads((folder / "export.json").read_text())["programs"][name]
    session = onnxruntime.InferenceSession(folder / described["file"])
    assert [value.name for value in session.get_inputs()] == list(described["inputs"])
    given = {key: tensor.numpy() for key, tensor in zip(described["inputs"], tensors, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, given)]


def run_torch(folder, name, *tensors):
    result = torch.export.load(folder / f"{name}.pt2").module()(*tensors)
    return list(result) if isinstance(result, tuple) else [result]


slow = pytest.mark.slow
PAIRWISE = ("dprnn", "rdan_style")
CASES = [
    pytest.param("scan", "onnx", run_onnx, marks=needs_onnx, id="scan-onnx"),
    *(pytest.param(head, "onnx", run_onnx, marks=[needs_onnx, slow]) for head in ("bfan", "vsrn", "cosine")),
    *(
        pytest.param(head, "torch", run_torch, marks=slow)
        for head in ("scan", "bfan", "vsrn", "cosine", "chan", "naaf", "mtfn", *PAIRWISE)
    ),
]


@pytest.mark.parametrize(("head", "form", "run"), CASES)
def test_programs_score_as_the_model_does(head, form, run, tmp_path):
    options = {"pooling": {"name": "gpo"}} if head == "cosine" else {"direction": "i2t"} if head == "scan" else {}
    matcher = make(head, **options)
    differences = export_matcher(matcher, tmp_path / "out", form=form)
    assert max(differences.values()) <= 1e-5
    assert matcher.training, "the model is left as it was"

    features, region_mask = torch.randn(6, 11, 6), torch.arange(11) < torch.randint(1, 12, (6, 1))
    tokens, word_mask = matcher.tokenizer(["a red dog runs", "car", "a a a a a a dog dog dog"])
    images, real_regions = run(tmp_path / "out", "image", features, region_mask)
    captions, real_words = run(tmp_path / "out", "text", tokens, word_mask)
    (scores,) = run(tmp_path / "out", "head", images, captions, real_regions, real_words)
    matcher.eval()
    with torch.no_grad():
        wanted = matcher(features, tokens, region_mask, word_mask)
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=0)
    words = json.loads((tmp_path / "out" / "words.json").read_text(encoding="utf-8"))
    assert words == matcher.tokenizer.words


@pytest.mark.parametrize(("head", "names"), [("vsrn", ("image", "head")), ("chan", ("head",))])
def test_no_size_is_fixed_in_a_graph_that_is_kept(head, names, tmp_path):
    """The parts that others do not show, without the text side: quick enough to be run every time."""
    model = make(head)
    with evaluating(model):
        examples = [export._examples(model, *sizes) for sizes in export.SIZES]
        for piece in export._pieces(model, examples[0]["image"]):
            if piece.name in names:
                given = [example[piece.name] for example in examples]
                run, _ = WRITERS["torch"](export._captured(piece, given), piece, given, tmp_path)
                assert export._difference(piece, run, given) <= 1e-5


@needs_onnx
@pytest.mark.slow
def test_boxes_and_transformers_are_exported(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=7, max_position_embeddings=40, **sizes)).save_pretrained(tmp_path / "bert")
    text = {"name": "bert", "model": str(tmp_path / "bert"), "dim": 8}
    matcher = Matcher({"name": "gated_regions", "input_dim": 6, "dim": 8}, text, {"name": "scan"})
    export_matcher(matcher, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "export.json").read_text())["programs"]["image"]["inputs"]
    assert described["boxes"] == {"type": "float32", "shape": ["image", "region", 4]}
    assert (tmp_path / "out" / "text" / "tokenizer_config.json").is_file()
    tokens, mask = matcher.tokenizer(["a dog dog dog", "dog"])
    (states, _) = run_onnx(tmp_path / "out", "text", tokens, mask)
    torch.testing.assert_close(states, matcher.eval().encode_captions(tokens, mask), atol=1e-5, rtol=0)


class Secretive(ImageEncoder):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


class Reading(Secretive):
    """Looks at a value, which no graph can."""

    def forward(self, batch):
        return batch.regions * float(batch.regions.sum()), batch.region_mask

    def example_batch(self, images, items, generator):
        return RegionBatch(torch.ones(images, items, self.dim), torch.ones(images, items, dtype=torch.bool))


def test_what_cannot_be_exported_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(IMAGE_ENCODERS, "secretive", Secretive)
    monkeypatch.setitem(IMAGE_ENCODERS, "reading", Reading)
    text = {"name": "gru", "dim": 8, "word_dim": 4}
    with pytest.raises(NotImplementedError, match="Secretive does not say what it takes"):
        export_matcher(Matcher({"name": "secretive", "dim": 8}, text, {"name": "scan"}, WORDS), tmp_path / "out")
    with pytest.raises(ValueError, match="the program 'image' of this model cannot be exported"):
        export_matcher(Matcher({"name": "reading", "dim": 8}, text, {"name": "scan"}, WORDS), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="form must be one of onnx, torch; got 'tflite'"):
        export_matcher(make("scan"), tmp_path / "out", form="tflite")  # type: ignore[arg-type]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.export.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="ONNX needs onnx, onnxscript, onnxruntime: pip install"):
        export_matcher(make("scan"), tmp_path / "out")


def test_a_program_that_differs_is_refused(tmp_path, monkeypatch):
    def other(program, piece, given, folder):
        return lambda example: [value + 0.01 for value in piece.module(*example)], "image.pt2"

    monkeypatch.setitem(WRITERS, "torch", other)
    with pytest.raises(ValueError, match=r"the program 'image' differs from the model by 0\.01\d* of the largest"):
        export_matcher(make("cosine"), tmp_path / "out", form="torch")
    assert not Path(tmp_path / "out").exists()


class Linear(torch.nn.Module):
    """Numbers of any size, and a mask, which is never in doubt."""

    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(size * torch.randn(16, 8))

    def forward(self, values):
        return values @ self.weight.T, torch.ones(len(values), dtype=torch.bool)


class Digits(Linear):
    """Nothing but digits that float32 does not have."""

    def forward(self, values):
        products, mask = super().forward(values)
        return (1e9 * products).remainder(1), mask


def compare(module, program):
    piece = export.Piece("image", module.eval(), ("values",), ("images", "real_regions"))
    given = [(torch.randn(count, 8, generator=torch.Generator().manual_seed(count)),) for count in (2, 9)]
    with torch.no_grad():
        return export._difference(piece, lambda example: list(program(*example)), given)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_what_is_large_or_small_is_checked_as_well(size):
    """Half a number is too far away whatever the size, a tenth of the tolerance is not; the mask does not count."""
    model = Linear(size)

    def wrong(values):
        products, mask = model(values)
        return products.where(products.abs() < products.abs().mean(), 1.5 * products), mask

    assert compare(model, model) == 0
    assert compare(model, lambda values: (model(values)[0] * (1 + 1e-6), model(values)[1])) == pytest.approx(
        1e-6, rel=0.1
    )
    with pytest.raises(ValueError, match=r"the program 'image' differs from the model by 0\.5 of the largest number"):
        compare(model, wrong)


def test_an_output_on_which_rounding_decides_is_not_called_checked():
    with pytest.raises(ValueError, match=r"cannot be checked: rounding decides on \d+% of the numbers of 'images'"):
        compare(Digits(1.0), Digits(1.0))


def test_a_program_that_does_not_run_on_every_size_is_refused(tmp_path, monkeypatch):
    def odd(example):
        raise RuntimeError("Guard failed")

    monkeypatch.setitem(WRITERS, "torch", lambda program, piece, given, folder: (odd, "image.pt2"))
    with pytest.raises(ValueError, match=r"'image' does not run on inputs of \[\(2, 5, 6\), \(2, 5\)\]: Guard failed"):
        export_matcher(make("cosine"), tmp_path / "out", form="torch")
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_far_the_programs_are(tmp_path, capsys, monkeypatch):
    make("cosine").save_pretrained(tmp_path / "model")
    seen = []

    def record(model, folder, form):
        seen.append((folder, form))
        return {"text": 1e-7}

    monkeypatch.setattr("xmodal.export.export_matcher", record)
    main(["export", str(tmp_path / "model"), "--format", "torch", "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out == (
        f"text   differs from the model by at most 1.0e-07 of its largest number\nwrote {tmp_path / 'out'}\n"
    )
    assert seen == [(tmp_path / "out", "torch")]
