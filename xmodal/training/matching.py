"""Image-text matching as the trainer's task: region stores and captions, a matcher, a ranking objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from xmodal.data import PairDataset, Vocabulary
from xmodal.data.split import Split, open_source, open_vocabulary, split_captions
from xmodal.data.tokenized import KeptTokens
from xmodal.data.word_vectors import load_word_vectors
from xmodal.evaluation.matchers import evaluate_matchers
from xmodal.evaluation.protocols import protocol_folds
from xmodal.model import IMAGE_ENCODERS, Matcher, needs_vocabulary
from xmodal.names import build, fill, find
from xmodal.objectives import OBJECTIVES
from xmodal.scoring.triton import check_triton, kernel_options
from xmodal.signatures import options_of
from xmodal.training.adversary import Adversary
from xmodal.training.augmentation import Corruption, repeated, shrink
from xmodal.training.basin import BasinWatch
from xmodal.training.checkpoints import fingerprint, goes_on
from xmodal.training.sampler import ShuffledBatches, steps_in_epoch
from xmodal.training.starting import begin_with
from xmodal.training.step import MatchingStep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from xmodal.data import PairBatch
    from xmodal.data.image_source import ImageSource
    from xmodal.training.config import DataConfig, ModelConfig, TrainConfig


class MatchingTask:
    """Train a matcher on region features and captions, and pick it by rsum on the validation split.

    Raises:
        FileNotFoundError: for data that is not there.
        ValueError: for a configuration or data that cannot work.

    >>> from pathlib import Path
    >>> from xmodal.data import Caption, RegionStoreWriter, Vocabulary, save_captions
    >>> from xmodal.training.config import DataConfig, ModelConfig, TrainConfig
    >>> captions = []
    >>> for split in ("train", "dev"):
    ...     with RegionStoreWriter(f"{split}.h5", dim=4, extractor="by hand") as writer:
    ...         for number, word in enumerate(("dog", "cat")):
    ...             writer.write(word, torch.eye(4)[number : number + 2])
    ...             captions.append(Caption(word, f"{split} {word}", f"a {word}", split))
    >>> save_captions("captions.jsonl", captions)
    >>> Vocabulary(["a", "dog", "cat"]).save("vocabulary.json")
    >>> model = ModelConfig({"name": "regions", "dim": 8}, {"name": "gru", "dim": 8, "word_dim": 4})
    >>> task = MatchingTask(TrainConfig(data=DataConfig(Path(".")), model=model), torch.device("cpu"))
    >>> len(task.dataset), task.validate()["t2i"]["R@5"]
    (2, 100.0)
    """

    def __init__(self, config: TrainConfig, device: torch.device, processes: int = 1) -> None:
        self.config = config
        self.workers = config.data.workers
        data = config.data
        source, validation_source = (
            open_source(data.folder, split, data.source, as_stored=True) for split in (data.train, data.validation)
        )
        _check_alike(source, validation_source, data)
        validation = Split.of(validation_source, split_captions(data.folder, data.validation))
        self.validation = validation.first(data.validation_images or len(validation_source))
        # A protocol that does not fit is refused now and not after the first epoch.
        protocol_folds(self.validation.relevance, config.protocol)
        captions = split_captions(data.folder, data.train)
        self.model = _begun(config, source)
        dim = self.model.image_encoder.dim
        # What cannot be built is refused before all captions are tokenized.
        steps = steps_in_epoch(_batches(config, len(captions), 0, processes), config.accumulate)
        objective = _build_objective(config, dim, steps)
        self.adversary = None
        if config.adversary:
            self.adversary = Adversary.build(config.adversary, dim=dim, pairs=len(captions), device=device)
        kept = KeptTokens(data.folder, self.model.tokenizer_identity)
        self.dataset = PairDataset(source, captions, self.model.tokenizer, kept=kept, progress=config.progress)
        self._corrupt = None
        if data.corrupt_words:
            subwords = not needs_vocabulary(config.model.text)
            self._corrupt = Corruption.of(data.corrupt_words, self.model.tokenizer.words, subwords=subwords)
        self.fingerprint = fingerprint(
            source.image_id,
            (caption.caption_id for caption in captions),
            self.validation.source.image_id,
            (caption.caption_id for caption in self.validation.captions),
            self.model.tokenizer.words,
        )
        if config.scoring == "triton":
            check_triton(torch.float32, device)
            kernel_options(self.model.head)
        self._basin = BasinWatch()
        self.step_module = MatchingStep(self.model, objective, config.model.captioning_weight, config.scoring)

    def batches(self, process: int, processes: int) -> ShuffledBatches:
        """Every caption once an epoch, shuffled."""
        return _batches(self.config, len(self.dataset), process, processes)

    def prepare(self, batch: PairBatch) -> PairBatch:
        """What the data's options do to a batch at random, view by view."""
        data = self.config.data
        batch = repeated(batch, data.views) if data.views > 1 else batch
        batch = batch if self._corrupt is None else self._corrupt(batch)
        return shrink(batch, data.drop_regions, data.drop_words)

    def describe(self, group: list[PairBatch]) -> str:
        """The images and captions of some batches."""
        images, captions = (torch.cat([getattr(b, field) for b in group]).tolist() for field in ("image", "caption"))
        return f"images {images} and captions {captions}"

    def warning(self, terms: Mapping[str, float]) -> str | None:
        """That the run sits in the basin of attention that clips; see `xmodal.training.basin`."""
        comparison = self.model.head.comparison
        if comparison is not None and not comparison.clips:
            return None
        return self._basin.see(terms["alignment/mean_cosine"], terms["alignment/positive_share"])

    def validate(self) -> dict[str, Any]:
        """Results under the configured protocol."""
        split, options = self.validation, {"protocol": self.config.protocol, "progress": self.config.progress}
        return evaluate_matchers({"": self.model}, split.source, split.sentences, split.relevance, **options)[""]

    def summary(self, results: dict[str, Any]) -> str:
        """Recalls in both directions, and their sum."""
        recalls = "  ".join(
            f"{way} " + " ".join(f"{results[way][f'R@{k}']:.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")
        )
        return f"{recalls}  rsum {results['rsum']:.1f}"


