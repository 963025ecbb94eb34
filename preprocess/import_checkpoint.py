"""Turn a released checkpoint into a model that xmodal loads: safetensors and config.json.

Of SCAN, BFAN and VSRN, of SGRAF, CHAN, NAAF, VSE-infinity (gpo) and ADAPT. A checkpoint with BERT takes the folder or
hub id of the transformer, --text-model, in place of a vocabulary.

Neither the checkpoint nor a pickled vocabulary can run code while it is read. Options of the training that the
checkpoint does not hold are given by their published names.

    python -m preprocess.import_checkpoint --checkpoint X.pth.tar --vocabulary V --architecture scan --output DIR
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tyro  # noqa: TC002 (and itself, at run time)

from xmodal.data.legacy import (
    Architecture,
    LegacyCheckpoint,
    load_checkpoint,
    load_vocabulary,
    matcher_options,
    matcher_weights,
)
from xmodal.data.released import LaterArchitecture, layout_of
from xmodal.data.vocabulary import Vocabulary
from xmodal.entry import run_program
from xmodal.model import Matcher, needs_vocabulary

EMBEDDINGS = ("text:embed.weight", "text:embed.glove.weight")
"""Weights that have a row for every word."""

WITH_MASK = ("chan", "gpo")
"""Architectures whose training adds a word to the vocabulary that masks others."""

MASK = "<mask>"


@dataclass(frozen=True)
class TrainingOptions:
    """What the weights do not tell."""

    cross_attn: Literal["t2i", "i2t"] | None = None
    """SCAN: who attends over whom."""
    raw_feature_norm: str | None = None
    """SCAN: normalization before the softmax."""
    agg_func: Literal["LogSumExp", "Mean", "Max", "Sum"] | None = None
    """SCAN: how the similarities become one score."""
    lambda_lse: float | None = None
    """SCAN: scale of LogSumExp."""
    lambda_softmax: float | None = None
    """SCAN, BFAN and NAAF: inverse temperature of the attention."""
    focal_type: Literal["prob", "equal"] | None = None
    """BFAN: focal function."""
    no_imgnorm: bool | None = None
    """All but VSRN and ADAPT: regions are not normalized."""
    no_txtnorm: bool | None = None
    """All but VSRN and ADAPT: words are not normalized."""
    coding_type: str | None = None
    """CHAN: how words and regions are aligned; only VHACoding can be imported."""
    pooling_type: Literal["LSEPooling", "MeanPooling"] | None = None
    """CHAN: how the similarities become one score."""
    belta: float | None = None
    """CHAN: temperature of LSEPooling."""
    alpha: float | None = None
    """NAAF: penalty of a mismatch taken for a match."""
    thres: float | None = None
    """NAAF: the threshold of training."""
    thres_safe: float | None = None
    """NAAF: the threshold of testing."""
    gamma: float | None = None
    """ADAPT: inverse temperature of the fovea."""


@dataclass(frozen=True)
class Config:
    """What to import, and where to."""

    checkpoint: Path
    """The released *.pth.tar."""
    architecture: Architecture | LaterArchitecture
    """Which it is."""
    output: Path
    """Folder for the model; must not be there."""
    vocabulary: Path | None = None
    """The vocabulary it was trained with, json or pickled; not for BERT."""
    text_model: str | None = None
    """For BERT: folder or hub id of the transformer that it was trained with, for its configuration and tokenizer."""
    options: tyro.conf.OmitArgPrefixes[TrainingOptions] = field(default_factory=TrainingOptions)


def main(config: Config) -> None:
    """Import one checkpoint.

    Raises:
        FileNotFoundError: the checkpoint or the vocabulary is not there.
        ValueError: either is damaged, dangerous or does not go with the other or the architecture, or `output` is
            there.
    """
    if os.path.lexists(config.output):  # a link that leads nowhere, too
        raise ValueError(f"{config.output} is there; remove it or choose another folder")
    matcher = _import_matcher(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.output.parent, prefix=f".{config.output.name}.") as temporary:
        matcher.save_pretrained(Path(temporary) / "model")
        (Path(temporary) / "model").rename(config.output)
    print(f"{config.output}: {config.architecture}, {sum(p.numel() for p in matcher.parameters())} parameters")


def _import_matcher(config: Config) -> Matcher:
    """The model that the checkpoint holds, in evaluation mode."""
    checkpoint = load_checkpoint(config.checkpoint)
    given = {name: value for name, value in asdict(config.options).items() if value is not None}
    if config.architecture in get_args(Architecture):
        options = matcher_options(checkpoint, config.architecture, given)  # type: ignore[arg-type]
        matcher = _built(config, options["image"], options["text"], options["head"], checkpoint)
        matcher.load_state_dict(matcher_weights(checkpoint, matcher.state_dict()))
    else:
        layout = layout_of(checkpoint, config.architecture, given)  # type: ignore[arg-type]
        matcher = _built(config, layout.image, layout.text, layout.head, checkpoint)
        matcher.load_state_dict(layout.weights(checkpoint, matcher.state_dict()))
    return matcher.eval()


def _built(
    config: Config, image: dict[str, Any], text: dict[str, Any], head: dict[str, Any], checkpoint: LegacyCheckpoint
) -> Matcher:
    """The model without its weights, with the vocabulary or the transformer that goes with it."""
    if not needs_vocabulary(text):
        if config.text_model is None:
            raise ValueError(f"{config.checkpoint} has a transformer; name it with --text-model bert-base-uncased, say")
        return Matcher(image, {**text, "model": config.text_model}, head)
    if config.vocabulary is None:
        raise ValueError(f"{config.checkpoint} has words of its own; give the vocabulary with --vocabulary")
    vocabulary = load_vocabulary(config.vocabulary)
    tables = [checkpoint.weights[name].shape[0] for name in EMBEDDINGS if name in checkpoint.weights]
    words = tables[0] if tables else checkpoint.weight(EMBEDDINGS[0]).shape[0]
    if len(vocabulary) + 1 == words and config.architecture in WITH_MASK and MASK not in vocabulary.words:
        vocabulary = Vocabulary([*vocabulary.words, MASK], vocabulary.segmenter)
    if len(vocabulary) != words:
        raise ValueError(
            f"{config.checkpoint} knows {words} words and {config.vocabulary} holds {len(vocabulary)}; "
            "wanted the vocabulary that it was trained with"
        )
    return Matcher(image, text, head, vocabulary.config)


if __name__ == "__main__":
    run_program(main)
