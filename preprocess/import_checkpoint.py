"""Turn a released checkpoint of SCAN, BFAN or VSRN into a model that xmodal loads: safetensors and config.json.

Neither the checkpoint nor a pickled vocabulary can run code while it is read. Options of the training that the
checkpoint does not hold are given by their published names.

    python -m preprocess.import_checkpoint --checkpoint X.pth.tar --vocabulary V --architecture scan --output DIR
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro  # noqa: TC002 (and itself, at run time)

from xmodal.data.legacy import Architecture, load_checkpoint, load_vocabulary, matcher_options, matcher_weights
from xmodal.entry import run_program
from xmodal.model import Matcher


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
    """SCAN and BFAN: inverse temperature of the attention."""
    focal_type: Literal["prob", "equal"] | None = None
    """BFAN: focal function."""
    no_imgnorm: bool | None = None
    """SCAN and BFAN: regions are not normalized."""
    no_txtnorm: bool | None = None
    """SCAN and BFAN: words are not normalized."""


@dataclass(frozen=True)
class Config:
    """What to import, and where to."""

    checkpoint: Path
    """The released *.pth.tar."""
    vocabulary: Path
    """The vocabulary it was trained with, json or pickled."""
    architecture: Architecture
    """Which of the three it is."""
    output: Path
    """Folder for the model; must not be there."""
    options: tyro.conf.OmitArgPrefixes[TrainingOptions] = field(default_factory=TrainingOptions)


def main(config: Config) -> None:
    """Import one checkpoint.

    Raises:
        FileNotFoundError: the checkpoint or the vocabulary is not there.
        ValueError: either is damaged, dangerous or does not go with the other or the architecture, or `output` is
            there.
    """
    if config.output.exists():
        raise ValueError(f"{config.output} is there; remove it or choose another folder")
    matcher = _import_matcher(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.output.parent, prefix=f".{config.output.name}.") as temporary:
        matcher.save_pretrained(Path(temporary) / "model")
        (Path(temporary) / "model").rename(config.output)
    print(f"{config.output}: {config.architecture}, {sum(p.numel() for p in matcher.parameters())} parameters")


def _import_matcher(config: Config) -> Matcher:
    """The model that the checkpoint holds, in evaluation mode."""
    checkpoint, vocabulary = load_checkpoint(config.checkpoint), load_vocabulary(config.vocabulary)
    words = checkpoint.weight("text:embed.weight").shape[0]
    if len(vocabulary) != words:
        raise ValueError(
            f"{config.checkpoint} knows {words} words and {config.vocabulary} holds {len(vocabulary)}; "
            "wanted the vocabulary that it was trained with"
        )
    given = {name: value for name, value in asdict(config.options).items() if value is not None}
    options = matcher_options(checkpoint, config.architecture, given)
    matcher = Matcher(options["image"], options["text"], options["head"], vocabulary.config)
    matcher.load_state_dict(matcher_weights(checkpoint, matcher.state_dict()))
    return matcher.eval()


if __name__ == "__main__":
    run_program(main)
