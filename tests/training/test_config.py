"""Recipes become configurations and back, and what cannot be is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from xmodal.training.adversary import Adversary
from xmodal.training.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    from_dict,
    load_recipe,
    to_dict,
)
from xmodal.training.parts import changes, completed

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"


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
        ("objective: {on: features}", 'the option name True is no text; .* put it in quotes: "on"'),
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


def test_a_recipe_says_what_differs_from_its_base(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text("optimizer: {name: adamw, learning_rate: 1e-3}\nepochs: 4\n")
    (tmp_path / "deep" / "one.yaml").write_text("base: ../base.yaml\noptimizer: {learning_rate: 3e-3}\n")
    (tmp_path / "two.yaml").write_text("base: deep/one.yaml\nepochs: 5\ndata: {drop_words: 0.2}\n")
    config = load_recipe(tmp_path / "two.yaml")
    assert config == TrainConfig(
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3), epochs=5, data=DataConfig(drop_words=0.2)
    )


def test_a_base_that_cannot_be_is_refused(tmp_path):
    path, other = tmp_path / "recipe.yaml", tmp_path / "other.yaml"
    path.write_text("base: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        load_recipe(path)
    path.write_text("base: other.yaml\n")
    other.write_text("base: recipe.yaml\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml is a base of itself"):
        load_recipe(path)
    other.write_text("- a list\n")
    with pytest.raises(ValueError, match=r"other\.yaml must be a mapping of options"):
        load_recipe(path)


def test_an_ablation_of_addr_changes_one_thing():
    recipes = Path(__file__).parents[2] / "scripts" / "recipes"
    whole = to_dict(load_recipe(recipes / "scan_t2i_lse_addr_f30k.yaml"))
    ablations = sorted((recipes / "ablations").glob("addr_*.yaml"))
    assert len(ablations) >= 10
    for path in ablations:
        options = {
            key: value for key, value in load_recipe(path).adversary.items() if key not in ("name", "learning_rate")
        }
        Adversary.build({"name": "addr", **options}, dim=8, pairs=4)
        assert to_dict(load_recipe(path)) | {key: whole[key] for key in ("output", "adversary")} == whole
        assert sum(whole["adversary"][key] != value for key, value in options.items()) == 1, path.name


def test_all_options_are_stored_and_a_default_that_is_written_out_is_no_change():
    short = TrainConfig(
        model=ModelConfig(head={"name": "vsrn"}, captioner={"hidden_dim": 8}), adversary={"name": "addr"}
    )
    full = completed(short)
    assert full.model.head == {"name": "vsrn", "layers": 4, "norm": "l2", "region_norm": "region"}
    assert full.model.captioner == {"name": "captioner", "hidden_dim": 8, "word_dim": 300, "dropout": 0.2}
    assert full.adversary["learning_rate"] == 1e-3
    assert completed(full) == full
    assert yaml.safe_load(yaml.safe_dump(to_dict(full))) == to_dict(full)
    assert changes(short, full) == changes(full, short) == {}


def test_a_size_that_the_other_parts_know_is_no_change():
    def sized(dim: int | None) -> TrainConfig:
        size = {"dim": dim} if dim else {}
        return TrainConfig(model=ModelConfig(text={"name": "gru", **size}, head={"name": "vsrn", **size}))

    assert changes(sized(1024), sized(None)) == {}
    assert changes(sized(1024), sized(512)) == {"model.text.dim": (1024, 512), "model.head.dim": (1024, 512)}
    assert changes(TrainConfig(), TrainConfig(model=ModelConfig(head={"name": "bfan"})))["model.head.name"] == (
        "scan",
        "bfan",
    )


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_names_what_exists_and_states_a_size_once(path):
    config = load_recipe(path)
    assert changes(config, completed(config)) == {}
    if config.task == "matching":
        assert not {"dim"} & (config.model.text.keys() | config.model.head.keys() | config.model.captioner.keys())


@pytest.mark.parametrize("head", ["scan", ["scan"], 3])
def test_a_part_is_a_mapping(head):
    with pytest.raises(ValueError, match="head must be a mapping with a name and options, got"):
        completed(TrainConfig(model=ModelConfig(head=head)))
