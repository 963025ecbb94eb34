"""Towers and head as programs for other runtimes: files for ONNX or for torch.export, checked before they appear."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from copy import deepcopy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from xmodal.data.atomic import folder_written_whole
from xmodal.inference import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from xmodal.heads import Head
    from xmodal.model import Matcher

    Run = Callable[[Sequence[Tensor]], list[Tensor]]
    """A program that is ready to be called."""

Format = Literal["onnx", "torch"]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TOLERANCE = 1e-5
"""How far a number of a program may be from the model's, as a share of the largest number of the same output."""

SETTLED = 0.5
"""Share of the numbers of an output that must be compared: the others hang on rounding."""

NUDGES = 16
"""How often inputs are nudged to see which numbers hang on rounding."""

SIZES = ((2, 5, 3, 4), (3, 9, 2, 7), (1, 1, 1, 1), (4, 36, 5, 20))
"""Images, regions, captions and words of what the programs are traced with (the first) and checked on (all)."""

AXES = ("image", "region", "caption", "word")
"""What the sizes count."""

ARCHITECTURE = "text"
"""Folder for what the text encoder keeps besides weights: the tokenizer of a transformer."""


class Piece(NamedTuple):
    """A part of a matcher that becomes a program, and the names of what it takes and gives."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def export_matcher(matcher: Matcher, folder: str | Path, *, form: Format = "onnx") -> dict[str, Any]:
    """Write a matcher as three programs, in which numbers of images, captions, regions and words are free.

    `image` takes what the image encoder takes and gives embedded images and their mask, `text` does the same for
    captions as numbers and mask, and `head` scores embedded images against embedded captions. What a head does once an
    item is in the towers: embedded images of VSRN or a pooled head are one vector each. `export.json` names inputs,
    outputs and axes and says how far the programs were from the model; `words.json` has the words in the order of
    their numbers. Every program is run on several sizes and compared with the model before the folder appears.

    Args:
        matcher: the model; it is left as it was.
        folder: the folder to write, or to replace.
        form: `onnx` for files that onnxruntime and others run, or `torch` for `torch.export.load`.

    Returns:
        The largest difference of each program, as a share of the largest number of the same output.

    Raises:
        ModuleNotFoundError: the packages that ONNX takes are not installed.
        OSError: the folder cannot be written.
        ValueError: an unknown form, or a part that cannot be exported, by name and with the reason.

    >>> from xmodal.model import Matcher
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> matcher = Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog"])
    >>> differences = export_matcher(matcher, "exported", form="torch")
    >>> list(differences), max(differences.values()) < 1e-5
    (['image', 'text', 'head'], True)
    >>> words = torch.export.load("exported/text.pt2").module()(*matcher.tokenizer(["a dog", "dog"]))[0]
    >>> words.shape
    torch.Size([2, 4, 4])
    """
    if form not in get_args(Format):
        raise ValueError(f"form must be one of {', '.join(get_args(Format))}; got {form!r}")
    missing = [name for name in PACKAGES if find_spec(name) is None] if form == "onnx" else []
    if missing:
        raise ModuleNotFoundError(
            f"ONNX needs {', '.join(missing)}: pip install 'xmodal[export]'; or export for torch alone"
        )
    model = deepcopy(matcher).cpu()
    with evaluating(model), folder_written_whole(folder) as whole:
        examples = [_examples(model, *sizes) for sizes in SIZES]
        described, differences = {}, {}
        for piece in _pieces(model, examples[0]["image"]):
            given = [example[piece.name] for example in examples]
            program = _captured(piece, given)
            described[piece.name] = _describe(piece, given)
            run, described[piece.name]["file"] = WRITERS[form](program, piece, given, whole)
            differences[piece.name] = described[piece.name]["difference"] = _difference(piece, run, given)
        words = json.dumps(model.tokenizer.words, ensure_ascii=False)
        (whole / "words.json").write_text(words, encoding="utf-8")
        model.text_encoder.save_architecture(whole / ARCHITECTURE)
        manifest = {"format": form, "torch": torch.__version__, "programs": described}
        (whole / "export.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return differences


class _Images(nn.Module):
    """The image encoder and what the head does once an image, on the bare tensors of a batch."""

    def __init__(self, model: Matcher, head: Head, batch: Any) -> None:
        super().__init__()
        self.encoder, self.head = model.image_encoder, head
        self.batch, self.names = type(batch), _present(batch)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        items, mask = self.encoder(self.batch(**dict(zip(self.names, tensors, strict=True))))
        return self.head.embed_images(items, mask), mask


class _Captions(nn.Module):
    """The text encoder and what the head does once a caption."""

    def __init__(self, model: Matcher, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = model.text_encoder, head

    def forward(self, tokens: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.embed_captions(self.encoder(tokens, word_mask), word_mask), word_mask


class _Scores(nn.Module):
    """What the head does with every pair."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Tensor, captions: Tensor, region_mask: Tensor, word_mask: Tensor) -> Tensor:
        return self.head.compare(images, captions, region_mask, word_mask)


