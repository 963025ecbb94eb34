"""Recipes become configurations and back, and what cannot be is refused by its name."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from xmodal.training.adversary import Adversary
from xmodal.training.config import (
    DataConfig,
    EmbedderConfig,
    LabelledDataConfig,
    ModelConfig,
    OptimizerConfig,
    RetrievalConfig,
    TrainConfig,
    flatten,
    from_dict,
    load_recipe,
    to_dict,
)
from xmodal.training.parts import PARTS, changes, completed
from xmodal.training.read_yaml import read_yaml

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


REFUSED = [
    ("epoch: 3", "no option 'epoch' (did you mean 'epochs'?)"),
    ("optimizer: {learning_rat: 3}", "optimizer has no option 'learning_rat' (did you mean 'learning_rate'?)"),
    ("optimizer: adam", "optimizer must be a mapping of options, got 'adam'"),
    ("optimizer: {name: adm}", "optimizer.name is 'adm' (did you mean 'adam'?); wanted adam, adamw or adamax"),
    ("optimizer: {schedule: cosin}", "optimizer.schedule is 'cosin' (did you mean 'cosine'?)"),
    ("optimizer: {schedule: [step]}", "optimizer.schedule is ['step']; wanted step, cosine, constant or factors"),
    ("optimizer: {learning_rate: fast}", "optimizer.learning_rate is 'fast'; wanted a finite number of at least 0"),
    ("optimizer: {learning_rate: true}", "optimizer.learning_rate is True; wanted a finite number"),
    ("optimizer: {decay: .inf}", "optimizer.decay is inf; wanted a finite number from 0 to 1"),
    ("optimizer: {weight_decay: .nan}", "optimizer.weight_decay is nan; wanted a finite number of at least 0"),
    ("optimizer: {weight_decay: -0.1}", "optimizer.weight_decay is -0.1; wanted"),
    ("optimizer: {clip_norm: -1}", "optimizer.clip_norm is -1; wanted"),
    ("optimizer: {rates: {matcher: -1}}", "optimizer.rates.matcher is -1; wanted a finite number of at least 0"),
    ("optimizer: {rates: {matcher: fast}}", "optimizer.rates.matcher is 'fast'; wanted a finite number"),
    ("optimizer: {repeated: {matcher: 0}}", "optimizer.repeated.matcher is 0; wanted a whole number from 1"),
    ("optimizer: {rates: [matcher]}", "optimizer.rates is ['matcher']; wanted a mapping, each value a finite number"),
    ("epochs: 1.5", "epochs is 1.5; wanted a whole number from 1 to 1000000000"),
    ("epochs: '3'", "epochs is '3'; wanted a whole number"),
    ("epochs: 0", "epochs is 0; wanted a whole number from 1"),
    ("epochs: true", "epochs is True; wanted a whole number"),
    ("epochs: null", "epochs is None; wanted a whole number"),
    (f"epochs: {10**30}", f"epochs is {10**30}; wanted a whole number from 1 to 1000000000"),
    (f"epochs: {'9' * 5000}", "epochs is a number of 5000 characters"),
    ("accumulate: 0", "accumulate is 0; wanted"),
    ("keep: 100000000", "keep is 100000000; wanted a whole number from 1 to 1000"),
    ("seed: -1", "seed is -1; wanted a whole number from 0 to 4294967295"),
    ("seed: 4294967296", "seed is 4294967296; wanted a whole number from 0 to 4294967295"),
    ("batch_size: 1", "batch_size is 1; wanted a whole number from 2"),
    ("output: ''", "output is ''; wanted a path"),
    ("output: 3", "output is 3; wanted a path"),
    ("output: [runs]", "output is ['runs']; wanted a path"),
    ("model: {word_vectors: ''}", "model.word_vectors is ''; wanted a path or null"),
    ("model: {captioning_weight: -1}", "model.captioning_weight is -1; wanted"),
    ("data: {folder: ''}", "data.folder is ''; wanted a path"),
    ("data: {train: ''}", "data.train is ''; wanted text that is not empty"),
    ("data: {train: 3}", "data.train is 3; wanted text"),
    ("data: {workers: -1}", "data.workers is -1; wanted"),
    ("data: {drop_regions: 1.5}", "data.drop_regions is 1.5; wanted a share below 1"),
    ("data: {drop_regions: 1}", "data.drop_regions is 1; wanted a share below 1"),
    ("data: {drop_words: -0.1}", "data.drop_words is -0.1; wanted a share below 1"),
    ("data: {validation_images: -1}", "data.validation_images is -1; wanted"),
    ("progress: 'no'", "progress is 'no'; wanted true or false"),
    ("mixed_precision: fp8", "mixed_precision is 'fp8'; wanted no, fp16 or bf16"),
    ("scoring: [eager]", "scoring is ['eager']; wanted eager or triton"),
    ("criterion: rsun", "criterion is 'rsun': 'rsun' is no result (did you mean 'rsum'?); wanted one of"),
    ("criterion: 3", "criterion is 3; wanted text"),
    ("task: retrieve", "task is 'retrieve' (did you mean 'retrieval'?); wanted matching or retrieval"),
    ("task: [matching]", "task is ['matching']"),
    ("task: retrieval\nrecall_at: []", "recall_at is []; wanted a list, each item a whole number"),
    ("task: retrieval\nrecall_at: [1, x]", "recall_at[1] is 'x'; wanted a whole number from 1"),
    ("task: retrieval\nrecall_at: [1, 0]", "recall_at[1] is 0; wanted a whole number from 1"),
    ("task: retrieval\nrecall_at: 1", "recall_at is 1; wanted a list"),
    ("task: retrieval\ndata: {validation: dev}", "data.validation is 'dev'; wanted a list"),
    ("task: retrieval\ndata: {crop: -224}", "data.crop is -224; wanted"),
    ("task: retrieval\nmodel: {dim: 0}", "model.dim is 0; wanted"),
    ("task: retrieval\nmodel: {head: liner}", "model.head is 'liner' (did you mean 'linear'?)"),
    ("model: {head: {name: scan, temperature: hot}}", "model.head.temperature is 'hot'; wanted a finite number"),
    ("model: {head: {name: scan, temperature: [9]}}", "model.head.temperature is [9]; wanted a finite number"),
    ("model: {head: {name: scan, temperature: .nan}}", "model.head.temperature is nan; wanted a finite number"),
    (
        "model: {head: {name: scan, temprature: 9}}",
        "model.head has no option 'temprature' (did you mean 'temperature'?)",
    ),
    (
        "model: {head: {name: scan, direction: t2j}}",
        "model.head.direction is 't2j' (did you mean 't2i'?); wanted t2i",
    ),
    ("model: {head: {name: 'xmodal.heads:BFAN', temperature: x}}", "model.head.temperature is 'x'; wanted a finite"),
    ("model: {head: {name: scan, temperature: 0}}", "model.head.temperature is 0; wanted a finite number above 0"),
    ("model: {head: {name: vsrn, layers: -1}}", "model.head.layers is -1; wanted a whole number from 1 to 1000000"),
    ("model: {image: {name: regions, dim: -8}}", "model.image.dim is -8; wanted a whole number from 1"),
    ("model: {text: {name: gru, word_dim: 10000000}}", "model.text.word_dim is 10000000; wanted a whole number from 1"),
    (
        "model: {captioner: {dropout: 1.5}}",
        "model.captioner.dropout is 1.5; wanted a finite number of at least 0",
    ),
    ("objective: {name: hinge, margin: -1}", "objective.margin is -1; wanted a finite number of at least 0"),
    ("objective: {name: hinge, warmup_steps: -1}", "objective.warmup_steps is -1; wanted a whole number from 0"),
    ("objective: {name: info_nce, temperature: 0}", "objective.temperature is 0; wanted a finite number above 0"),
    ("adversary: {name: addr, beta: -1}", "adversary.beta is -1; wanted a finite number of at least 0"),
    ("adversary: {name: addr, learning_rate: -1}", "adversary.learning_rate is -1; wanted"),
    (
        "task: retrieval\nobjective: {name: metric, metric: {name: triplet, margin: -1}}",
        "objective.metric.margin is -1; wanted a finite number of at least 0",
    ),
    (
        "task: retrieval\nobjective: {name: daml, metric: {name: triplet, margin: -1}}",
        "objective.metric.margin is -1; wanted a finite number of at least 0",
    ),
    ("task: retrieval\nobjective: {name: ie, variance: 0}", "objective.variance is 0; wanted a finite number above 0"),
    ("model: {head: scan}", "model.head is 'scan'; wanted a mapping"),
    ("model: {image: {name: regions, dim: big}}", "model.image.dim is 'big'; wanted a whole number"),
    ("model: {image: {name: regions, dim: 1e3}}", "model.image.dim is 1000.0; wanted a whole number"),
    (f"model: {{image: {{name: regions, dim: {10**30}}}}}", f"model.image.dim is {10**30}; wanted a whole number of"),
    ("model: {image: {name: regions, normalize: 3}}", "model.image.normalize is 3; wanted true or false"),
    ("model: {captioner: {hidden_dim: x}}", "model.captioner.hidden_dim is 'x'; wanted a whole number"),
    ("adversary: {name: addr, steps: 1.5}", "adversary.steps is 1.5; wanted a whole number"),
    ("adversary: {name: addr, learning_rate: x}", "adversary.learning_rate is 'x'; wanted a finite number"),
    ("data: {source: {name: pixels, size: x}}", "data.source.size is 'x'; wanted a whole number"),
    ("objective: {name: hinge, margin: wide}", "objective.margin is 'wide'; wanted a finite number"),
    (
        "task: retrieval\nobjective: {name: metric, metric: {name: triplet, margin: x}}",
        "objective.metric.margin is 'x'; wanted a finite number",
    ),
    (
        "task: retrieval\nmodel: {backbone: {name: projected, backbone: {name: mlp, hidden: [64, x]}}}",
        "model.backbone.backbone.hidden[1] is 'x'; wanted a whole number",
    ),
    ("- a list", "must be a mapping of options"),
    ("", "must be a mapping of options, got 'None'"),
    ("a: [", "is no YAML"),
    ("epochs: 3\nepochs: 4", "epochs is there twice"),
    ("data: {folder: x, train: a, folder: y}", "data.folder is there twice"),
    ("objective: {on: features}", 'the option name True is no text; .* put it in quotes: "on"'),
    ("epochs: !!python/name:os.system x", "epochs has the tag tag:yaml.org,2002:python/name:os.system"),
    ("epochs: !!int x", "epochs has the tag"),
    ("epochs: 2020-13-45", "epochs is '2020-13-45'; wanted a whole number"),
    ("base: [x]", "base is ['x']; wanted the path or the name of a recipe"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_recipe_that_cannot_be_is_refused_with_the_path_of_the_key(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    message = message if ".*" in message else re.escape(message)
    with pytest.raises(ValueError, match=f"^recipe {path}.*{message}"):
        load_recipe(path)


def bomb(levels: int) -> str:
    """Ten times as many values at every level: the billion laughs."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9), "has more than 20000 values"),
        ("a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)), "20000"),
        ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200)), "64 levels"),
        ("a: &a [*a]", "has an alias inside of what the alias stands for"),
        ("a: &a {b: {c: *a}}", "a.b.c has an alias inside of what the alias stands for"),
        ("a: " + "[" * 1_00_000, "64 levels"),
        ("a: " + "{a: " * 100_000, "64 levels"),
        ("- " * 100_000, "64 levels"),
        ("a: [" + "1, " * 30_000 + "]", "more than 20000 values"),
        ("a: " + "1" * 1_000_000, "has more than 1000000 bytes"),
        ("a: " + "1" * 100_000, "is a number of 100000 characters"),
    ],
    ids=[
        "laughs",
        "merges",
        "aliases",
        "itself",
        "inside itself",
        "lists",
        "mappings",
        "dashes",
        "long",
        "big",
        "digits",
    ],
)
def test_yaml_that_says_too_much_is_refused_at_once(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        load_recipe(tmp_path / "recipe.yaml")
    assert len(str(refused.value)) < 600


def test_anchors_save_typing(tmp_path):
    text = "model:\n  image: {name: regions, dim: &dim 64}\n  text: {name: gru, word_dim: *dim}\n"
    (tmp_path / "recipe.yaml").write_text(text + "optimizer: &common {decay: 0.5}\n")
    config = load_recipe(tmp_path / "recipe.yaml")
    assert config.model.text["word_dim"] == 64
    assert read_yaml("{a: &a {x: 1, y: 2}, b: {<<: *a, y: 3}}")["b"] == {"x": 1, "y": 3}


def test_a_recipe_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ValueError, match=r"pipe\.yaml is no regular file, wanted a YAML file"):
        load_recipe(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match=r"folder\.yaml is a folder, wanted a YAML file"):
        load_recipe(tmp_path / "folder.yaml")


