"""Recipes become configurations and back, and what cannot be is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xmodal.training.config import DataConfig, OptimizerConfig, TrainConfig, from_dict, load_recipe, to_dict


def test_a_configuration_survives_yaml():
    config = TrainConfig(data=DataConfig(folder=Path("x/y")), optimizer=OptimizerConfig(decay=0.5), epochs=3)
    assert from_dict(TrainConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize("number", ["2e-4", "2.0e-4", "0.0002", "2.E-4"])
def test_a_recipe_may_write_numbers_as_people_do(tmp_path, number):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"optimizer: {{learning_rate: {number}}}\nmodel: {{word_vectors: glove.txt}}\nepochs: 4\n")
    config = load_recipe(path)
    assert config.optimizer.learning_rate == 2e-4
    assert config.model.word_vectors == Path("glove.txt")
    assert config.epochs == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "no option 'epoch' .*did you mean 'epochs'"),
        ("optimizer: {learning_rat: 3}", "optimizer has no option 'learning_rat' .*'learning_rate'"),
        ("optimizer: adam", "optimizer must be a mapping of options, got 'adam'"),
        ("optimizer: {name: adm}", "optimizer: name 'adm' does not exist .*did you mean 'adam'"),
        ("optimizer: {schedule: cosin}", "schedule 'cosin' does not exist .*'cosine'"),
        ("optimizer: {learning_rate: fast}", "learning_rate must be of type float, got 'fast'"),
        ("epochs: 1.5", "epochs must be of type int, got 1.5"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
        ("accumulate: 0", "accumulate must be at least 1"),
        ("data: {workers: -1}", "workers must be at least 0"),
        ("progress: 'no'", "progress must be of type bool"),
        ("mixed_precision: fp8", "mixed_precision 'fp8' does not exist"),
        ("- a list", "must be a mapping of options"),
        ("", "must be a mapping of options, got None"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"recipe .*recipe.yaml.*{message}"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
