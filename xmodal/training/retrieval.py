"""Zero-shot image retrieval as the trainer's task: labelled images, an embedder, an objective on their features."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from torch import nn

from xmodal.data.labelled import check_class_disjoint, image_transform, load_labelled
from xmodal.embedder import Embedder
from xmodal.encoders.backbone import BACKBONES
from xmodal.evaluation.labelled import check_evaluable, evaluate_embeddings
from xmodal.names import build, fill
from xmodal.objectives import METRIC_OBJECTIVES
from xmodal.training.checkpoints import fingerprint, goes_on
from xmodal.training.sampler import ClassBatches
from xmodal.training.starting import begin_with
from xmodal.training.step import gather

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from xmodal.data.labelled import LabelledBatch, LabelledSet
    from xmodal.training.config import LabelledDataConfig, RetrievalConfig


class RetrievalTask:
    """Train an embedder on some classes, and pick it by how it retrieves images of others.

    Raises:
        FileNotFoundError: for data that is not there.
        ValueError: for a configuration or data that cannot work, such as a class in both splits.

    >>> from pathlib import Path
    >>> import torch
    >>> from xmodal.data.labelled import LabelledSet, save_features
    >>> from xmodal.training.config import EmbedderConfig, LabelledDataConfig, RetrievalConfig
    >>> names, classes = [f"{number}.jpg" for number in range(8)], ["gull", "wren", "tern", "owl"] * 2
    >>> birds = LabelledSet(names, classes, ["train", "train", "dev", "dev"] * 2)
    >>> save_features("birds.h5", torch.randn(8, 16), birds, {})
    >>> data = LabelledDataConfig(Path("birds.h5"), images_per_class=2)
    >>> model = EmbedderConfig({"name": "mlp"}, dim=4)
    >>> config = RetrievalConfig(data=data, model=model, batch_size=4, recall_at=(1, 3))
    >>> task = RetrievalTask(config, torch.device("cpu"))
    >>> len(task.dataset), task.validate()["R@3"]
    (4, 100.0)
    """

    adversary = None

    def __init__(self, config: RetrievalConfig, device: torch.device, processes: int = 1) -> None:
        data = config.data
        if config.batch_size % data.images_per_class:
            raise ValueError(
                f"batch_size {config.batch_size} must be a multiple of data.images_per_class, {data.images_per_class}"
            )
        self.config, self.workers = config, data.workers
        self.dataset = load_split(data, (data.train,), train=True, seed=config.seed)
        self.validation = load_split(data, data.validation, train=False)
        check_class_disjoint(self.dataset, self.validation)
        # What cannot be evaluated is refused now and not after the first epoch.
        check_evaluable(self.validation.labels, self.validation.query, config.recall_at, ks_name="recall_at")
        # By the names of files, for their folders may move.
        self.fingerprint = fingerprint(*map(_names, (self.dataset, self.validation)))
        backbone = with_sizes(config.model.backbone, self.dataset.sizes)
        self.model = Embedder(backbone, config.model.dim, config.model.head, config.model.normalize)
        if config.model.start_from is not None and not goes_on(config):
            earlier = Embedder.from_pretrained(config.model.start_from)
            begin_with(self.model, earlier, config.model.start_from, silent=not config.progress)
        self.step_module = EmbeddingStep(self.model, build_objective(config.objective, self.model, self.dataset))

    def batches(self, process: int, processes: int) -> ClassBatches:
        """Some images of each of some classes."""
        data, batch_size = self.config.data, self.config.batch_size
        classes = batch_size // data.images_per_class
        return ClassBatches(
            self.dataset.labels,
            classes,
            data.images_per_class,
            self.config.seed,
            process,
            processes,
            batches=data.batches_per_epoch or None,
        )

    def prepare(self, batch: LabelledBatch) -> LabelledBatch:
        """The batch as it is: images were cropped and mirrored when they were read."""
        return batch

    def describe(self, group: list[LabelledBatch]) -> str:
        """The classes of some batches."""
        labels = sorted({label for batch in group for label in batch.labels.tolist()})
        return f"images of the classes {', '.join(self.dataset.class_names[label] for label in labels)}"

    def warning(self, terms: Mapping[str, float]) -> str | None:
        """Nothing of this kind is known."""
        return None

    def validate(self) -> dict[str, Any]:
        """Retrieval among the classes of the validation split; without clustering, which takes long."""
        progress = self.config.progress
        embeddings = self.model.embed_all(self.validation, workers=self.workers, progress=progress)
        return evaluate_embeddings(
            embeddings,
            self.validation.labels,
            query=self.validation.query,
            ks=self.config.recall_at,
            normalize=self.config.model.normalize,
            kmeans=False,
            progress=progress,
        )

    def summary(self, results: dict[str, Any]) -> str:
        """Recalls, R-precision and mAP@R."""
        return "  ".join(f"{name} {value:.1f}" for name, value in results.items() if name != "lone_queries")


def _names(images: LabelledSet) -> list[str]:
    """The classes and file names of images."""
    labels = images.labels.tolist()
    return [f"{images.class_names[n]}/{PurePath(name).name}" for name, n in zip(images.image_id, labels, strict=True)]


class EmbeddingStep(nn.Module):
    """The embedder and the objective that trains it as one Module, so that one wrapper distributes both.

    Every process computes the loss of the images of all, so that averaging the gradients over processes gives that of
    one process on the joined batch.

    >>> import torch
    >>> from xmodal.data.labelled import LabelledBatch
    >>> from xmodal.objectives import MetricObjective
    >>> embedder = Embedder({"name": "mlp", "input_dim": 8}, dim=4)
    >>> step = EmbeddingStep(embedder, MetricObjective({"name": "binomial"}))
    >>> step(LabelledBatch(torch.randn(4, 8), torch.tensor([0, 0, 1, 1])), step=0)["total"].requires_grad
    True
    """

    def __init__(self, embedder: Embedder, objective: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder
        self.objective = objective

    def forward(self, batch: LabelledBatch, step: int) -> dict[str, Float[Tensor, ""]]:
        """Loss terms of a batch at an optimizer step (0-based); `total` is what training minimizes."""
        features = gather(self.embedder.backbone(batch.images))
        return self.objective(features, gather(batch.labels), embed=self.embedder.embed, step=step)


def load_split(config: LabelledDataConfig, splits: tuple[str, ...], *, train: bool, seed: int = 0) -> LabelledSet:
    """The images of some splits, preprocessed as for training or for testing.

    >>> from pathlib import Path
    >>> import torch
    >>> from xmodal.data.labelled import LabelledSet, save_features
    >>> from xmodal.training.config import LabelledDataConfig
    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train", "dev"])
    >>> save_features("birds.h5", torch.eye(2), birds, {})
    >>> load_split(LabelledDataConfig(Path("birds.h5")), ("dev",), train=False).image_id
    ['2.jpg']
    """
    transform = image_transform(train=train, resize=config.resize, crop=config.crop, square=config.square)
    return load_labelled(config.path, splits, transform=transform, seed=seed)


def with_sizes(backbone: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The options of a backbone whose innermost one takes images of some sizes, which the options may leave out.

    Raises:
        ValueError: for another size, and as for `xmodal.names.find`.

    >>> with_sizes({"name": "projected", "backbone": {"name": "mlp"}}, {"input_dim": 1280})
    {'name': 'projected', 'backbone': {'name': 'mlp', 'input_dim': 1280}}
    """
    if "backbone" in backbone:
        return {**backbone, "backbone": with_sizes(backbone["backbone"], sizes)}
    return fill("backbone", BACKBONES, backbone, sizes)


def build_objective(config: dict[str, Any], embedder: Embedder, images: LabelledSet) -> nn.Module:
    """The objective of a configuration; what the model and the data decide (dims, classes) is filled in.

    >>> from xmodal.data.labelled import LabelledSet
    >>> embedder = Embedder({"name": "mlp", "input_dim": 8}, dim=4)
    >>> birds = LabelledSet(["1.jpg", "2.jpg"], ["wren", "gull"], ["train"] * 2)
    >>> type(build_objective({"name": "metric", "metric": {"name": "binomial"}}, embedder, birds)).__name__
    'MetricObjective'
    """
    known = {"feature_dim": embedder.backbone.feature_dim, "dim": embedder.dim, "classes": len(images.class_names)}
    return build("objective", METRIC_OBJECTIVES, config, known)