def test_a_file_of_a_hundred_megabytes_is_not_read(tmp_path):
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match=r"recipe\.yaml has more than 1000000 bytes"):
        load_recipe(tmp_path / "recipe.yaml")


def test_bases_are_few(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    (tmp_path / "40.yaml").write_text("epochs: 7\n")
    assert load_recipe(tmp_path / "25.yaml").epochs == 7
    with pytest.raises(ValueError, match=r"0\.yaml has more than 15 bases"):
        load_recipe(tmp_path / "0.yaml")


def with_head(**options: Any) -> TrainConfig:
    return TrainConfig(model=ModelConfig(head={"name": "scan", **options}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(drop_regions=1.5), "^drop_regions is 1.5; wanted a share below 1"),
        (lambda: DataConfig(drop_words=math.nan), "^drop_words is nan; wanted a share below 1"),
        (lambda: OptimizerConfig(decay=math.inf), "^decay is inf; wanted"),
        (lambda: OptimizerConfig(rates={"matcher": math.inf}), "^rates.matcher is inf; wanted"),
        (lambda: OptimizerConfig(rates={3: 0.1}), "^rates has the key 3; wanted names"),
        (lambda: ModelConfig(head="scan"), "^head is 'scan'; wanted a mapping"),
        (lambda: EmbedderConfig(dim=True), "^dim is True; wanted"),
        (lambda: LabelledDataConfig(resize=0), "^resize is 0; wanted"),
        (lambda: TrainConfig(data={"folder": "x"}), "^data is {'folder': 'x'}; wanted"),
        (lambda: TrainConfig(epochs=10**10_000), "^epochs is a whole number of 33220 bits; wanted"),
        (
            lambda: TrainConfig(model=ModelConfig(head={"name": "scan", "temperature": "hot"})),
            "^model.head.temperature is",
        ),
        (lambda: TrainConfig(model=ModelConfig(head={"name": "scan", "x": 3})), "^model.head has no option 'x'"),
        (lambda: TrainConfig(objective={"name": "hinge", "margin": object()}), "^objective.margin is <object"),
        (lambda: TrainConfig(objective={"name": "hinge", 3: 4}), "^objective has the key 3; wanted names"),
        (
            lambda: TrainConfig(adversary={"name": "mine", "levels": {3}}),
            r"^adversary.levels is \{3\}; wanted",
        ),
        (lambda: RetrievalConfig(recall_at=(1, -2)), r"^recall_at\[1\] is -2; wanted"),
    ],
)
def test_python_callers_are_refused_alike(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_python_callers_may_write_what_yaml_would():
    config = TrainConfig(output="runs/mine", data=DataConfig("x", source={"name": "pixels", "folder": Path("photos")}))
    assert config.output == Path("runs/mine")
    assert config.data.folder == Path("x")
    assert config.data.source == {"name": "pixels", "folder": "photos"}
    assert RetrievalConfig(recall_at=[1, 5]).recall_at == (1, 5)
    assert completed(config).data.source["folder"] == "photos"


def test_what_nests_without_end_is_refused():
    endless: dict = {"name": "regions"}
    endless["inside"] = endless
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        TrainConfig(model=ModelConfig(image=endless))


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


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "recipes.json").read_text())
"""What every published recipe asked for before parts knew each other's sizes, defaults of all parts filled in."""
TRAINED = ("model", "objective", "adversary", "optimizer", "epochs", "batch_size")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_published_recipe_trains_what_it_always_did(name):
    config = load_recipe(name)
    values = flatten(json.loads(json.dumps(to_dict(completed(config)))))
    sizes = {f"{path}.{size}" for path, part in PARTS[type(config)].items() for size in part.known}
    for path, value in flatten({section: GOLDEN[name].get(section) for section in TRAINED}).items():
        if path in sizes - values.keys():  # known from the data or the image encoder now
            assert value is None or not path.endswith(".dim") or value == config.model.image["dim"], path
        elif value is not None or path in values:
            assert values.get(path, values.get(f"{path}.name")) == value, path  # a bare name of a part is its name


