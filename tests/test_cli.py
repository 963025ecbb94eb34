import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from xmodal.cli import COMMANDS, main
from xmodal.commands.evaluate_embedder import EvaluateEmbedder, crops_of
from xmodal.data.labelled import LabelledSet, save_features
from xmodal.embedder import Embedder
from xmodal.heads import HEADS
from xmodal.names import build
from xmodal.objectives.daml import SYNTHETIC_LOSSES
from xmodal.training.command_line import option_help
from xmodal.training.config import TrainConfig, load_recipe, to_dict
from xmodal.training.parts import PARTS, Part, completed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_well(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: xmodal {command}" in capsys.readouterr().out


def test_overview_names_every_command(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_unknown_command_is_answered_with_the_near_miss(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "xmodal: unknown command 'trian' (did you mean 'train'?); known: train, " in capsys.readouterr().err


def test_unknown_option_is_answered_with_the_near_miss(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--epoch", "3"])
    assert stopped.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("epohcs: 3\n", "no option 'epohcs' (did you mean 'epochs'?)"),
        ("optimizer: {learning_rat: 0.1}\n", "no option 'learning_rat' (did you mean 'learning_rate'?)"),
        ("- 1\n", "must be a mapping of options"),
    ],
)
def test_wrong_recipe_is_named(recipe, message, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--recipe", str(path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert str(path) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "nowhere.yaml"], "recipe nowhere.yaml does not exist"),
        (["train", "--recipe"], "--recipe needs the path of a YAML file"),
        (["train", "--data.folder", "nowhere"], "nowhere"),
        (["evaluate", "nowhere", "--data.folder", "nowhere"], "nowhere"),
    ],
)
def test_missing_files_are_named_without_a_traceback(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("xmodal ")
    assert message in printed
    assert "Traceback" not in printed


def test_one_clear_line_for_what_does_not_go_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Embedder({"name": "mlp", "input_dim": 4}, dim=2).save_pretrained("run/best")
    Image.new("RGB", (40, 30), "red").save("photo.png")
    save_features("birds.h5", torch.eye(4), LabelledSet(list("abcd"), ["gull", "wren"] * 2, ["test"] * 4), {})
    embedder = ["evaluate-embedder", "run", "--path", "birds.h5", "--recall-at", "1"]
    for arguments, message in (
        (
            ["inspect", "photo.png", "--model", "run"],
            "run/best holds no Matcher: its config.json lacks image, text; it is of the kind Embedder",
        ),
        ([*embedder, "--neighbors", "sheet.png", "--queries", "0"], "--queries is 0; wanted at least one to draw"),
        ([*embedder, "--splits", "tset"], "birds.h5 has no image of split 'tset'; its splits are {'test': 4}"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line), line
    main([*embedder, "--json", "numbers.json"])


def test_module_and_program_are_the_same():
    done = subprocess.run([sys.executable, "-m", "xmodal", "--help"], capture_output=True, text=True, check=True)
    assert "usage: xmodal COMMAND" in done.stdout


@pytest.fixture
def parsed(monkeypatch):
    """What `xmodal train` would train, given its arguments."""
    configs = []
    monkeypatch.setitem(COMMANDS, "train", (configs.append, TrainConfig))

    def parse(*arguments):
        main(["train", *arguments])
        return configs.pop()

    return parse


PHASES = {"beta_warmup_steps": 0, "beta_hold_steps": 0, "beta_decay_steps": 68}
HINGE = {"margin": 0.2, "hardest": 1.0, "reduction": "sum", "warmup_steps": 0, "mask_false_negatives": False}
HINGE |= {"curriculum": 0.0, "all_negatives_epochs": 0}


@pytest.mark.parametrize(
    ("arguments", "place", "values"),
    [
        ("--model.head.name bfan --model.head.focal equal", "model.head", {"focal": "equal", "temperature": 20.0}),
        ("--model.head.name=bfan --model.head.temperature=1e1", "model.head", {"focal": "prob", "temperature": 10.0}),
        ("--model.head.name xmodal.heads:BFAN", "model.head", {"focal": "prob", "temperature": 20.0}),
        (
            "--model.head.name vsrn --model.head.layers 2",
            "model.head",
            {"layers": 2, "norm": "l2", "region_norm": "region"},
        ),
        (
            "--recipe=vsrn_f30k --model.head.name vsrn",
            "model.head",
            {"layers": 4, "norm": "batch", "region_norm": "region"},
        ),
        ("--recipe vsrn_f30k --model.captioner.name None", "model.captioner", {}),
        (
            "--model.captioner.hidden-dim 64",
            "model.captioner",
            {"name": "captioner", "hidden_dim": 64, "word_dim": 300, "dropout": 0.2},
        ),
        (
            "--recipe=vsrn_f30k --objective.name info_nce --objective.temperature .5 --objective.learn-temperature",
            "objective",
            {"name": "info_nce", "temperature": 0.5, "learn_temperature": True, "mask_false_negatives": True},
        ),
        ("--recipe bfan_prob_f30k --objective.hardest 1", "objective", {"name": "hinge", **HINGE}),
        (
            "--model.text.name bert --model.text.model ./x --model.text.no_normalize",
            "model.text",
            {"name": "bert", "model": "./x", "normalize": False, "load_weights": True, "frozen": False, "dropout": 0.0},
        ),
        ("--adversary.beta 3", "adversary", completed(TrainConfig(adversary={"name": "addr", "beta": 3.0})).adversary),
        (
            "--recipe scan_t2i_lse_addr_f30k --adversary.name mean_match --adversary.beta-decay-steps 68",
            "adversary",
            {"name": "mean_match", "beta": 1.0, **PHASES, "reduction": "sum", "learning_rate": 1e-3},
        ),
        (
            "--recipe ie_cub --objective.name metric --objective.metric.name triplet --objective.metric.mining hard",
            "objective",
            {"name": "metric", "metric": {"name": "triplet", "mining": "hard", "margin": 0.2, "normalize": True}},
        ),
        (
            "--recipe daml_cub --objective.metric.name angular --objective.generator.layers 3",
            "objective.metric",
            {"name": "angular", "alpha": 45.0},
        ),
        (
            "--recipe daml_cub --objective.generator.layers 3",
            "objective.generator",
            {"layers": 3, "batch_norm": False, "final_relu": True, "std": 0.02},
        ),
        (
            "--recipe daml_cub --model.backbone.backbone.name mlp --model.backbone.backbone.hidden 64 32",
            "model.backbone",
            {"name": "projected", "dim": 512, "backbone": {"name": "mlp", "hidden": [64, 32], "dropout": 0.0}},
        ),
        (
            "--recipe daml_cub --model.backbone.backbone.weights None",
            "model.backbone.backbone",
            {"name": "torchvision", "network": "googlenet", "weights": None, "freeze_batch_norm": False, "levels": []},
        ),
        ("--recipe vsrn_addr_f30k --adversary.name None", "adversary", {}),
    ],
)
def test_every_option_of_the_chosen_parts_can_be_given(parsed, arguments, place, values):
    found = to_dict(parsed(*arguments.split()))
    for name in place.split("."):
        found = found[name]
    assert {**found, "name": None} == {**values, "name": None} or found == values
    assert found.get("name") in (values.get("name"), *arguments.replace("=", " ").split())


def test_an_adversary_can_be_put_on_any_recipe(parsed):
    config = parsed("--recipe", "bfan_prob_f30k", "--adversary.name", "addr", "--adversary.beta", "3")
    assert config.adversary["beta"] == 3.0
    assert config.adversary["learning_rate"] == 1e-3
    assert "pairs" not in config.adversary
    assert parsed("--adversary.beta", "3").adversary == config.adversary


def test_tables_are_written_as_one_value(parsed):
    arguments = ("--recipe", "vsrn_f30k", "--optimizer.repeated", "{}", "--optimizer.rates", "{matcher.head: 1e-1}")
    optimizer = parsed(*arguments).optimizer
    assert (optimizer.repeated, optimizer.rates) == ({}, {"matcher.head": 0.1})
    assert parsed("--recipe", "vsrn_f30k", "--model.captioner.name", "None").optimizer.repeated


@pytest.mark.parametrize("recipe", ["scan_t2i_lse_f30k", "vsrn_addr_coco", "daml_cub", "class_adversarial_cub"])
def test_a_recipe_without_arguments_is_itself(parsed, recipe):
    assert completed(parsed("--recipe", recipe)) == completed(load_recipe(recipe))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model.head.name scna", "unknown head 'scna' (did you mean 'scan'?)"),
        ("--model.head.name=os:system", "is a builtin_function_or_method, not a class derived from"),
        ("--model.head.name nowhere_at_all:X", "there is no module 'nowhere_at_all'"),
        ("--model.head.temprature 3", "--model.head.temprature (did you mean '--model.head.temperature'?)"),
        ("--model.head.name bfan --model.head.lse-scale 3", "unknown option --model.head.lse-scale"),
        ("--model.head.name bfan --model.head.focal equl", "invalid choice 'equl' for argument '--model.head.focal'"),
        ("--model.head.temperature hot", "could not convert string to float: 'hot'"),
        ("--model.text.name bert", "Missing from xmodal train: --model.text.model"),
        ("--objective.nam hinge", "(did you mean '--objective.name'?)"),
        ("--adversary.name adr", "unknown adversary 'adr' (did you mean 'addr'?)"),
        ("--recipe ie_cub --objective.name metric --objective.metric.name tripet", "(did you mean 'triplet'?)"),
        ("--recipe ie_cub --objective.frm center", "(did you mean '--objective.form'?)"),
        ("--recipe ie_cub --objective.name metric", "Missing from xmodal train: --objective.metric.name"),
        ("--adversary.name None --adversary.beta 3", "unknown option --adversary.beta"),
        ("--recipe ie_cub --recipe daml_cub", "--recipe is given more than once"),
        ("--optimizer.rates 3", "optimizer.rates is 3; wanted a mapping"),
        ("--optimizer.rates {a", "'{a' is no YAML"),
        ("--recipe vsrn_f30k --optimizer.repeated.matcher 3", "(did you mean '--optimizer.repeated'?)"),
        ("--epochs many", "xmodal train: Error parsing --epochs: invalid literal for int()"),
        ("--optimzer.name adam", "(did you mean '--optimizer.name'?)"),
        ("--recipe=", "--recipe needs the path"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(parsed, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(*arguments.split())
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["--recipe", "bfan_prob_addr_f30k"],
            [
                "--model.head.focal {prob,equal}",
                "--model.image.weight-norm, --model.image.no-weight-norm",
                "--adversary.beta FLOAT Weight of the error that the encoders maximize.",
                "--adversary.learning-rate FLOAT Of the discriminators' Adam",
                "(default: fast_weights)",
                "--model.captioner.hidden-dim INT Dim of both GRUs. (default: 512)",
            ],
        ),
        ([], ["--model.head.temperature FLOAT Inverse temperature", "--objective.margin FLOAT"]),
        (["--recipe", "daml_cub", "--objective.name", "metric"], ["--objective.metric.name NAME|MODULE:CLASS Which"]),
        (
            ["--recipe", "daml_cub"],
            [
                "--objective.metric.margin FLOAT",
                "--objective.generator.std FLOAT",
                "--model.backbone.backbone.network STR",
            ],
        ),
    ],
)
def test_help_lists_the_options_of_the_chosen_parts(arguments, lines, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments, "--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for line in lines:
        assert line in printed


def test_a_wrong_option_is_told_in_one_line_where_there_is_no_utf8():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "xmodal", "train", "--epochs", "many"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = "xmodal train: Error parsing --epochs: invalid literal for int() with base 10: 'many'\n"
    assert (done.returncode, done.stderr) == (2, told)


def explained(part: Part, place: str) -> dict[str, bool]:
    """Whether there is help for each option of every part that may stand at a place, and of those inside."""
    found = {}
    for name in part.registry:
        texts, inside = option_help(part, name), part.inside(name)
        for option in part.options(name).named.keys() - inside.keys():
            found[f"{place}.{option} of {name}"] = bool(texts.get(option))
        for option, other in inside.items():
            if other.registry not in (part.registry, SYNTHETIC_LOSSES):  # whose objective explains their options
                found |= explained(other, f"{place}.{option}")
    return found


@pytest.mark.parametrize("parts", PARTS.values(), ids=[kind.__name__ for kind in PARTS])
def test_every_option_of_ours_has_help(parts):
    found = {option: told for place, part in parts.items() for option, told in explained(part, place).items()}
    assert len(found) > 40
    assert not [option for option, told in found.items() if not told]


def test_options_of_any_type_are_read(parsed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_head.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field\n"
        "from typing import TYPE_CHECKING, Any, Literal, Optional\n"
        "from xmodal.heads import Head\n"
        "if TYPE_CHECKING:\n"
        "    from collections.abc import Sequence\n"
        "    from nowhere import Strange\n"
        "@dataclass(frozen=True)\n"
        "class Filter:\n"
        "    depth: int = 3\n"
        "    widths: list[int] = field(default_factory=lambda: [4])\n"
        "class Odd(Head):\n"
        "    def __init__(self, many: int, sizes: Sequence[int] = (1, 2), maybe: Optional[float] = 0.5,\n"
        "                 kind: Literal['a', 'b'] | None = None, table: dict[str, Any] | None = None, plain=5,\n"
        "                 flag: bool = False, odd: Strange = 3, pair: tuple[int, str] = (1, 'x'),\n"
        "                 implicit: int = None,\n"
        "                 filter: Filter = Filter(5), **options):\n"
        "        super().__init__()\n"
        "        self.filter, self.options = filter, options\n"
    )
    chosen = ("--model.head.name", "odd_head:Odd", "--model.head.many", "3")
    values = {"many": 3, "sizes": [1, 2], "maybe": 0.5, "kind": None, "table": None, "plain": 5, "flag": False}
    values |= {"name": "odd_head:Odd", "odd": 3, "pair": [1, "x"], "implicit": None}
    assert parsed(*chosen).model.head == values
    given = (
        "--model.head.sizes 3 4 5 --model.head.maybe None --model.head.kind b --model.head.plain 7 --model.head.flag"
    )
    given += " --model.head.odd [2e-4] --model.head.pair 2 y --model.head.implicit 3 --model.head.beyond 1e-4"
    given += " --model.head.filter.depth 9"
    head = parsed(*chosen, *given.split(), "--model.head.table", "{a: [1, 2e-3]}").model.head
    assert head == values | {
        "sizes": [3, 4, 5],
        "maybe": None,
        "kind": "b",
        "plain": 7,
        "flag": True,
        "odd": [2e-4],
    } | {
        "pair": [2, "y"],
        "implicit": 3,
        "beyond": 1e-4,
        "table": {"a": [1, 2e-3]},
        "filter": {"depth": 9, "widths": [4]},
    }
    built = build("head", HEADS, head)
    assert (built.filter.depth, built.filter.widths, built.options) == (9, [4], {"beyond": 1e-4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate x --data.folder y --protcol z", "unknown option --protcol (did you mean '--protocol'?); see xmodal"),
        ("evaluate x --data.foldr y", "unknown option --data.foldr (did you mean '--data.folder'?)"),
        ("evaluate x", "Missing from xmodal evaluate: --data.folder PATH"),
        ("evaluate-embedder x --path y --queries many", "Error parsing --queries: invalid literal for int()"),
        ("search x --images=a --to 3", "unknown option --to (did you mean '--top'?)"),
        ("recipes --all", "xmodal recipes: unknown option --all"),
        ("prepare vocabulary --captons x", "unknown option --captons (did you mean '--captions'?)"),
        ("train --data.drop-regions 1.5", "xmodal train: data.drop_regions is 1.5; wanted a share below 1"),
        (f"train --epochs {10**30}", f"xmodal train: epochs is {10**30}; wanted a whole number from 1 to 1000000000"),
        ("train --optimizer.decay inf", "xmodal train: optimizer.decay is inf; wanted"),
        ("train --objective.margin -1", "xmodal train: objective.margin is -1.0; wanted a finite number of at least 0"),
        ("train --model.image.dim 0", "xmodal train: model.image.dim is 0; wanted a whole number from 1"),
        ("train --output= --epochs 3", "xmodal train: output is ''; wanted a path"),
        ("train --model.word-vectors=", "xmodal train: model.word_vectors is ''; wanted a path"),
    ],
)
def test_every_command_tells_a_wrong_option_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_captioner_is_left_out_where_the_head_cannot_use_it(parsed, capsys):
    assert parsed("--recipe", "vsrn_f30k", "--model.head.name", "bfan").model.captioner == {}
    assert capsys.readouterr().err == (
        "xmodal train: model.captioner is left out, which is of no use to the head bfan\n"
    )
    assert parsed("--recipe", "vsrn_f30k", "--model.head.name", "xmodal.heads:VSRN").model.captioner
    asked = ("--model.head.name", "bfan", "--model.captioner.hidden-dim", "8")
    assert parsed("--recipe", "vsrn_f30k", *asked).model.captioner["hidden_dim"] == 8
    assert capsys.readouterr().err == ""


def test_an_embedder_is_evaluated_on_the_crops_of_its_run(tmp_path):
    (tmp_path / "config.yaml").write_text("task: retrieval\ndata: {resize: 40, crop: 36, square: true}\n")
    path, shape = tmp_path / "birds", lambda data: (data.resize, data.crop, data.square)
    for model in (tmp_path, tmp_path / "best"):
        assert shape(crops_of(EvaluateEmbedder(model, path))) == (40, 36, True)
    data = crops_of(EvaluateEmbedder(tmp_path, path, resize=64, square=False))
    assert (data.path, *shape(data)) == (path, 64, 36, False)
    assert shape(crops_of(EvaluateEmbedder(tmp_path / "elsewhere", path))) == (256, 224, False)
