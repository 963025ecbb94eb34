"""Matcher: an image encoder, a text encoder and a head. Two towers embed, a head compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn
from tqdm import tqdm

from xmodal.data import Vocabulary
from xmodal.data.vocabulary import END, PAD, SPECIAL_WORDS, START
from xmodal.embedder import Embedder as Embedder
from xmodal.encoders.bert import BERTEncoder
from xmodal.encoders.gru import GRUEncoder
from xmodal.encoders.regions import RegionProjection
from xmodal.heads import HEADS, Attention
from xmodal.names import build, find, options_of, storable
from xmodal.objectives.captioning import Captioner
from xmodal.pretrained import Pretrained
from xmodal.scoring import score_all
from xmodal.scoring.blocks import bar_options, result_dtype
from xmodal.scoring.memory import check_budget, fill_matrix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.data import RegionStore
    from xmodal.data.vocabulary import TokenBatch
    from xmodal.encoders.region_extractor import RegionExtractor
    from xmodal.heads import Head

IMAGE_ENCODERS: dict[str, type[nn.Module]] = {"regions": RegionProjection}
TEXT_ENCODERS: dict[str, type[nn.Module]] = {"gru": GRUEncoder, "bert": BERTEncoder}
CAPTIONERS: dict[str, type[nn.Module]] = {"captioner": Captioner}


def needs_vocabulary(text: Mapping[str, Any]) -> bool:
    """Whether the text encoder that these options name numbers words by a vocabulary; others bring a tokenizer.

    Example:
        >>> from xmodal.model import needs_vocabulary
        >>> needs_vocabulary({"name": "gru", "dim": 1024}), needs_vocabulary({"name": "bert"})
        (True, False)
    """
    return "vocabulary_size" in options_of(find("text encoder", TEXT_ENCODERS, text.get("name"))).named


class Tokenizer(Protocol):
    """Turns captions into padded numbers: `xmodal.data.Vocabulary`, or the subwords of a transformer."""

    @property
    def words(self) -> list[str]:
        """Every word or subword, in the order of its number."""
        ...

    def __call__(self, captions: Sequence[str], /) -> TokenBatch:
        """Numbers and mask, padded to the longest caption."""
        ...


class EncodedSet(NamedTuple):
    """Encoded images or captions, padded to the longest: what a head takes."""

    items: Float[Tensor, "set item dim"]
    mask: Bool[Tensor, "set item"]


class Matcher(Pretrained, library_name="xmodal", license="apache-2.0"):
    """Matches images, given as region features, with captions.

    Args:
        image: `{"name": "regions", "input_dim": 2048, "dim": 1024, ...}`, the options of an image encoder.
        text: `{"name": "gru", ...}` or `{"name": "bert", "model": ..., ...}`; `dim` is the image encoder's.
        head: `{"name": "scan", "temperature": 9.0, ...}`, the options of a head in `xmodal.heads.HEADS`, or
            `{"name": "package.module:Class", ...}` for one of your own; `dim` is the image encoder's.
        vocabulary: words as for `xmodal.data.Vocabulary`, for text encoders that have no tokenizer of their own.
        extractor: what made the region features, so that `score` can take image files: the name of an extractor in
            `xmodal.encoders.extractors.EXTRACTORS`, or `{"name": ..., **options}` (`RegionStore.extractor`); None if
            they came from elsewhere.
        captioner: options of an `xmodal.objectives.captioning.Captioner` that is trained jointly and lets the matcher
            write captions (VSRN); None for none. Needs a vocabulary and a head with `reason` and `summarize`.

    Raises:
        ValueError: for an unknown name or option, with the nearest one that exists, for parts of different dim, and for
            a vocabulary that is missing or not wanted.

    Example:
        >>> import torch
        >>> from xmodal.model import Matcher
        >>> matcher = Matcher(
        ...     image={"name": "regions", "input_dim": 8, "dim": 16},
        ...     text={"name": "gru", "dim": 16, "word_dim": 4},
        ...     head={"name": "scan", "aggregation": "mean"},
        ...     vocabulary=["<pad>", "<start>", "<end>", "<unk>", "a", "dog"],
        ... )
        >>> matcher.score([torch.randn(36, 8), torch.randn(10, 8)], ["a dog", "a cat", "dog"]).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        image: dict[str, Any],
        text: dict[str, Any],
        head: dict[str, Any],
        vocabulary: list[str] | None = None,
        extractor: str | dict[str, Any] | None = None,
        captioner: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = build("image encoder", IMAGE_ENCODERS, image)
        dim = self.image_encoder.dim
        words = Vocabulary(vocabulary) if vocabulary is not None else None
        if needs_vocabulary(text) and words is None:
            raise ValueError(f"text encoder {text['name']!r} needs a vocabulary; pass vocabulary=list_of_words")
        if words is not None and not needs_vocabulary(text):
            raise ValueError(f"text encoder {text['name']!r} has a tokenizer of its own; leave the vocabulary out")
        _check_same_dim(dim, text.get("dim", dim))
        known = {"dim": dim} if words is None else {"dim": dim, "vocabulary_size": len(words)}
        self.text_encoder = build("text encoder", TEXT_ENCODERS, text, known)
        self.tokenizer: Tokenizer = words if words is not None else self.text_encoder.tokenizer
        _check_same_dim(dim, self.text_encoder.dim)
        self.head = build("head", HEADS, head, {"dim": dim})
        self.extractor = extractor
        self.captioner = None if captioner is None else _build_captioner(captioner, self.head, words)

    def encode_images(
        self, region_features: Float[Tensor, "image region input_dim"]
    ) -> Float[Tensor, "image region dim"]:
        """Region features into the joint space."""
        return self.image_encoder(region_features)

    def encode_captions(
        self, tokens: Int[Tensor, "caption word"], word_mask: Bool[Tensor, "caption word"]
    ) -> Float[Tensor, "caption word dim"]:
        """Token ids into the joint space."""
        return self.text_encoder(tokens, word_mask)

    def forward(
        self,
        region_features: Float[Tensor, "image region input_dim"],
        tokens: Int[Tensor, "caption word"],
        region_mask: Bool[Tensor, "image region"],
        word_mask: Bool[Tensor, "caption word"],
    ) -> Float[Tensor, "image caption"]:
        """Scores of every image against every caption."""
        regions, words = self.encode_images(region_features), self.encode_captions(tokens, word_mask)
        return self.head(regions, words, region_mask, word_mask)

    @torch.inference_mode()
    def embed_store(
        self, store: RegionStore, *, images: range | None = None, batch_size: int = 128, progress: bool = False
    ) -> EncodedSet:
        """Encode the images of a store, in its order: all, or some of them."""
        images = range(len(store)) if images is None else images
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]

        def encode(images: range) -> EncodedSet:
            features, mask = (field.to(self.device) for field in store.batch(images))
            return EncodedSet(self.encode_images(features), mask)

        return _join(map(encode, tqdm(batches, "images", unit="batch", **bar_options(progress))))

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> EncodedSet:
        """Tokenize and encode captions, in their order.

        Raises:
            ValueError: there is no caption, or one has no words.
        """
        batches = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]

        def encode(some: Sequence[str]) -> EncodedSet:
            tokens, mask = (field.to(self.device) for field in self.tokenizer(some))
            return EncodedSet(self.encode_captions(tokens, mask), mask)

        return _join(map(encode, tqdm(batches, "captions", unit="batch", **bar_options(progress))))

    def score_all(
        self,
        store: RegionStore,
        captions: Sequence[str],
        *,
        images: range | None = None,
        budget_bytes: int | None = None,
        progress: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> Float[Tensor, "image caption"]:
        """Scores of every image of a store, or of some of them, against every caption.

        Images are encoded and scored part by part, as many at a time as fit the budget; captions are encoded once and
        kept. Options and errors are those of `xmodal.scoring.score_all`.
        """
        sentences = self.embed_captions(captions, progress=progress)
        options |= {"budget_bytes": budget_bytes, "progress": progress}
        image_bytes = max(1, store.max_regions * sentences.items[0, 0].nbytes)
        part = max(1, check_budget(budget_bytes, self.device) // image_bytes)

        chosen = range(len(store)) if images is None else images

        def fill(scores: Tensor) -> None:
            for start in range(0, len(chosen), part):
                regions, mask = self.embed_store(store, images=chosen[start : start + part], progress=progress)
                scores[start : start + part] = score_all(
                    self.head, regions, sentences.items, mask, sentences.mask, **options
                )

        dtype = result_dtype(options.get("dtype") or sentences.items.dtype)
        return fill_matrix((len(chosen), len(captions)), dtype, out, overwrite, fill)

    @torch.inference_mode()
    def score(
        self,
        images: Tensor | np.ndarray | str | Path | list[Any] | tuple[Any, ...],
        captions: str | Sequence[str],
    ) -> Float[Tensor, "image caption"]:
        """Scores of one image or many against one sentence or many.

        Args:
            images: region features `(region, dim)` of one image (a row of a region store, an array), the path of an
                image file, or a list of these. Files need a matcher whose `extractor` is known.
            captions: a sentence or a list of sentences.

        Raises:
            ValueError: for files given to a matcher that does not know its extractor, features of the wrong shape,
                an empty sentence, or an empty list.
            FileNotFoundError: for a file that is not there.
        """
        regions = self._encode_given(images)
        sentences = self.embed_captions([captions] if isinstance(captions, str) else captions)
        return score_all(self.head, regions.items, sentences.items, regions.mask, sentences.mask)

    @torch.inference_mode()
    def caption(
        self, images: Tensor | np.ndarray | str | Path | list[Any] | tuple[Any, ...], *, beam_size: int = 5
    ) -> list[str]:
        """Sentences that the jointly trained captioner writes for images, given as for `score`.

        Args:
            images: as for `score`.
            beam_size: beginnings followed at every word; 1 is greedy.

        Raises:
            ValueError: if the matcher has no captioner, and as for `score`.
        """
        if self.captioner is None:
            raise ValueError("this matcher has no captioner; train one with model.captioner, as the VSRN recipes do")
        regions = self._encode_given(images)
        states = self.head.reason(regions.items, regions.mask)
        written = self.captioner.beam(states, regions.mask, beam_size=beam_size).tokens
        words = self.tokenizer.words
        return [
            " ".join(words[token] for token in row if words[token] not in SPECIAL_WORDS) for row in written.tolist()
        ]

    @torch.inference_mode()
    def attention(self, region_features: Float[Tensor, "region input_dim"], caption: str) -> Attention:
        """Where each token of one caption looks among the regions of one image; see `Head.attention`."""
        tokens, word_mask = self.tokenizer([caption])
        regions = self.encode_images(region_features[None].to(self.device))
        words = self.encode_captions(tokens.to(self.device), word_mask.to(self.device))
        return self.head.attention(regions, words, None, word_mask.to(self.device))

    def token_words(self, caption: str) -> list[str]:
        """The tokens of a caption as the model knows them, in the order of `attention`'s rows."""
        words = self.tokenizer.words
        return [words[token] for token in self.tokenizer([caption]).tokens[0].tolist()]

    def _encode_given(self, images: Any) -> EncodedSet:
        """Encode what a user gave as one image or many."""
        if isinstance(images, (str, Path)) or (not isinstance(images, (list, tuple)) and images.ndim == 2):
            images = [images]
        return _join(
            EncodedSet(
                self.encode_images(item[None].to(self.device)),
                torch.ones(1, len(item), dtype=torch.bool, device=self.device),
            )
            for item in self._region_features(list(images))
        )

    def _region_features(self, images: list[Any]) -> list[Float[Tensor, "region input_dim"]]:
        files = [Path(image) for image in images if isinstance(image, (str, Path))]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"image {file} does not exist")
        extracted = iter(self._extract(files)) if files else iter(())
        features = [
            next(extracted) if isinstance(image, (str, Path)) else torch.as_tensor(image).float() for image in images
        ]
        for position, item in enumerate(features):
            if item.ndim != 2 or len(item) == 0:
                raise ValueError(
                    f"image {position}: region features must be (region, dim) with at least one region, "
                    f"got {tuple(item.shape)}"
                )
        return features

    def _extract(self, files: list[Path]) -> list[Float[Tensor, "region input_dim"]]:
        from xmodal.data.images import read_image

        return [regions.features for regions in self.build_extractor()([read_image(file) for file in files])]

    def build_extractor(self) -> RegionExtractor:
        """What finds the regions of photographs in the way in which those were found that the matcher was trained on.

        Raises:
            ValueError: the matcher does not know its extractor.
            FileNotFoundError: the extractor's weights are not on this machine; the message says what to download.
        """
        from xmodal.encoders.extractors import EXTRACTORS

        options = self.extractor if isinstance(self.extractor, dict) else {"name": self.extractor}
        if options["name"] not in EXTRACTORS:
            raise ValueError(
                f"this matcher was trained on region features of extractor {options['name']!r}, which is not one of "
                f"{', '.join(EXTRACTORS)}; extract the features yourself and pass them instead of image files"
            )
        return build("extractor", EXTRACTORS, options)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if isinstance(self.text_encoder, BERTEncoder):
            self.text_encoder.save_architecture(save_directory / "transformer")

    def _options_to_save(self, options: dict[str, Any]) -> dict[str, Any]:
        parts = {"image": ("image encoder", IMAGE_ENCODERS), "text": ("text encoder", TEXT_ENCODERS)}
        parts |= {"head": ("head", HEADS), "captioner": ("captioner", CAPTIONERS)}
        defaults = {"captioner": {"name": "captioner"}}
        chosen = {part: defaults.get(part, {}) | options[part] for part in parts if options.get(part) is not None}
        return {**options, **{part: storable(*parts[part], given) for part, given in chosen.items()}}

    @classmethod
    def _options_to_load(cls, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
        if (folder / "transformer").is_dir():
            options["text"] = {**options["text"], "model": str(folder / "transformer"), "load_weights": False}
        return options


def _build_captioner(options: dict[str, Any], head: Head, vocabulary: Vocabulary | None) -> Captioner:
    if not hasattr(head, "reason") or vocabulary is None:
        raise ValueError(
            f"a captioner needs a vocabulary and a head with region states, as VSRN has; the head is {head}"
        )
    start, end, pad = (vocabulary.words.index(word) for word in (START, END, PAD))
    known = {"dim": head.dim, "vocabulary_size": len(vocabulary), "start": start, "end": end, "pad": pad}
    return build("captioner", CAPTIONERS, {"name": "captioner", **options}, known)


def _check_same_dim(image: int, text: int) -> None:
    if image != text:
        raise ValueError(
            f"the image encoder has dim {image} and the text encoder dim {text}; "
            "both encode into one joint space, so give them the same dim"
        )


def _join(batches: Iterable[EncodedSet]) -> EncodedSet:
    """Concatenate batches that were padded to different lengths."""
    together = list(batches)
    if not together:
        raise ValueError("there is nothing to encode: pass at least one image and one caption")
    items, masks = zip(*together, strict=True)
    longest = max(mask.shape[1] for mask in masks)
    pad = nn.functional.pad
    return EncodedSet(
        torch.cat([pad(i, (0, 0, 0, longest - i.shape[1])) for i in items]),
        torch.cat([pad(m, (0, longest - m.shape[1])) for m in masks]),
    )