def _check_alike(train: ImageSource, validation: ImageSource, config: DataConfig) -> None:
    """Refuse a validation split that is not like what is trained on, and augmentation that the images do not allow."""
    if train.sizes != validation.sizes:
        raise ValueError(
            f"{config.folder}: split {config.train!r} has images of {_said(train.sizes)} and split "
            f"{config.validation!r} of {_said(validation.sizes)}; extract both with the same extractor"
        )
    if config.drop_regions > 0 and not train.has_regions:
        raise ValueError(
            f"data.drop_regions is {config.drop_regions}, but {type(train).__name__} gives no regions that could be "
            "left out; set it to 0"
        )


def _batches(config: TrainConfig, captions: int, process: int, processes: int) -> ShuffledBatches:
    return ShuffledBatches(captions, config.batch_size, config.seed, process, processes)


def _build_objective(config: TrainConfig, dim: int, steps: int) -> nn.Module:
    """The objective of a configuration; what the data decides (dim, steps of an epoch, views) is filled in."""
    views = config.data.views
    takes = options_of(find("objective", OBJECTIVES, config.objective.get("name"))).named
    if views > 1 and "views" not in takes:
        raise ValueError(
            f"data.views is {views}, but the objective {config.objective.get('name')!r} takes every row for a pair of "
            "its own; set it to 1, or choose the objective 'esa'"
        )
    return build("objective", OBJECTIVES, config.objective, {"dim": dim, "steps_per_epoch": steps, "views": views})


def _said(sizes: Mapping[str, int]) -> str:
    return " and ".join(f"{name} {size}" for name, size in sizes.items())


def _begun(config: TrainConfig, source: ImageSource) -> Matcher:
    """The matcher of a run, as it begins."""
    folder = config.model.start_from
    earlier = None if folder is None else Matcher.from_pretrained(folder)
    matcher = _build_matcher(config.model, source, config.data, earlier)
    if folder is not None and earlier is not None and not goes_on(config):
        begin_with(matcher, earlier, folder, silent=not config.progress)
    return matcher


def _build_matcher(config: ModelConfig, source: ImageSource, data: DataConfig, earlier: Matcher | None) -> Matcher:
    """The matcher of a configuration; what the data decides (dim, vocabulary, extractor) is read from the data.

    What goes on from an earlier matcher keeps its words.
    """
    vocabulary = None
    if needs_vocabulary(config.text):
        known = None if earlier is None else earlier.tokenizer
        vocabulary = known if isinstance(known, Vocabulary) else open_vocabulary(data.folder)
    matcher = Matcher(
        image=fill("image encoder", IMAGE_ENCODERS, config.image, source.sizes),
        text=config.text,
        head=config.head,
        vocabulary=vocabulary.config if vocabulary is not None else None,
        extractor=source.extractor,
        captioner=config.captioner or None,
    )
    if config.text.get("fixed_dim") and config.word_vectors is None and earlier is None:
        raise ValueError(
            f"model.text.fixed_dim is {config.text['fixed_dim']}, but there are no vectors for it: name a file with "
            "model.word_vectors, or leave fixed_dim out"
        )
    if config.word_vectors is not None:
        if earlier is not None:
            raise ValueError("model.word_vectors and model.start_from both say what words begin with; give one of them")
        if vocabulary is None:
            raise ValueError("word_vectors start a text encoder with a vocabulary; a transformer brings its own")
        vectors, found = load_word_vectors(config.word_vectors, vocabulary)
        matcher.text_encoder.start_from(vectors, found)
    return matcher
