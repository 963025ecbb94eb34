"""The trainer trains an embedder on labelled images, from pixels and from features, and goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.cli import main
from xmodal.data.labelled import LabelledFeatures, list_folder, save_features, save_index
from xmodal.embedder import Embedder
from xmodal.training import checkpoints
from xmodal.training.config import (
    EmbedderConfig,
    LabelledDataConfig,
    OptimizerConfig,
    RetrievalConfig,
    from_dict,
    to_dict,
)
from xmodal.training.optimizer import make_optimizer, make_schedule
from xmodal.training.retrieval import RetrievalTask
from xmodal.training.trainer import train

OBJECTIVES = [
    {"name": "metric", "metric": {"name": "triplet", "mining": "semihard"}},
    {"name": "metric", "metric": {"name": "proxy_anchor"}},
    {"name": "daml", "metric": {"name": "triplet"}, "warmup_steps": 3},
    {"name": "ecaml", "metric": {"name": "binomial"}},
    {"name": "ie"},
    {"name": "class_adversarial", "metric": {"name": "contrastive"}, "ramp_steps": 5},
]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Six classes of six pictures: a color each, with noise; four classes to train on, two to test."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(6):
        (folder / f"color{number}").mkdir()
        color = generator.integers(0, 256, 3)
        for index in range(6):
            pixels = np.clip(color + generator.normal(0, 20, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"color{number}" / f"{index}.png")
    images = list_folder(folder)
    split = {f"color{number}": "train" if number < 4 else "dev" for number in range(6)}
    save_index(folder / "index.jsonl", [dataclasses.replace(i, split=split[i.class_name]) for i in images])
    return folder / "index.jsonl"


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """Eight classes on a sphere, hidden among dimensions of noise."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(8).repeat_interleave(10)
    centers = torch.randn(8, 4, generator=generator)
    signal = centers[classes] + 0.3 * torch.randn(80, 4, generator=generator)
    values = torch.cat([signal, 3 * torch.randn(80, 12, generator=generator)], dim=1)
    splits = ["train" if number < 6 else "dev" for number in classes.tolist()]
    path = tmp_path_factory.mktemp("features") / "features.h5"
    names = [f"class {number}" for number in classes.tolist()]
    images = LabelledFeatures(values, [str(i) for i in range(80)], names, splits)
    save_features(path, values, images, {"backbone": "by hand"})
    return path


@pytest.fixture
def settings(features, tmp_path):
    return RetrievalConfig(
        output=tmp_path / "run",
        data=LabelledDataConfig(path=features, images_per_class=4),
        model=EmbedderConfig(backbone={"name": "mlp"}, dim=8),
        objective=OBJECTIVES[0],
        optimizer=OptimizerConfig(learning_rate=0.01, schedule="constant"),
        epochs=3,
        batch_size=16,
        recall_at=(1, 2),
        criterion="mAP@R",
        progress=False,
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda options: options.get("metric", options)["name"])
def test_every_objective_trains_and_resumes_as_if_it_had_not_stopped(settings, change, read_log, objective):
    settings = change(settings, objective=objective)
    whole = change(settings, output=settings.output / "whole")
    train(whole)
    first = change(settings, epochs=1)
    train(first)
    best = train(change(settings, resume=True))
    assert read_log(settings.output) == read_log(whole.output)
    losses = [line["loss/total"] for line in read_log(settings.output) if "loss/total" in line]
    assert len(losses) == 9
    assert all(np.isfinite(losses))
    assert best["R@1"] <= best["R@2"] <= 100
    Embedder.from_pretrained(settings.output / "best")


def test_training_helps_classes_never_seen(settings, change):
    """The classes differ in four of sixteen dimensions, and which ones can be learned from other classes."""
    untrained = RetrievalTask(settings, torch.device("cpu")).validate()["mAP@R"]
    assert train(change(settings, epochs=20))["mAP@R"] > untrained + 10


def test_a_wrapped_backbone_reads_the_length_of_features_from_their_file(settings, change):
    wrapped = {"name": "projected", "backbone": {"name": "mlp"}, "dim": 6}
    model = RetrievalTask(change(settings, model__backbone=wrapped), torch.device("cpu")).model
    assert model(torch.randn(2, 16)).shape == (2, 8)


