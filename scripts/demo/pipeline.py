"""The demo: the whole pipeline on scenes of emoji, from pixels to pictures of what was learned.

    python -m scripts.demo --output demo_output

Nothing here is special: every step is a public function or program that works the same on photographs. What is there
already is not done again, and an interrupted training goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess import regions
from scripts.demo import emoji_scenes
from xmodal.data import Caption, RegionStore, Vocabulary, load_captions
from xmodal.data.split import Split
from xmodal.evaluation import evaluate_protocol, format_table
from xmodal.evaluation.calibration import calibrate, evaluate_calibration, format_calibration
from xmodal.evaluation.pointing import pointing_accuracy
from xmodal.evaluation.report import plot_learning_curves, write_report
from xmodal.model import Matcher
from xmodal.search.index import Index
from xmodal.search.pictures import draw_retrieved, find_image
from xmodal.search.retrieve import explain_pair, retrieve
from xmodal.training.checkpoints import CHECKPOINT, environment
from xmodal.training.config import load_recipe
from xmodal.training.trainer import train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

RECIPES = Path(__file__).parents[1] / "recipes"
MODELS = {"SCAN t-i LSE": "demo_scan", "pooled dual encoder": "demo_pooled"}


@dataclass(frozen=True)
class Demo:
    """Train, evaluate and look at a matcher on scenes of emoji."""

    output: Path = Path("demo_output")
    """Folder for everything that the demo writes."""
    seed: int = 0
    """Seed of the scenes and of the training."""


def main(config: Demo) -> None:
    """Images -> region stores -> captions and vocabulary -> training -> evaluation -> report and pictures."""
    data = config.output / "data"
    _prepare(data, config.seed)
    matchers = {title: _train(title, recipe, config) for title, recipe in MODELS.items()}

    store = RegionStore(data / "test.h5")
    split = Split.of(store, load_captions(data / "captions.jsonl", "test"))
    scores = {name: matcher.score_all(store, split.sentences) for name, matcher in matchers.items()}
    results = {name: evaluate_protocol(matrix, split.relevance) for name, matrix in scores.items()}
    print(f"\n== test split: {len(store)} scenes with things that training never showed\n{format_table(results)}")

    scan = matchers["SCAN t-i LSE"]
    pointed = pointing_accuracy(scan, store, emoji_scenes.read_mentions(data / "scenes.jsonl", "test"))
    print(f"\nwords that look at what they name: {pointed['hits']:.1f}% (a random region: {pointed['chance']:.1f}%)")
    print(_calibrate(scan, config, scores["SCAN t-i LSE"], split))
    pictures = _draw(scan, store, split.captions, data / "images", config.output)
    pictures |= _draw_learning_curves(config.output)
    details = {"words that look at what they name (%)": pointed, "environment": environment()}
    write_report(config.output / "report.md", results, title="Demo", details=details, pictures=pictures)
    files = [config.output / "report.md", config.output / "explanation.html", *pictures.values()]
    print("\nreport:", *files, sep="\n  ")
    print(_index(scan, store, config.output))


def _prepare(data: Path, seed: int) -> None:
    """Scenes, their region stores and a vocabulary, as far as they are not there already."""
    captions_file = data / "captions.jsonl"
    if not (data / "scenes.jsonl").is_file():  # written last
        emoji_scenes.main(emoji_scenes.EmojiScenesConfig(output=data, seed=seed))
    for split in ("train", "dev", "test"):
        if not (data / f"{split}.h5").is_file():
            regions.main(
                regions.RegionsConfig(data / "images", data / f"{split}.h5", captions=captions_file, split=split)
            )
    train_captions = load_captions(captions_file, "train")
    Vocabulary.build([caption.caption for caption in train_captions], min_count=1).save(data / "vocabulary.json")


def _train(title: str, recipe: str, config: Demo) -> Matcher:
    """The best model of a recipe's run, which goes on where it stopped."""
    print(f"\n== training: {title}")
    run = config.output / recipe
    settings = load_recipe(RECIPES / f"{recipe}.yaml")
    data = replace(settings.data, folder=config.output / "data")
    train(replace(settings, output=run, data=data, seed=config.seed, resume=(run / CHECKPOINT).is_file()))
    return Matcher.from_pretrained(run / "best")


def _calibrate(scan: Matcher, config: Demo, scores: Float[Tensor, "image caption"], test: Split) -> str:
    """Make probabilities of the scores on the dev split, keep them beside the model, and say how far they hold."""
    data, run = config.output / "data", config.output / MODELS["SCAN t-i LSE"]
    dev = Split.of(RegionStore(data / "dev.h5"), load_captions(data / "captions.jsonl", "dev"))
    found = evaluate_calibration(calibrate(scan, run, dev), scores, test.relevance)
    return format_calibration({"SCAN t-i LSE": {"calibration": found}})


def _index(scan: Matcher, store: RegionStore, output: Path) -> str:
    """Index the test split; the lines that say how to search it in a browser."""
    index = Index.build(scan, store, output / "data" / "test.index", overwrite=True)
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    where = f"{index.path} --model {output / MODELS['SCAN t-i LSE']} --images {output / 'data' / 'images'}"
    return f"\nto search these scenes in a browser, at http://127.0.0.1:8000/:\n  {python} -m xmodal serve {where}"


def _draw(
    scan: Matcher, store: RegionStore, captions: Sequence[Caption], images: Path, output: Path
) -> dict[str, Path]:
    """What three held-out sentences retrieve, and where the words of one of them look."""
    chosen = [captions[len(captions) * part // 7] for part in (1, 3, 5)]
    rows = [
        row._replace(correct=caption.image_id)
        for row, caption in zip(retrieve(scan, store, [caption.caption for caption in chosen]), chosen, strict=True)
    ]
    pictures = {
        "What three sentences retrieve": output / "search.png",
        "Where the words look": output / "attention.png",
    }
    draw_retrieved(rows, images, output / "search.png")
    first = chosen[0]
    picture = find_image(images, first.image_id)
    for file in ("attention.png", "explanation.html"):
        explain_pair(scan, store, first.image_id, picture, first.caption, output / file)
    return pictures


def _draw_learning_curves(output: Path) -> dict[str, Path]:
    pictures = {f"Learning curves: {title}": output / f"{recipe}.png" for title, recipe in MODELS.items()}
    for recipe, picture in zip(MODELS.values(), pictures.values(), strict=True):
        plot_learning_curves(output / recipe / "log.jsonl", picture)
    return pictures
