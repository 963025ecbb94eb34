"""A data folder for all training tests, and configurations that train on it for a few steps."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tiny_data import make_data

from xmodal.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """Bit for bit equality holds there."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_folder, tmp_path):
    return TrainConfig(
        output=tmp_path / "run",
        data=DataConfig(folder=data_folder),
        model=ModelConfig(
            image={"name": "regions", "dim": 16},
            text={"name": "gru", "dim": 16, "word_dim": 8},
            head={"name": "scan", "temperature": 9.0},
        ),
        objective={"name": "hinge", "hardest": 1.0, "warmup_steps": 4},
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=3),
        epochs=2,
        batch_size=16,
        progress=False,
    )


@pytest.fixture
def change():
    """A configuration with some fields changed; nested ones by their path: `change(config, optimizer__decay=0.5)`."""

    def changed(config, **fields):
        for path, value in fields.items():
            outer, _, inner = path.partition("__")
            if inner:
                value = dataclasses.replace(getattr(config, outer), **{inner: value})
            config = dataclasses.replace(config, **{outer: value})
        return config

    return changed


@pytest.fixture
def read_log():
    """The lines of a run's log without the times."""

    def lines(folder):
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]

    return lines