def test_pixels_to_embeddings_end_to_end(pictures, settings, change, capsys, tmp_path):
    settings = change(
        settings,
        data=LabelledDataConfig(path=pictures, images_per_class=4, resize=36, crop=32),
        model=EmbedderConfig(backbone={"name": "torchvision", "network": "shufflenet_v2_x0_5", "weights": None}, dim=8),
        epochs=2,
        batch_size=8,
    )
    whole = change(settings, output=settings.output / "whole")
    train(whole)
    train(change(settings, epochs=1))
    train(change(settings, resume=True))
    states = [checkpoints.load_checkpoint(run.output)["step_module"] for run in (settings, whole)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name

    sheet, plane, numbers = tmp_path / "sheet.png", tmp_path / "map.png", tmp_path / "new" / "numbers.json"
    arguments = ["--splits", "dev", "--recall-at", "1", "2", "--resize", "36", "--crop", "32"]
    drawings = ["--neighbors", str(sheet), "--queries", "2", "--map", str(plane), "--json", str(numbers)]
    main(["evaluate-embedder", str(settings.output), "--path", str(pictures), *arguments, *drawings])
    assert {"R@1", "R@2", "mAP@R", "R-precision", "NMI", "F1"} <= json.loads(numbers.read_text()).keys()
    assert "mAP@R" in capsys.readouterr().out
    for drawing in (sheet, plane):
        with Image.open(drawing) as picture:
            assert picture.size[0] > 100


def test_a_recipe_says_what_is_trained(settings, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"task: retrieval\noutput: {settings.output}\ndata: {{path: {settings.data.path}}}\n"
        "model: {backbone: {name: mlp}, dim: 8}\nbatch_size: 16\nepochs: 1\nprogress: false\n"
    )
    main(["train", "--recipe", str(recipe), "--epochs", "2"])
    assert "best R@1 " in capsys.readouterr().out
    assert checkpoints.load_checkpoint(settings.output)["step"] == 6
    recipe.write_text("task: retrival\n")
    with pytest.raises(SystemExit):
        main(["train", "--recipe", str(recipe)])
    assert "task is 'retrival' (did you mean 'retrieval'?); wanted matching or retrieval" in capsys.readouterr().err


def test_a_configuration_survives_yaml(settings):
    plain = json.loads(json.dumps(to_dict(settings)))
    assert from_dict(RetrievalConfig, plain) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 18}, "batch_size 18 must be a multiple of data.images_per_class, 4"),
        ({"objective": {"name": "dalm"}}, "unknown objective 'dalm' .*'daml'"),
        ({"objective": {"name": "metric", "metric": {"name": "tripletts"}}}, "triplet"),
        ({"model__backbone": {"name": "mpl"}}, "unknown backbone 'mpl' .*'mlp'"),
        ({"data__validation": ("train",)}, "6 classes are in the training images and in those for evaluation"),
        ({"data__validation": ("val",)}, "no image of split 'val'"),
        ({"recall_at": (1, 20), "criterion": "R@1"}, r"recall_at are \(1, 20\); wanted levels from 1 to 19"),
    ],
)
def test_what_cannot_work_is_refused(settings, change, changes, message):
    with pytest.raises(ValueError, match=message):
        train(change(settings, **changes))


@pytest.mark.bad_input
def test_validation_without_two_images_of_a_class_is_refused_before_training(settings, change, tmp_path):
    names = ["train 0", "train 1"] * 8 + ["lone 0", "lone 1", "lone 2"]
    splits = ["train"] * 16 + ["dev"] * 3
    images = LabelledFeatures(torch.randn(19, 16), [str(i) for i in range(19)], names, splits)
    path = tmp_path / "lone.h5"
    save_features(path, images.features, images, {"backbone": "by hand"})
    with pytest.raises(ValueError, match="none of the 3 queries has an image of its class"):
        train(change(settings, data__path=path, data__images_per_class=8))


def test_a_criterion_that_is_no_result_is_refused():
    with pytest.raises(ValueError, match=r"criterion is 'mAP@r': 'mAP@r' is no result \(did you mean 'mAP@R'\?\)"):
        RetrievalConfig(criterion="mAP@r")


def test_rates_hold_from_their_epoch_on(settings, change, read_log):
    """DAML's schedule: every part at the full rate at first, then the trunk at a thousandth."""
    rates = {"embedder.embed": 0.001}
    settings = change(settings, optimizer__rates=rates, optimizer__rates_from_epoch=1)
    task = RetrievalTask(settings, torch.device("cpu"))
    optimizer = make_optimizer(task.step_module, settings.optimizer)
    scheduler = make_schedule(optimizer, settings.optimizer, steps_per_epoch=2, epochs=3)
    seen = []
    for _ in range(4):
        seen.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    assert seen == [[0.01], [0.01], [pytest.approx(1e-5)], [pytest.approx(1e-5)]]


def test_a_run_goes_on_where_its_images_are_now(pictures, settings, change, tmp_path):
    """A moved folder of photographs is the same data, one photograph less is not."""
    settings = change(
        settings,
        data=LabelledDataConfig(path=pictures, images_per_class=4, resize=36, crop=32),
        model=EmbedderConfig(backbone={"name": "torchvision", "network": "shufflenet_v2_x0_5", "weights": None}, dim=8),
        epochs=1,
        batch_size=8,
    )
    train(settings)
    moved = tmp_path / "moved"
    shutil.copytree(pictures.parent, moved)
    path = moved / pictures.name
    train(change(settings, resume=True, epochs=2, data__path=path))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="holds other data than this run was started with"):
        train(change(settings, resume=True, epochs=3, data__path=path))