def _pieces(model: Matcher, batch: Any) -> list[Piece]:
    head = model.head.in_stages
    return [
        Piece("image", _Images(model, head, batch), _present(batch), ("images", "real_regions")),
        Piece("text", _Captions(model, head), ("tokens", "word_mask"), ("captions", "real_words")),
        Piece("head", _Scores(head), ("images", "captions", "region_mask", "word_mask"), ("scores",)),
    ]


def _present(batch: Any) -> tuple[str, ...]:
    """The names of the tensors of a batch."""
    return tuple(name for name, value in batch._asdict().items() if value is not None)


def _examples(model: Matcher, images: int, regions: int, captions: int, words: int) -> dict[str, Any]:
    """What the three pieces take, of these sizes; always the same."""
    generator = torch.Generator().manual_seed(0)
    batch = model.image_encoder.example_batch(images, regions, generator)
    tokens = torch.randint(len(model.tokenizer.words), (captions, words), generator=generator)
    lengths = torch.randint(1, words + 1, (captions, 1), generator=generator)
    lengths[0] = words
    word_mask = torch.arange(words) < lengths
    head = model.head.in_stages
    items, region_mask = model.image_encoder(batch)
    states = model.text_encoder(tokens, word_mask)
    embedded = head.embed_images(items, region_mask), head.embed_captions(states, word_mask)
    return {"image": batch, "text": (tokens, word_mask), "head": (*embedded, region_mask, word_mask)}


def _tensors(given: Any) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in given if tensor is not None)


def _captured(piece: Piece, given: list[Any]) -> torch.export.ExportedProgram:
    """The graph of a piece; axes that differ between the examples are free in it."""
    first, second = _tensors(given[0]), _tensors(given[1])
    # Where a part has a limit, positions of a transformer say, torch finds it; that nothing is fixed is checked later.
    free = tuple(dict.fromkeys(_free(*pair), torch.export.Dim.AUTO) for pair in zip(first, second, strict=True))
    told = io.StringIO()  # of a graph that fails torch prints all that it has
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            return torch.export.export(piece.module, first, dynamic_shapes=(free,) if piece.name == "image" else free)
    except Exception as error:  # of any kind: a graph can fail to be captured in too many ways to name
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the program {piece.name!r} of this model cannot be exported: {reason} (what depends on values, such as "
            "comparing in blocks, makes no graph)"
        ) from error


def _free(one: Tensor, other: Tensor) -> dict[int, str]:
    """The axes in which the first two examples of an input differ, and of what they count how many there are.

    Some heads put one more item, of the whole set, before its items.
    """
    names = dict(zip(zip(*SIZES[:2], strict=True), AXES, strict=True))
    names |= {(first + 1, second + 1): f"{name} + 1" for (first, second), name in names.items()}
    sizes = enumerate(zip(one.shape, other.shape, strict=True))
    return {axis: names.get((some, others), "any") for axis, (some, others) in sizes if some != others}


def _describe(piece: Piece, given: list[Any]) -> dict[str, Any]:
    """Inputs with types and sizes, what is counted where a size is free, and the names of the outputs."""
    inputs = {}
    for name, one, other in zip(piece.inputs, _tensors(given[0]), _tensors(given[1]), strict=True):
        free = _free(one, other)
        shape = [free.get(axis, size) for axis, size in enumerate(one.shape)]
        inputs[name] = {"type": str(one.dtype).removeprefix("torch."), "shape": shape}
    return {"inputs": inputs, "outputs": list(piece.outputs)}


