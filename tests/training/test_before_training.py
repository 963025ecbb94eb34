"""What is refused before anything is built leaves nothing behind; runs of earlier versions go on."""

from __future__ import annotations

import pytest
import torch
import yaml
from tiny_data import make_data

from xmodal.data import Vocabulary
from xmodal.data.split import open_vocabulary
from xmodal.training import checkpoints
from xmodal.training.config import DataConfig, ModelConfig, OptimizerConfig, load_recipe, to_dict
from xmodal.training.trainer import train


def test_a_run_of_a_version_that_stored_only_what_was_given_goes_on(config, change):
    config = change(config, epochs=1)
    train(config)
    state = torch.load(config.output / checkpoints.CHECKPOINT, weights_only=True)
    given = {key: value for key, value in to_dict(config).items() if key not in ("keep", "resume_if_present")}
    assert "lse_scale" in state["config"]["model"]["head"]
    assert "lse_scale" not in given["model"]["head"]
    del state["data"]
    checkpoints.save_checkpoint(config.output, {**state, "config": given})
    (config.output / checkpoints.CONFIG).write_text(yaml.safe_dump(given))
    assert load_recipe(config.output / checkpoints.CONFIG) == config
    train(change(config, resume=True, epochs=2))
    finished = torch.load(config.output / checkpoints.CHECKPOINT, weights_only=True)
    assert finished["step"] == 2 * state["step"]
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.01 then, 0.5 now"):
        train(change(config, resume=True, epochs=3, optimizer__learning_rate=0.5))


def test_a_configuration_in_a_checkpoint_that_cannot_be_is_refused_by_its_path(config, change):
    config = change(config, epochs=1)
    train(config)
    state = torch.load(config.output / checkpoints.CHECKPOINT, weights_only=True)
    state["config"]["optimizer"]["decay"] = float("inf")
    checkpoints.save_checkpoint(config.output, state)
    with pytest.raises(ValueError, match=r"the configuration of this run: optimizer.decay is inf; wanted"):
        train(change(config, resume=True))


def test_half_precision_on_a_cpu_is_refused(config, change):
    with pytest.raises(ValueError, match=r"mixed_precision is 'fp16', but this runs on a CPU.* wanted no or bf16"):
        train(change(config, mixed_precision="fp16"))
    assert not config.output.exists()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"data": DataConfig("nowhere")}, FileNotFoundError, "nowhere/train.h5"),
        ({"protocol": "coco-5k"}, ValueError, "coco-5k"),
        ({"objective": {"name": "hinge", "hardest": 1.5}}, ValueError, "hardest must be"),
        ({"optimizer": OptimizerConfig(rates={"nope": 0.1})}, ValueError, "rates: no name of a trained parameter"),
        (
            {"optimizer": OptimizerConfig(learning_rate=1e38)},
            ValueError,
            "learning_rate, .* is 1e\\+38; wanted at most 1e",
        ),
        ({"model": ModelConfig(head={"name": "scna"})}, ValueError, "unknown head 'scna' .*did you mean 'scan'"),
    ],
)
def test_what_cannot_be_trained_leaves_no_run_behind(config, change, fields, error, message):
    with pytest.raises(error, match=message):
        train(change(config, **fields))
    assert not config.output.exists()


def test_a_refused_resume_leaves_the_run_as_it_was(config, change, tmp_path):
    train(change(config, epochs=1))
    before = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}
    others = make_data(tmp_path / "others", train=12)
    for changes, message in (
        ({"data__folder": others}, "others holds other data than this run was started with"),
        ({"optimizer__rates": {"nope": 0.1}}, "another configuration"),
    ):
        with pytest.raises(ValueError, match=message):
            train(change(config, resume=True, epochs=3, **changes))
        assert {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()} == before


def test_the_vocabulary_of_a_data_folder_is_opened_by_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocabulary\.json"):
        open_vocabulary(tmp_path)
    Vocabulary(["a", "dog"]).save(tmp_path / "vocabulary.json")
    assert open_vocabulary(tmp_path).words[-2:] == ["a", "dog"]
