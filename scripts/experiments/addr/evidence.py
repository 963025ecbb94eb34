"""ADDR against a tuned baseline and its controls, on any number of machines.

    python -m preprocess.coco_annotations compact --input coco_objects --output data/coco_objects --whole-image \
        --max-regions 12
    python -m scripts.experiments.addr.evidence --list
    OMP_NUM_THREADS=1 python -m scripts.experiments.addr.evidence --data-sets coco_objects --heads "SCAN t-i LSE"
    python -m scripts.experiments.addr.evidence --regimes all hinge "10% of the images"

`flickr8k_full` is made as Flickr8k in docs/results/matching.md, with `--max-regions 12`. Each head has its baseline
tuned first (dropout, temperature, epochs), then the weight of what each arm adds, both on the dev split with a seed of
their own; then the arms are compared over seeds, and each of those runs reads the test split once. The result of every
run is appended whole to one file as it ends, with how words and regions lay in its course. Runs that are in the file
are not done again, whichever machine did them; the same command started twice shares the runs between two processes,
and a run that was stopped goes on.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from scripts.experiments.addr.arms import ADDED, COMPARED, DECAY, REGIMES, SOURCES, TUNED
from scripts.experiments.addr.plan import TUNING_SEED, Evidence, Run, plan, told
from scripts.experiments.addr.regimes import WithoutWhole, has_wholes, regime_folder
from scripts.experiments.addr.settings import TOWERS
from scripts.experiments.addr.tables import tables
from scripts.experiments.record import Record
from scripts.experiments.study import claimed, slug, validation
from xmodal.data.split import open_split, split_captions
from xmodal.entry import run_program
from xmodal.evaluation import evaluate_protocol
from xmodal.model import Matcher
from xmodal.training.basin import BasinWatch
from xmodal.training.checkpoints import BEST, LOG, environment
from xmodal.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig, to_dict
from xmodal.training.sampler import ShuffledBatches

ALIGNMENT = "loss/alignment/"
VALIDATED = 200
"""Images of the dev split that pick the best checkpoint of a compared run; one that tunes is measured on all."""

PARTS = 10
"""In so many equal parts of a run the alignment is averaged."""


def main(evidence: Evidence) -> None:
    """Do what is left to do, and print what is known then."""
    record = Record(evidence.record)
    if evidence.only_list:
        print(told(evidence, record.results()))
        return
    wait = False
    while runs := plan(evidence, record.results()).ready:
        # After each run the plan is looked at anew: it may have decided a setting, and others may have done some.
        wait = not any(_do_if_free(evidence, record, run, wait) for run in (runs[:1] if wait else runs))
    print(tables(evidence, record.results()))


def _do_if_free(evidence: Evidence, record: Record, run: Run, wait: bool) -> bool:
    """Do a run that no other process is doing, and record it; whether that was done."""
    config = configure(evidence, run)
    with claimed(config.output, wait) as mine:
        if not mine or run.key in record.results():
            return False
        record.add(asdict(run), results_of(run, config))
        shutil.rmtree(config.output)
        return True


def configure(evidence: Evidence, run: Run) -> TrainConfig:
    """How a run is trained."""
    source, regime, tuned = SOURCES[run.data_set], REGIMES[run.regime], TUNED[run.setting]
    folder = regime_folder(
        evidence.data / run.data_set, regime, evidence.output / "data" / slug(run.data_set, run.regime)
    )
    epochs = int(run.epochs * regime.epochs * tuned.get("epochs", 1))
    pairs = len(split_captions(folder, "train"))
    batch_size = min(TrainConfig.batch_size, pairs)
    steps = len(ShuffledBatches(pairs, batch_size, run.seed, 0, 1))
    towers = {"dim": run.dim, **TOWERS.get(run.head, {})}
    dropout = tuned.get("dropout", 0.0)
    objective = dict(regime.objective)
    if objective["name"] == "hinge":
        objective["warmup_steps"] = steps
    elif "temperature" in tuned:
        objective["temperature"] = tuned["temperature"]
    return TrainConfig(
        output=evidence.output / slug(*map(str, run.key)),
        data=DataConfig(
            folder=folder,
            validation_images=0 if run.seed == TUNING_SEED else VALIDATED,
            drop_regions=source.drop,
            drop_words=source.drop,
        ),
        model=ModelConfig(
            image={"name": "regions", "input_dropout": dropout, **towers},
            text={"name": "gru", "word_dim": 300, "bidirectional": True, "word_dropout": dropout, **towers},
            head=dict(COMPARED[run.head]),
        ),
        objective=objective,
        adversary=_adversary(run, steps, steps * epochs),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine"),
        epochs=epochs,
        batch_size=batch_size,
        keep=1,
        seed=run.seed,
    )


def _adversary(run: Run, steps_per_epoch: int, steps: int) -> dict[str, Any]:
    """What the arm of a run adds; what does not decay warms up over the first epoch."""
    if run.arm not in ADDED:
        return {}
    options = dict(ADDED[run.arm])
    decays = options.pop("decays", False)
    phase = {"beta_decay_steps": max(1, round(DECAY * steps))} if decays else {"beta_warmup_steps": steps_per_epoch}
    return {**options, "beta": run.beta, **phase}


def results_of(run: Run, config: TrainConfig) -> dict[str, Any]:
    """Train a run, or the rest of it; what is recorded of it. The test split is left alone by runs that tune."""
    dev = validation(config)
    lines = [json.loads(line) for line in (config.output / LOG).read_text().splitlines()]
    steps = [line for line in lines if "seconds" in line]
    return {
        "dev": dev,
        **({} if run.seed == TUNING_SEED else tested(config)),
        "alignment": alignment_over(steps),
        "seconds": sum(line["seconds"] for line in steps),
        "seconds_a_step": median(line["seconds"] for line in steps),
        "config": to_dict(config),
        "environment": environment(),
    }


def tested(config: TrainConfig) -> dict[str, Any]:
    """Test results of a run's best checkpoint; without the regions of whole images, too, where there are any."""
    split = open_split(config.data.folder, "test")
    matcher = Matcher.from_pretrained(config.output / BEST)

    def results(source: Any) -> dict[str, Any]:
        return evaluate_protocol(matcher.score_all(source, split.sentences), split.relevance)

    without = results(WithoutWhole(split.source)) if has_wholes(split.source) else None
    return {"test": results(split.source), "test_without_whole_image": without}


def alignment_over(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Each number of the alignment in ten parts of a run, and the step at which the run was said to be in the basin."""
    watch = BasinWatch()
    said = (
        line["step"] for line in steps if watch.see(line[f"{ALIGNMENT}mean_cosine"], line[f"{ALIGNMENT}positive_share"])
    )
    bounds = [round(part * len(steps) / PARTS) for part in range(PARTS + 1)]
    parts = [steps[start:end] for start, end in itertools.pairwise(bounds) if end > start]
    names = [name for name in steps[0] if name.startswith(ALIGNMENT)]
    courses = {
        name.removeprefix(ALIGNMENT): [round(fmean(line[name] for line in part), 4) for part in parts] for name in names
    }
    return {**courses, "basin_at_step": next(said, None)}


if __name__ == "__main__":
    run_program(main, prog="python -m scripts.experiments.addr.evidence")