def _write_torch(
    program: torch.export.ExportedProgram, piece: Piece, given: list[Any], folder: Path
) -> tuple[Run, str]:
    file = folder / f"{piece.name}.pt2"
    torch.export.save(program, file)
    module = torch.export.load(file).module()

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        result = module(*tensors)
        return list(result) if isinstance(result, tuple) else [result]

    return run, file.name


def _write_onnx(program: torch.export.ExportedProgram, piece: Piece, given: list[Any], folder: Path) -> tuple[Run, str]:
    import onnxruntime

    file = folder / f"{piece.name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        made = torch.onnx.export(
            program, input_names=piece.inputs, output_names=piece.outputs, dynamo=True, verbose=False
        )
    assert made is not None
    made.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(piece.inputs, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run, file.name


WRITERS = {"onnx": _write_onnx, "torch": _write_torch}


def _difference(piece: Piece, run: Run, given: list[Any]) -> float:
    """The largest difference between a program and the model, as a share of the largest number of the same output.

    Numbers that hang on rounding are left aside, but no more than half of an output may be: a step function, such as
    BFAN's focal mask, can stand on the edge of a step.
    """
    examples = [_tensors(each) for each in given]
    wanted = [_outputs(piece.module, example) for example in examples]
    scales = [_scale(output) for output in zip(*wanted, strict=True)]
    largest, sure = 0.0, [[] for _ in scales]
    for example, outputs in zip(examples, wanted, strict=True):
        settled = _settled(piece.module, example, outputs, scales)
        found = _found(piece, run, example, outputs)
        for one, other, scale, kept, known in zip(found, outputs, scales, settled, sure, strict=True):
            apart = (one.double() - other.double()).abs().nan_to_num(nan=torch.inf)[kept] / scale
            largest = max(largest, max(apart.tolist(), default=0.0))
            known.append(kept.flatten())
    for name, known in zip(piece.outputs, sure, strict=True):
        if (share := float(torch.cat(known).double().mean())) < SETTLED:
            raise ValueError(
                f"the program {piece.name!r} cannot be checked: rounding decides on {100 * (1 - share):.0f}% of the "
                f"numbers of {name!r} that the model gives"
            )
    if largest > TOLERANCE:
        raise ValueError(
            f"the program {piece.name!r} differs from the model by {largest:.2g} of the largest number of an output, "
            f"more than {TOLERANCE}"
        )
    return largest


def _scale(outputs: Sequence[Tensor]) -> float:
    """The largest number of an output over all examples; one where it has none but zeros."""
    return max(float(output.double().abs().where(output.isfinite(), 0).max()) for output in outputs) or 1.0


def _found(piece: Piece, run: Run, example: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    """What a program gives, in the shapes of the model."""
    sizes = [tuple(tensor.shape) for tensor in example]
    try:
        found = run(example)
    except Exception as error:  # of a runtime: it may raise anything
        raise ValueError(f"the program {piece.name!r} does not run on inputs of {sizes}: {error}") from error
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"the program {piece.name!r} gives {tuple(one.shape)} for inputs of {sizes}, the model "
                f"{tuple(other.shape)}"
            )
    return found


def _settled(
    module: nn.Module, example: Sequence[Tensor], outputs: Sequence[Tensor], scales: Sequence[float]
) -> list[Tensor]:
    """Which numbers a model gives again of inputs that differ by about what float32 rounds, in float64 and in float32.

    In float64 because steps stand on edges of the inputs, in float32 because they stand on edges of what is computed of
    them: numbers that are equal but for rounding.
    """
    exact, generator = deepcopy(module).double(), torch.Generator().manual_seed(0)
    settled = [torch.ones_like(output, dtype=torch.bool) for output in outputs]
    for nudge in range(NUDGES):
        precise, dtype = ((exact, torch.float64), (module, torch.float32))[nudge % 2]
        nudged = [_nudged(each, generator).to(dtype) if each.is_floating_point() else each for each in example]
        for sure, output, other, scale in zip(settled, outputs, _outputs(precise, nudged), scales, strict=True):
            sure &= (output.double() - other.double()).abs() <= TOLERANCE * scale
    return settled


def _nudged(values: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return values.double() * (1 + 4 * torch.finfo(torch.float32).eps * noise)


def _outputs(module: nn.Module, example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = module(*example)
    return found if isinstance(found, tuple) else (found,)
