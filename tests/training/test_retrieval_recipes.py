"""The recipes of zero-shot retrieval load, and what they ask for can be built and trained a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xmodal.data.labelled import LabelledFeatures
from xmodal.embedder import Embedder
from xmodal.encoders.backbone import without_weights
from xmodal.training.config import RetrievalConfig, load_recipe
from xmodal.training.optimizer import parameter_groups
from xmodal.training.retrieval import EmbeddingStep, build_objective

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "scripts" / "recipes").glob("*.yaml")
    if isinstance(load_recipe(path), RetrievalConfig)
)
LEVELS = {"cub": (1, 2, 4, 8), "cars": (1, 2, 4, 8), "sop": (1, 10, 100, 1000), "in_shop": (1, 10, 20, 30)}


def test_every_method_has_a_recipe_for_every_data_set():
    methods = ("class_adversarial", "daml", "ecaml", "ie")
    assert [path.stem for path in RECIPES] == sorted(f"{method}_{data}" for method in methods for data in LEVELS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_asks_for_can_be_built(path):
    config = load_recipe(path)
    assert isinstance(config, RetrievalConfig)
    assert config.output == Path("runs", path.stem)
    data = config.data.path.stem
    assert path.stem.endswith(f"_{data}")
    assert config.recall_at == LEVELS[data]
    assert config.batch_size % config.data.images_per_class == 0
    # A copy of the model without weights: what matters here are names, options and sizes.
    model = config.model
    embedder = Embedder(without_weights(model.backbone), model.dim, model.head, model.normalize)
    classes = config.batch_size // config.data.images_per_class
    names = [f"class {number}" for number in range(classes) for _ in range(config.data.images_per_class)]
    images = LabelledFeatures(torch.zeros(len(names), 1), names, names, ["train"] * len(names))
    objective = build_objective(config.objective, embedder, images)
    features = torch.randn(len(names), embedder.backbone.feature_dim)
    terms = objective(features, images.labels, embed=embedder.embed, step=10_000)
    assert terms["total"].isfinite()
    # The rates name parts that exist.
    assert parameter_groups(EmbeddingStep(embedder, objective), config.optimizer)


@pytest.mark.parametrize("path", [path for path in RECIPES if "daml" in path.stem], ids=lambda path: path.stem)
def test_the_schedule_of_daml_begins_where_its_warm_up_ends(path):
    config = load_recipe(path)
    epochs = config.optimizer.rates_from_epoch
    assert config.objective["warmup_steps"] == epochs * config.data.batches_per_epoch
