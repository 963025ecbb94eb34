"""Released checkpoints of the later heads: how those of SGRAF, CHAN, NAAF, VSE-infinity (GPO) and ADAPT are laid out.

Sizes and flavors are read off the weights; what they do not tell, off the training options; none is ever assumed.
Layouts are those of the released code: SGRAF (model.py), CHAN (lib/model.py, lib/encoders.py), NAAF (model.py),
vse_infty (lib/vse.py, lib/encoders.py) and retrieval.pytorch (retrieval/model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from xmodal.data.legacy import PUBLISHED_NAMES, LegacyCheckpoint, PublishedOptions, gru_sizes, matcher_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

LaterArchitecture = Literal["sgraf", "chan", "naaf", "gpo", "adapt"]

IMAGE = PUBLISHED_NAMES[:3]
"""A projection of regions, its weight perhaps in two parts."""

WORDS = (
    (r"text_encoder\.embedding\.weight", "text:embed.weight"),
    (r"text_encoder\.rnn\.(\w+)", r"text:rnn.\1"),
)
"""Embeddings of words, and a GRU."""

BERT = (
    (r"text_encoder\.transformer\.(.+)", r"text:bert.\1"),
    (r"text_encoder\.projection\.(\w+)", r"text:linear.\1"),
)
"""A transformer and a layer into the joint space."""

UNUSED_OF_BERT = (r"text:bert\.embeddings\.position_ids",)
"""Numbers that older versions of transformers kept."""


class Layout(NamedTuple):
    """How a checkpoint becomes a Matcher."""

    image: dict[str, Any]
    """Options of the image encoder."""
    text: dict[str, Any]
    """Options of the text encoder; a transformer's architecture and tokenizer come from elsewhere."""
    head: dict[str, Any]
    """Options of the head."""
    names: tuple[tuple[str, str], ...]
    """As `xmodal.data.legacy.PUBLISHED_NAMES`."""
    unused: tuple[str, ...] = ()
    """Patterns of weights that the released code keeps and does not use."""
    values: dict[str, float] = {}  # noqa: RUF012  # of a NamedTuple, and never written to
    """Buffers that are no weights of the checkpoint but training options."""

    def weights(self, checkpoint: LegacyCheckpoint, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a checkpoint under the names of the Matcher whose `state_dict()` is wanted.

        Raises:
            ValueError: the checkpoint lacks a weight, holds another one or one of another shape.
        """
        found = {name: value for name, value in wanted.items() if name not in self.values}
        weights = matcher_weights(checkpoint, found, self.names, unused=self.unused)
        return weights | {name: torch.tensor(value).to(wanted[name]) for name, value in self.values.items()}


def layout_of(
    checkpoint: LegacyCheckpoint, architecture: LaterArchitecture, given: Mapping[str, Any] | None = None
) -> Layout:
    """How a checkpoint of one of the later architectures becomes a Matcher.

    Args:
        checkpoint: from `xmodal.data.legacy.load_checkpoint`.
        architecture: which it is.
        given: training options, by their published names, that the checkpoint does not hold.

    Raises:
        ValueError: an option is missing, contradicts the one given or has a value that cannot be imported, or the
            weights are not those of such a model.

    Example:
        >>> from pathlib import Path
        >>> from xmodal.data.legacy import LegacyCheckpoint
        >>> from xmodal.data.released import layout_of
        >>> weights = {"image:fc.weight": torch.ones(4, 8), "text:embed.weight": torch.ones(10, 3)}
        >>> weights |= {"text:rnn.weight_hh_l0": torch.ones(12, 4), "text:rnn.weight_ih_l0": torch.ones(12, 3)}
        >>> options = {"lambda_softmax": 20.0, "alpha": 2.0, "thres": 0.2, "thres_safe": 0.1}
        >>> options |= {"no_imgnorm": False, "no_txtnorm": False}
        >>> layout_of(LegacyCheckpoint(Path("naaf.pth.tar"), weights, options), "naaf").values
        {'head.threshold': 0.2, 'head.lower_bound': 0.1}
    """
    return _LAYOUTS[architecture](checkpoint, PublishedOptions(checkpoint, given or {}))


def _image(checkpoint: LegacyCheckpoint, name: str = "regions", **options: Any) -> dict[str, Any]:
    if weight_norm := "image:fc.weight_v" in checkpoint.weights:
        options["weight_norm"] = True
    projection = checkpoint.weight("image:fc.weight_v" if weight_norm else "image:fc.weight")
    return {"name": name, "input_dim": projection.shape[1], "dim": projection.shape[0], **options}


def _words(checkpoint: LegacyCheckpoint, rnn: str = "text:rnn", **options: Any) -> dict[str, Any]:
    return {
        "name": "gru",
        **gru_sizes(checkpoint, rnn),
        "word_dim": checkpoint.weight("text:embed.weight").shape[1],
        **options,
    }


def _text(checkpoint: LegacyCheckpoint, normalize: bool) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """The text encoder, BERT or a GRU, and the names of its weights."""
    if "text:linear.weight" in checkpoint.weights and "text:embed.weight" not in checkpoint.weights:
        dim = checkpoint.weight("text:linear.weight").shape[0]
        return {"name": "bert", "dim": dim, "normalize": normalize, "load_weights": False}, BERT
    return _words(checkpoint, normalize=normalize), WORDS


def _demand(options: PublishedOptions, name: str, known: Any) -> None:
    """Refuse an option that decides on what a model computes and is not what can be imported."""
    if options[name] != known:
        raise ValueError(f"{options.path} was trained with {name}={options[name]!r}; only {known!r} can be imported")


def _sgraf(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> Layout:
    steps = len({name.split(".")[1] for name in checkpoint.weights if name.startswith("sim:SGR_module.")})
    slots = len(checkpoint.weight("sim:v_global_w.embedding_local.1.weight"))
    head = {
        "name": "sgraf",
        "module": "sgr" if steps else "saf",
        "sim_dim": len(checkpoint.weight("sim:sim_tranloc_w.bias")),
        "steps": max(1, steps),
        "temperature": 9.0,
        "pooling": {"name": "self_attention", "dropout": 0.4, "norm": "slot", "slots": slots},
        "caption_pooling": {"name": "self_attention", "dropout": 0.4, "norm": "none"},
    }
    names = (
        *IMAGE,
        WORDS[0],
        (r"text_encoder\.rnn\.(\w+)", r"text:cap_rnn.\1"),
        (r"head\.image_pooler\.local\.(\w+)", r"sim:v_global_w.embedding_local.0.\1"),
        (r"head\.image_pooler\.local_norm\.(\w+)", r"sim:v_global_w.embedding_local.1.\1"),
        (r"head\.image_pooler\.whole\.(\w+)", r"sim:v_global_w.embedding_global.0.\1"),
        (r"head\.image_pooler\.whole_norm\.(\w+)", r"sim:v_global_w.embedding_global.1.\1"),
        (r"head\.image_pooler\.logit\.(\w+)", r"sim:v_global_w.embedding_common.0.\1"),
        (r"head\.caption_pooler\.local\.(\w+)", r"sim:t_global_w.embedding_local.0.\1"),
        (r"head\.caption_pooler\.whole\.(\w+)", r"sim:t_global_w.embedding_global.0.\1"),
        (r"head\.caption_pooler\.logit\.(\w+)", r"sim:t_global_w.embedding_common.0.\1"),
        (r"head\.local\.(\w+)", r"sim:sim_tranloc_w.\1"),
        (r"head\.whole\.(\w+)", r"sim:sim_tranglo_w.\1"),
        (r"head\.score\.(\w+)", r"sim:sim_eval_w.\1"),
        (r"head\.reasoning\.(\d+)\.(query|key)\.(\w+)", r"sim:SGR_module.\1.graph_\2_w.\3"),
        (r"head\.reasoning\.(\d+)\.output\.(\w+)", r"sim:SGR_module.\1.sim_graph_w.\2"),
        (r"head\.filtration\.gate\.(\w+)", r"sim:SAF_module.attn_sim_w.\1"),
        (r"head\.filtration\.norm\.(\w+)", r"sim:SAF_module.bn.\1"),
    )
    text = _words(checkpoint, "text:cap_rnn", normalize=not options["no_txtnorm"], word_dropout=0.4)
    return Layout(_image(checkpoint, normalize=not options["no_imgnorm"]), text, head, names)


def _chan(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> Layout:
    _demand(options, "coding_type", "VHACoding")
    aggregation = options.translated("pooling_type", {"LSEPooling": "logsumexp", "MeanPooling": "mean"})
    head: dict[str, Any] = {"name": "chan", "aggregation": aggregation}
    if aggregation == "logsumexp":
        head["temperature"] = float(options["belta"])
    names, image = IMAGE, _image(checkpoint, normalize=not options["no_imgnorm"])
    if any(name.startswith("image:feedforward.") for name in checkpoint.weights):
        image |= {"name": "attending_regions", "heads": 8}
        names = (
            *IMAGE,
            (r"image_encoder\.norm\.(\w+)", r"image:feedforward.ln.\1"),
            (r"image_encoder\.attention\.(.+)", r"image:feedforward.attn.\1"),
        )
    text, words = _text(checkpoint, normalize=not options["no_txtnorm"])
    unused = UNUSED_OF_BERT if words is BERT else (r"text:fc\.\w+",)  # a layer that is made and never called
    return Layout(image, text, head, (*names, *words), unused)


def _naaf(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> Layout:
    weights = checkpoint.weights
    is_glove = "text:embed.glove.weight" in weights
    if is_glove:  # which normalizes words whatever the option says
        checkpoint = checkpoint._replace(weights={**weights, "text:embed.weight": weights["text:embed.glove.weight"]})
    head = {
        "name": "naaf",
        "temperature": float(options["lambda_softmax"]),
        "intra_temperature": 5.0,
        "penalty": float(options["alpha"]),
    }
    text = _words(checkpoint, normalize=is_glove or not options["no_txtnorm"])
    embedding = (WORDS[0][0], "text:embed.glove.weight" if is_glove else WORDS[0][1])
    values = {"head.threshold": float(options["thres"]), "head.lower_bound": float(options["thres_safe"])}
    image = _image(checkpoint, normalize=not options["no_imgnorm"])
    return Layout(image, text, head, (*IMAGE, embedding, WORDS[1]), values=values)


def _gpo(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> Layout:
    if grown := [name for name in checkpoint.weights if name.startswith(("image:backbone.", "image:image_encoder."))]:
        raise ValueError(
            f"{checkpoint.path} embeds photographs by a network of its own ({grown[0]}, ...); only models on "
            "precomputed regions can be imported"
        )
    for name in ("no_imgnorm", "no_txtnorm"):
        _demand(options, name, False)
    rnn = checkpoint.weight("image:gpool.gru.weight_ih_l0")
    gpo = {"name": "gpo", "code_dim": rnn.shape[1], "hidden_dim": rnn.shape[0] // 3, "temperature": 0.1}
    text, words = _text(checkpoint, normalize=False)
    names = (
        *IMAGE,
        (r"image_encoder\.hidden\.(\w+)", r"image:mlp.layers.0.\1"),
        (r"image_encoder\.output\.(\w+)", r"image:mlp.layers.1.\1"),
        (r"image_encoder\.norm\.(\w+)", r"image:mlp.bns.0.\1"),
        (r"head\.image_pooler\.rnn\.(\w+)", r"image:gpool.gru.\1"),
        (r"head\.image_pooler\.linear\.(\w+)", r"image:gpool.linear.\1"),
        (r"head\.caption_pooler\.rnn\.(\w+)", r"text:gpool.gru.\1"),
        (r"head\.caption_pooler\.linear\.(\w+)", r"text:gpool.linear.\1"),
        *words,
    )
    hidden = len(checkpoint.weight("image:mlp.layers.0.bias"))
    image = _image(checkpoint, "residual_regions", hidden_dim=hidden, normalize=False)
    unused = (r"image:mlp\.bns\.1\.\w+", *UNUSED_OF_BERT)  # a batch norm behind the last layer, made and never called
    return Layout(image, text, {"name": "cosine", "pooling": gpo, "caption_pooling": gpo}, names, unused)


def _adapt(checkpoint: LegacyCheckpoint, options: PublishedOptions) -> Layout:
    nested = options.values.get("model", {}) if isinstance(options.values.get("model"), dict) else {}
    similarity, image_side = (nested.get(part, {}).get("params", {}) for part in ("similarity", "img_enc"))
    direction = "i2t" if "sim:adapt_txt.fc_gamma.0.weight" in checkpoint.weights else "t2i"
    gamma = options.values.get("gamma", similarity.get("gamma"))
    if gamma is None:
        raise ValueError(f"{checkpoint.path} does not say which gamma it was trained with; give --gamma")
    adapted = "adapt_txt" if direction == "i2t" else "adapt_img"
    glove = checkpoint.weight("text:embed.glove.weight")
    weights = {**checkpoint.weights, "text:embed.weight": checkpoint.weight("text:embed.embed.weight")}
    text = _words(checkpoint._replace(weights=weights), normalize=True, fixed_dim=glove.shape[1])
    names = (
        *IMAGE,
        (r"text_encoder\.embedding\.weight", "text:embed.embed.weight"),
        (r"text_encoder\.fixed\.weight", "text:embed.glove.weight"),
        WORDS[1],
        (r"head\.norm\.(\w+)", r"sim:norm.norm.\1"),
        (r"head\.gain\.(\w+)", rf"sim:{adapted}.fc_gamma.0.\1"),
        (r"head\.shift\.(\w+)", rf"sim:{adapted}.fc_beta.0.\1"),
    )
    image = _image(checkpoint, normalize=not image_side.get("no_imgnorm", False), slope=0.1)
    head = {"name": "adapt", "direction": direction, "temperature": float(gamma), "pooling": "mean"}
    return Layout(image, text, head, names)


_LAYOUTS: dict[str, Callable[[LegacyCheckpoint, PublishedOptions], Layout]] = {
    "sgraf": _sgraf,
    "chan": _chan,
    "naaf": _naaf,
    "gpo": _gpo,
    "adapt": _adapt,
}