def test_another_part_leaves_the_options_of_the_old_one_behind(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: scan_t2i_lse_f30k\nmodel: {head: {name: bfan}, image: {name: regions, weight_norm: true}}\n")
    config, base = load_recipe(path), load_recipe("scan_t2i_lse_f30k")
    assert config.model.head == {"name": "bfan"}
    assert config.model.image == {**base.model.image, "weight_norm": True}
    assert config.objective == base.objective
    path.write_text("base: scan_t2i_lse_f30k\nmodel: {head: {name: 'xmodal.heads:SCAN', temperature: 4}}\n")
    assert load_recipe(path).model.head == {**base.model.head, "name": "xmodal.heads:SCAN", "temperature": 4}
    path.write_text(
        "base: daml_cub\nobjective: {metric: {name: angular}}\nmodel: {backbone: {backbone: {name: mlp}}}\n"
    )
    config, base = load_recipe(path), load_recipe("daml_cub")
    assert config.objective == {**base.objective, "metric": {"name": "angular"}}
    assert config.model.backbone == {"name": "projected", "dim": 512, "backbone": {"name": "mlp"}}
    path.write_text("base: vsrn_addr_f30k\nadversary: {}\n")
    assert load_recipe(path).adversary == {}


def test_a_captioner_goes_with_the_head_that_it_reads(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: vsrn_f30k\nmodel: {head: {name: scan}}\n")
    assert load_recipe(path).model.captioner == {}
    path.write_text("base: vsrn_f30k\nmodel: {head: {name: vsrn, layers: 2}}\n")
    assert load_recipe(path).model.captioner == load_recipe("vsrn_f30k").model.captioner
    path.write_text("base: vsrn_f30k\nmodel: {head: {name: scan}, captioner: {hidden_dim: 8}}\n")
    assert load_recipe(path).model.captioner["hidden_dim"] == 8  # which is told when it is built
