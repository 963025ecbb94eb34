"""Matcher: an image encoder, a text encoder and a head. Two towers embed, a head compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from tqdm import tqdm

from xmodal.data import Vocabulary
from xmodal.data.image_source import in_float32
from xmodal.data.region_store import RegionBatch
from xmodal.data.strings import refuse_string
from xmodal.data.vocabulary import END, PAD, SPECIAL_WORDS, START
from xmodal.embedder import Embedder as Embedder
from xmodal.encoders.attending_regions import AttendingRegions
from xmodal.encoders.base import EncodedSet, ImageEncoder, TextEncoder, Tokenizer
from xmodal.encoders.bert import BERTEncoder
from xmodal.encoders.gated_regions import GatedRegions
from xmodal.encoders.gru import GRUEncoder
from xmodal.encoders.pixels import PixelTower
from xmodal.encoders.regions import RegionProjection
from xmodal.encoders.residual_regions import ResidualRegions
from xmodal.given import given_batches, given_captions
from xmodal.heads import HEADS, Attention
from xmodal.inference import evaluating
from xmodal.names import build, find, storable
from xmodal.numerics import check_count
from xmodal.objectives.captioning import Captioner
from xmodal.pretrained import Pretrained
from xmodal.scoring import score_all
from xmodal.scoring.blocks import bar_options, result_dtype
from xmodal.scoring.memory import check_budget, fill_matrix
from xmodal.signatures import options_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xmodal.data.image_source import ImageSource
    from xmodal.given import GivenImage, GivenImages
    from xmodal.heads import Explanation, Head

IMAGE_ENCODERS: dict[str, type[ImageEncoder]] = {
    "regions": RegionProjection,
    "gated_regions": GatedRegions,
    "residual_regions": ResidualRegions,
    "attending_regions": AttendingRegions,
    "pixels": PixelTower,
}
TEXT_ENCODERS: dict[str, type[TextEncoder]] = {"gru": GRUEncoder, "bert": BERTEncoder}
CAPTIONERS: dict[str, type[nn.Module]] = {"captioner": Captioner}

BATCH_SIZE = 128
"""Images that are encoded at once where nothing else is said."""

ARCHITECTURE = "transformer"
"""Folder of a saved matcher for what building its text encoder takes besides its options."""


def needs_vocabulary(text: Mapping[str, Any]) -> bool:
    """Whether the text encoder that these options name numbers words by a vocabulary; others bring a tokenizer.

    Example:
        >>> from xmodal.model import needs_vocabulary
        >>> needs_vocabulary({"name": "gru", "dim": 1024}), needs_vocabulary({"name": "bert"})
        (True, False)
    """
    return "vocabulary_size" in options_of(find("text encoder", TEXT_ENCODERS, text.get("name"))).named


class Matcher(Pretrained, library_name="xmodal", license="apache-2.0"):
    """Matches images, given as region features, with captions.

    Args:
        image: `{"name": "regions", "input_dim": 2048, "dim": 1024, ...}`, the options of an image encoder.
        text: `{"name": "gru", ...}` or `{"name": "bert", "model": ..., ...}`; `dim` is the image encoder's.
        head: `{"name": "scan", "temperature": 9.0, ...}`, the options of a head in `xmodal.heads.HEADS`, or
            `{"name": "package.module:Class", ...}` for one of your own; `dim` is the image encoder's.
        vocabulary: words as for `xmodal.data.Vocabulary`, for text encoders that have no tokenizer of their own; or
            `{"words": ..., "segmenter": ...}` (`Vocabulary.config`).
        extractor: what made the region features, so that `score` can take image files: the name of an extractor in
            `xmodal.encoders.extractors.EXTRACTORS`, or `{"name": ..., **options}` (`RegionStore.extractor`); None if
            they came from elsewhere.
        captioner: options of an `xmodal.objectives.captioning.Captioner` that is trained jointly and lets the matcher
            write captions (VSRN); None for none. Needs a vocabulary and a head whose `has_region_states` is true.

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
        vocabulary: list[str] | dict[str, Any] | None = None,
        extractor: str | dict[str, Any] | None = None,
        captioner: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = build("image encoder", IMAGE_ENCODERS, image)
        dim = self.image_encoder.dim
        words = Vocabulary.from_config(vocabulary) if vocabulary is not None else None
        if needs_vocabulary(text) and words is None:
            raise ValueError(f"text encoder {text['name']!r} needs a vocabulary; pass vocabulary=list_of_words")
        if words is not None and not needs_vocabulary(text):
            raise ValueError(f"text encoder {text['name']!r} has a tokenizer of its own; leave the vocabulary out")
        _check_same_dim(dim, text.get("dim", dim))
        known = {"dim": dim} if words is None else {"dim": dim, "vocabulary_size": len(words)}
        self.text_encoder = build("text encoder", TEXT_ENCODERS, text, known)
        self.tokenizer: Tokenizer = words if words is not None else self.text_encoder.tokenizer
        self._vocabulary = words
        _check_same_dim(dim, self.text_encoder.dim)
        self.head = build("head", HEADS, head, {"dim": dim})
        self.extractor = extractor
        self.captioner = None if captioner is None else _build_captioner(captioner, self.head, words)

    def encode_images(
        self,
        region_features: Float[Tensor, "image region input_dim"],
        region_mask: Bool[Tensor, "image region"] | None = None,
    ) -> Float[Tensor, "image region dim"]:
        """Bare region features into the joint space; without a mask all are real. The encoder itself takes batches."""
        if region_mask is None:
            region_mask = torch.ones(region_features.shape[:2], dtype=torch.bool, device=region_features.device)
        items, _ = self.image_encoder(RegionBatch(region_features, region_mask))
        return items

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
        regions = EncodedSet(*self.image_encoder(RegionBatch(region_features, region_mask)))
        return self.head(regions.items, self.encode_captions(tokens, word_mask), regions.mask, word_mask)

    def embed_store(
        self, store: ImageSource, *, images: range | None = None, batch_size: int = BATCH_SIZE, progress: bool = False
    ) -> EncodedSet:
        """Encode the images of a source, a region store say, in its order: all, or some of them; in evaluation mode.

        Raises:
            ValueError: there is no image, or `batch_size` is not positive.
        """
        check_count("batch_size", batch_size)
        images = range(len(store)) if images is None else images
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        with evaluating(self):
            bar = tqdm(batches, "images", unit="batch", **bar_options(progress))
            return _join(self._encode(store.batch(batch)) for batch in bar)

    def embed_captions(self, captions: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> EncodedSet:
        """Tokenize and encode captions, in their order, in evaluation mode.

        Raises:
            ValueError: there is no caption, one has no words or is no text, or `batch_size` is not positive; or one
                string, which is no list of captions.
        """
        check_count("batch_size", batch_size)
        refuse_string("captions", captions, "captions")
        captions = given_captions(captions)
        batches = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]

        def encode(some: Sequence[str]) -> EncodedSet:
            tokens, mask = send_to_device(self.tokenizer(some), self.device)
            return EncodedSet(self.encode_captions(tokens, mask), mask)

        with evaluating(self):
            return _join(map(encode, tqdm(batches, "captions", unit="batch", **bar_options(progress))))

    def embed_images(self, images: GivenImages) -> EncodedSet:
        """Encode images that a user gives, in their order, in evaluation mode; argument and errors as for `score`."""
        with evaluating(self):
            return self._encode_given(images)

    def score_all(
        self,
        store: ImageSource,
        captions: Sequence[str],
        *,
        images: range | None = None,
        budget_bytes: int | None = None,
        progress: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> Float[Tensor, "image caption"]:
        """Scores of every image of a source, or of some of them, against every caption, in evaluation mode.

        Images are encoded and scored part by part, as many at a time as fit the budget; captions are encoded once and
        kept. Options and errors are those of `xmodal.scoring.score_all`.

        Args:
            store: the images: a region store, a folder of pixels, or another `xmodal.data.image_source.ImageSource`.
            captions: the captions.
            images: positions in the source; None for all.
            budget_bytes: memory that the encoded images of a part, and scoring it, may take.
            progress: show bars.
            out: `.npy` file to write the scores to, for results larger than memory.
            overwrite: replace `out` if it exists.
            options: as for `xmodal.scoring.score_all`.
        """
        chosen = range(len(store)) if images is None else images
        budget = check_budget(budget_bytes, self.device)
        options |= {"budget_bytes": budget_bytes, "progress": progress}
        with evaluating(self):
            sentences = self.embed_captions(captions, progress=progress)

            def fill(scores: Tensor) -> None:
                start = 0
                for regions, mask in self._encode_parts(store, chosen, budget, progress):
                    part = score_all(self.head, regions, sentences.items, mask, sentences.mask, **options)
                    scores[start : start + len(part)] = part
                    start += len(part)

            dtype = result_dtype(options.get("dtype") or sentences.items.dtype)
            return fill_matrix((len(chosen), len(captions)), dtype, out, overwrite, fill)

    def score(self, images: GivenImages, captions: str | Sequence[str]) -> Float[Tensor, "image caption"]:
        """Scores of one image or many against one sentence or many, in evaluation mode.

        Args:
            images: region features `(region, dim)` of one image (a row of a region store, an array), the path of an
                image file, a batch of an image source, or a list of these. Files need a matcher whose `extractor` is
                known. An encoder that takes pixels takes `(3, height, width)`.
            captions: a sentence or a list of sentences.

        Raises:
            ValueError: for files given to a matcher that does not know its extractor, features of the wrong shape,
                an empty sentence, an empty list, or what is no image and no sentence at all.
            FileNotFoundError: for a file that is not there.
        """
        with evaluating(self):
            regions = self._encode_given(images)
            sentences = self.embed_captions(given_captions(captions))
            return score_all(self.head, regions.items, sentences.items, regions.mask, sentences.mask)

    def caption(self, images: GivenImages, *, beam_size: int = 5) -> list[str]:
        """Sentences that the jointly trained captioner writes for images, in evaluation mode.

        Args:
            images: as for `score`.
            beam_size: beginnings followed at every word; 1 is greedy.

        Raises:
            ValueError: if the matcher has no captioner, and as for `score`.
        """
        if self.captioner is None:
            raise ValueError("this matcher has no captioner; train one with model.captioner, as the VSRN recipes do")
        with evaluating(self):
            regions = self._encode_given(images)
            states = self.head.image_stages(regions.items, regions.mask).states
            written = self.captioner.beam(states, regions.mask, beam_size=beam_size).tokens
        words = self.tokenizer.words
        return [
            " ".join(words[token] for token in row if words[token] not in SPECIAL_WORDS) for row in written.tolist()
        ]

    def attention(self, image: GivenImage, caption: str) -> Attention:
        """Where each token of one caption looks among the regions of one image, in evaluation mode.

        Args:
            image: as for `score`, but one.
            caption: the sentence.

        Returns:
            As `Head.attention` of one pair; its rows are the tokens of `token_words`.
        """
        with evaluating(self):
            regions, words = self._encode_one(image), self.embed_captions([caption])
            return self.head.attention(regions.items, words.items, regions.mask, words.mask)

    def explain(self, image: GivenImage, caption: str) -> tuple[Explanation, ...]:
        """Every way in which one caption and one image look at one another, in evaluation mode; see `Head.explain`.

        Args:
            image: as for `score`, but one.
            caption: the sentence.
        """
        with evaluating(self):
            regions, words = self._encode_one(image), self.embed_captions([caption])
            return self.head.explain(regions.items, words.items, regions.mask, words.mask)

    @property
    def tokenizer_identity(self) -> str | None:
        """A hash of all that the numbers of captions depend on; None if the text encoder does not know it."""
        return self.text_encoder.tokenizer_identity if self._vocabulary is None else self._vocabulary.identity()

    def token_words(self, caption: str) -> list[str]:
        """The tokens of a caption as the model knows them, in the order of `attention`'s rows."""
        words = self.tokenizer.words
        return [words[token] for token in self.tokenizer([caption]).tokens[0].tolist()]

    def _encode(self, batch: Any) -> EncodedSet:
        """A batch of a source or of given images into the joint space."""
        return EncodedSet(*self.image_encoder(in_float32(send_to_device(batch, self.device))))

    def _encode_given(self, images: GivenImages) -> EncodedSet:
        """What a user gave as one image or many into the joint space."""
        return _join(map(self._encode, given_batches(images, self.image_encoder, self.extractor)))

    def _encode_one(self, image: GivenImage) -> EncodedSet:
        """What a user gave as one image into the joint space."""
        encoded = self._encode_given([image])
        if len(encoded.mask) != 1:
            raise ValueError(f"a batch of {len(encoded.mask)} images was given; wanted one image")
        return encoded

    def _encode_parts(self, source: ImageSource, images: range, budget: int, progress: bool) -> Iterator[EncodedSet]:
        """Some images of a source, as many at a time as fit a budget of bytes, but at least one."""
        held: list[EncodedSet] = []
        start, batch_size = 0, 1
        with tqdm(total=len(images), desc="images", unit="image", **bar_options(progress)) as bar:
            while start < len(images):
                batch = self._encode(source.batch(images[start : start + batch_size]))
                fitting = max(1, budget // batch.items[0].nbytes)
                if fitting < len(batch.items):  # it holds an image of more regions than those before: again, in parts
                    batch_size = fitting
                    continue
                if held and _bytes_together([*held, batch]) > budget:
                    yield _join(held)
                    held = []
                held.append(batch)
                start += len(batch.items)
                bar.update(len(batch.items))
                batch_size = min(BATCH_SIZE, fitting)
        if held:
            yield _join(held)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        self.text_encoder.save_architecture(save_directory / ARCHITECTURE)

    def _options_to_save(self, options: dict[str, Any]) -> dict[str, Any]:
        stored = {
            "image": storable("image encoder", IMAGE_ENCODERS, options["image"]),
            "text": storable("text encoder", TEXT_ENCODERS, options["text"]),
            "head": storable("head", HEADS, options["head"]),
        }
        if options.get("captioner") is not None:
            stored["captioner"] = storable("captioner", CAPTIONERS, {"name": "captioner", **options["captioner"]})
        return {**options, **stored}

    @classmethod
    def _options_to_load(cls, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
        if options["image"].get("weights") is not None:
            options["image"] = {**options["image"], "weights": None}
        if (folder / ARCHITECTURE).is_dir():
            kind: Any = find("text encoder", TEXT_ENCODERS, options["text"].get("name"))
            options["text"] = kind.options_to_load(options["text"], folder / ARCHITECTURE)
        return options


def _build_captioner(options: dict[str, Any], head: Head, vocabulary: Vocabulary | None) -> Captioner:
    if not head.has_region_states or vocabulary is None:
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


def _bytes_together(batches: Sequence[EncodedSet]) -> int:
    """Bytes of the items of batches once they are padded to the longest."""
    longest = max(items.shape[1] for items, _ in batches)
    return sum(items.nbytes // items.shape[1] * longest for items, _ in batches)


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
