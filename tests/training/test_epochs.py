"""How long an epoch is has one answer, and patience waits for what may still get better."""

from __future__ import annotations

import math

import pytest
import torch

from xmodal.training.matching import MatchingTask
from xmodal.training.trainer import train

HINGE = {"name": "hinge", "all_negatives_epochs": 1}


@pytest.mark.parametrize(
    ("objective", "accumulate", "processes"), [(HINGE, 1, 1), (HINGE, 3, 1), (HINGE, 2, 2), ({"name": "esa"}, 1, 4)]
)
def test_the_epoch_of_the_objective_is_the_one_that_is_trained(config, change, objective, accumulate, processes):
    config = change(config, objective=objective, accumulate=accumulate)
    captions = len(MatchingTask(config, torch.device("cpu")).dataset)
    sizes = [size for size in range(4, captions, 4) if 0 < captions % size < 4]  # too few are left for a last batch
    assert sizes
    for size in (sizes[0], sizes[-1], captions // 4 * 4):
        task = MatchingTask(change(config, batch_size=size), torch.device("cpu"), processes)
        batches = [list(task.batches(rank, processes).epoch(0)) for rank in range(processes)]
        steps = math.ceil(len(batches[0]) / accumulate)
        assert {len(share) for share in batches} == {len(batches[0])}
        assert task.step_module.objective.hardness.steps_per_epoch == steps


def test_patience_waits_for_validations_that_may_be_the_best(config, change, monkeypatch, read_log):
    """With the ends of epochs alone: two of them without a better result, whatever was seen in between."""
    way = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    by_epoch, given = {1: 300.0, 2: 200.0, 3: 250.0}, []

    def validate(task):
        steps = math.ceil(len(task.dataset) / task.config.batch_size)
        given.append(by_epoch.get((len(given) + 1) / steps, 0.0))  # validated after every step
        return {"i2t": way, "t2i": way, "rsum": given[-1]}

    monkeypatch.setattr(MatchingTask, "validate", validate)
    config = change(config, epochs=20, batch_size=32, validate_every=1, patience=2, best_at="epoch_ends")
    best = train(config)
    assert (best["rsum"], best["epoch"]) == (300.0, 1.0)
    validated = [line["epoch"] for line in read_log(config.output) if "validation" in line]
    assert validated[-1] == 3.0
    assert train(change(config, resume=True)) == best
