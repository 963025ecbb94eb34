"""Image-text matching as the trainer's task: region stores and captions, a matcher, a ranking objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from xmodal.data import PairDataset, RegionStore, Vocabulary, load_captions
from xmodal.data.captions import caption_image_index
from xmodal.data.word_vectors import load_word_vectors
from xmodal.evaluation import evaluate_protocol
from xmodal.model import IMAGE_ENCODERS, Matcher, needs_vocabulary
from xmodal.names import build, fill
from xmodal.objectives import OBJECTIVES
from xmodal.scoring.triton import check_triton, kernel_options
from xmodal.training.adversary import Adversary
from xmodal.training.augmentation import shrink
from xmodal.training.sampler import ShuffledBatches
from xmodal.training.step import MatchingStep

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from xmodal.data import PairBatch
    from xmodal.training.config import DataConfig, ModelConfig, TrainConfig


class MatchingTask:
    """Train a matcher on region features and captions, and pick it by rsum on the validation split.

    Raises:
        FileNotFoundError: for data that is not there.
        ValueError: for a configuration or data that cannot work.

    >>> from pathlib import Path
    >>> from xmodal.data import Caption, RegionStoreWriter, save_captions
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

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.workers = config.data.workers
        store, validation_store = (
            RegionStore(config.data.folder / f"{split}.h5") for split in (config.data.train, config.data.validation)
        )
        if store.dim != validation_store.dim:
            raise ValueError(
                f"{config.data.folder}: split {config.data.train!r} has region features of dim {store.dim} and split "
                f"{config.data.validation!r} of dim {validation_store.dim}; extract both with the same extractor"
            )
        self.validation = ValidationSplit(validation_store, config.data)
        # A protocol that does not fit is refused now and not after the first epoch.
        self.validation.evaluate(torch.zeros(1, 1).expand(self.validation.shape), config.protocol)
        captions = load_captions(config.data.folder / "captions.jsonl", config.data.train)
        self.model = _build_matcher(config.model, store, config.data)
        dim = self.model.image_encoder.dim
        # What cannot be built is refused before all captions are tokenized.
        objective = build("objective", OBJECTIVES, config.objective, {"dim": dim})
        self.adversary = None
        if config.adversary:
            self.adversary = Adversary.build(config.adversary, dim=dim, pairs=len(captions), device=device)
        self.dataset = PairDataset(store, captions, self.model.tokenizer)
        if config.scoring == "triton":
            check_triton(torch.float32, device)
            kernel_options(self.model.head)
        self.step_module = MatchingStep(self.model, objective, config.model.captioning_weight, config.scoring)

    def batches(self, process: int, processes: int) -> ShuffledBatches:
        """Every caption once an epoch, shuffled."""
        return ShuffledBatches(len(self.dataset), self.config.batch_size, self.config.seed, process, processes)

    def prepare(self, batch: PairBatch) -> PairBatch:
        """Size augmentation."""
        return shrink(batch, self.config.data.drop_regions, self.config.data.drop_words)

    def describe(self, group: list[PairBatch]) -> str:
        """The images and captions of some batches."""
        images, captions = (torch.cat([getattr(b, field) for b in group]).tolist() for field in ("image", "caption"))
        return f"images {images} and captions {captions}"

    def validate(self) -> dict[str, Any]:
        """Results under the configured protocol."""
        split = self.validation
        scores = self.model.score_all(split.store, split.sentences, images=split.images, progress=self.config.progress)
        return split.evaluate(scores, self.config.protocol)

    def summary(self, results: dict[str, Any]) -> str:
        """Recalls in both directions, and their sum."""
        recalls = "  ".join(
            f"{way} " + " ".join(f"{results[way][f'R@{k}']:.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")
        )
        return f"{recalls}  rsum {results['rsum']:.1f}"


class ValidationSplit:
    """The images that pick the best checkpoint, and the captions about them.

    >>> from pathlib import Path
    >>> from xmodal.data import Caption, RegionStoreWriter, save_captions
    >>> from xmodal.training.config import DataConfig
    >>> with RegionStoreWriter("dev.h5", dim=2, extractor="by hand") as writer:
    ...     writer.write("7", [[1, 0], [0, 1]])
    ...     writer.write("8", [[1, 1]])
    >>> save_captions("captions.jsonl", [Caption("7", "0", "a dog", "dev"), Caption("8", "1", "a cat", "dev")])
    >>> split = ValidationSplit(RegionStore("dev.h5"), DataConfig(Path("."), validation_images=1))
    >>> split.shape, split.sentences
    ((1, 1), ['a dog'])
    """

    images: range
    sentences: list[str]
    caption_image: Int[Tensor, " caption"]

    def __init__(self, store: RegionStore, config: DataConfig) -> None:
        self.store = store
        captions = load_captions(config.folder / "captions.jsonl", config.validation)
        caption_image = caption_image_index(captions, self.store.image_id)
        self.images = range(len(self.store))[: config.validation_images or None]
        kept = caption_image < len(self.images)
        self.sentences = [caption.caption for caption, keep in zip(captions, kept.tolist(), strict=True) if keep]
        self.caption_image = caption_image[kept]

    @property
    def shape(self) -> tuple[int, int]:
        """Images and captions."""
        return len(self.images), len(self.sentences)

    def evaluate(self, scores: torch.Tensor, protocol: str) -> dict[str, Any]:
        """The results of a score matrix; see `evaluate_protocol`."""
        return evaluate_protocol(scores, self.caption_image, protocol)


def _build_matcher(config: ModelConfig, store: RegionStore, data: DataConfig) -> Matcher:
    """The matcher of a configuration; what the data decides (dim, vocabulary, extractor) is read from the data."""
    vocabulary = Vocabulary.load(data.folder / "vocabulary.json") if needs_vocabulary(config.text) else None
    matcher = Matcher(
        image=fill("image encoder", IMAGE_ENCODERS, config.image, {"input_dim": store.dim}),
        text=config.text,
        head=config.head,
        vocabulary=vocabulary.words if vocabulary is not None else None,
        extractor=store.extractor,
        captioner=config.captioner or None,
    )
    if config.word_vectors is not None:
        if vocabulary is None:
            raise ValueError("word_vectors start a text encoder with a vocabulary; a transformer brings its own")
        vectors, found = load_word_vectors(config.word_vectors, vocabulary)
        matcher.text_encoder.start_from(vectors, found)
    return matcher
