"""The command line: `xmodal train | evaluate | search | ...`, each a dataclass that tyro turns into options."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from xmodal.names import near_miss
from xmodal.training.config import TrainConfig, load_recipe


@dataclass(frozen=True)
class Split:
    """The part of the data to look at."""

    folder: Path
    """Folder with `{split}.h5` and `captions.jsonl`."""
    split: str = "test"
    """Which split."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate one checkpoint, or several and their ensemble, with a named protocol."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders written by save_pretrained."""
    data: Split
    protocol: str = "plain"
    """plain, f30k-1k, coco-1k-5fold or coco-5k."""
    report: Path | None = None
    """Also write a Markdown report here."""
    json: Path | None = None
    """Also write all numbers here."""


@dataclass(frozen=True)
class Search:
    """Show the images that a sentence retrieves."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    sentences: tyro.conf.Positional[tuple[str, ...]]
    """Sentences to search for."""
    data: Split
    images: Path
    """Folder with the image files, named by image id."""
    output: Path = Path("search.png")
    """Picture to write."""
    top: int = 5
    """Images a sentence."""


@dataclass(frozen=True)
class Explain:
    """Draw where each word of a sentence looks in an image."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    image_id: tyro.conf.Positional[str]
    """Image of the split."""
    sentence: tyro.conf.Positional[str]
    """The sentence."""
    data: Split
    images: Path
    """Folder with the image files, named by image id."""
    output: Path = Path("attention.png")
    """Picture to write."""


@dataclass(frozen=True)
class Inspect:
    """Look at one photograph as a matcher does: its regions, their boxes drawn, its scores against sentences."""

    image: tyro.conf.Positional[Path]
    """The photograph."""
    model: Path | None = None
    """Run folder, or folder written by save_pretrained; regions are found as it was trained on them."""
    sentences: tuple[str, ...] = ()
    """With --model: sentences to score against the photograph."""
    extractor: str | None = None
    """Without --model: what finds the regions, see `python -m preprocess.regions --help`."""
    output: Path = Path("regions.png")
    """Picture to write."""


def train(config: TrainConfig) -> None:
    """Train, then say where things are."""
    from xmodal.training.trainer import train as run

    best = run(config)
    if os.environ.get("RANK", "0") == "0":
        print(f"best rsum {best['rsum']:.1f} at step {best['step']}; model in {config.output / 'best'}")


def evaluate(config: Evaluate) -> None:
    """Print a table of results."""
    from xmodal.data import RegionStore, load_captions
    from xmodal.data.captions import caption_image_index
    from xmodal.evaluation import format_table
    from xmodal.evaluation.matchers import evaluate_matchers
    from xmodal.evaluation.report import write_report

    store = RegionStore(config.data.folder / f"{config.data.split}.h5")
    captions = load_captions(config.data.folder / "captions.jsonl", config.data.split)
    results = evaluate_matchers(
        {str(path): _load(path) for path in config.models},
        store,
        [caption.caption for caption in captions],
        caption_image_index(captions, store.image_id),
        protocol=config.protocol,
        progress=sys.stderr.isatty(),
    )
    print(format_table(results))
    if config.report is not None:
        write_report(config.report, results, details={"data": str(config.data.folder), "split": config.data.split})
    if config.json is not None:
        config.json.write_text(json.dumps(results, indent=2))


def search(config: Search) -> None:
    """Draw and list the best images of each sentence."""
    from xmodal.data import RegionStore
    from xmodal.search.pictures import draw_retrieved
    from xmodal.search.retrieve import retrieve

    store = RegionStore(config.data.folder / f"{config.data.split}.h5")
    rows = retrieve(_load(config.model), store, config.sentences, top=config.top)
    for row in rows:
        found = zip(row.scores, row.image_ids, strict=True)
        print(row.sentence, *(f"  {score:.3f}  {image_id}" for score, image_id in found), sep="\n")
    draw_retrieved(rows, config.images, config.output)
    print(f"wrote {config.output}")


def explain(config: Explain) -> None:
    """Draw the attention of one pair."""
    from xmodal.data import RegionStore
    from xmodal.search.pictures import find_image
    from xmodal.search.retrieve import explain_pair

    store = RegionStore(config.data.folder / f"{config.data.split}.h5")
    image = find_image(config.images, config.image_id)
    explain_pair(_load(config.model), store, config.image_id, image, config.sentence, config.output)
    print(f"wrote {config.output}")


def inspect(config: Inspect) -> None:
    """Print and draw the regions of a photograph, and score it."""
    from xmodal.data.images import read_image
    from xmodal.encoders.extractors import EXTRACTORS
    from xmodal.names import build
    from xmodal.search.photograph import describe_regions, describe_scores
    from xmodal.search.pictures import draw_regions

    if (config.model is None) == (config.extractor is None):
        raise ValueError("give either --model or --extractor: a model brings the extractor that it was trained with")
    if config.sentences and config.model is None:
        raise ValueError("--sentences need --model to score them")
    image = read_image(config.image)
    matcher = None if config.model is None else _load(config.model)
    extractor = (
        build("extractor", EXTRACTORS, {"name": config.extractor}) if matcher is None else matcher.build_extractor()
    )
    (regions,) = extractor([image])
    scores = describe_scores(matcher, regions, config.sentences) if matcher is not None and config.sentences else []
    print(f"{config.image}: {image.width} x {image.height}, {len(regions.boxes)} regions by {extractor.name}")
    print(*describe_regions(regions, extractor.class_names), *scores, sep="\n")
    draw_regions(image, regions, extractor.class_names, config.output, notes=scores)
    print(f"wrote {config.output}")


COMMANDS: dict[str, tuple[Any, type]] = {
    "train": (train, TrainConfig),
    "evaluate": (evaluate, Evaluate),
    "search": (search, Search),
    "explain": (explain, Explain),
    "inspect": (inspect, Inspect),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: wrong input ends with one clear line and exit status 2, not with a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    if name not in COMMANDS:
        sys.exit(f"xmodal: unknown command {name!r}{near_miss(name, COMMANDS)}\n\n{_overview()}")
    command, kind = COMMANDS[name]
    try:
        default, rest = _recipe(rest) if kind is TrainConfig else (None, rest)
        config = tyro.cli(kind, prog=f"xmodal {name}", args=rest, default=default, description=_description(kind))
        command(config)
    except (ValueError, OSError, KeyError, FloatingPointError) as error:
        # A KeyError's own string is the representation of its message.
        print(f"xmodal {name}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(2)


def _recipe(arguments: list[str]) -> tuple[TrainConfig, list[str]]:
    """Take `--recipe FILE` out of the arguments; everything else on the command line overrides the recipe."""
    if "--recipe" not in arguments:
        return TrainConfig(), arguments
    at = arguments.index("--recipe")
    if at + 1 == len(arguments):
        raise ValueError("--recipe needs the path of a YAML file")
    return load_recipe(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]


def _description(kind: type) -> str:
    text = (kind.__doc__ or "").strip()
    return text + " --recipe FILE reads a YAML recipe first." if kind is TrainConfig else text


def _overview() -> str:
    lines = [f"  {name:10}{_description(kind)}" for name, (_, kind) in COMMANDS.items()]
    return "\n".join(["usage: xmodal COMMAND ...", "", *lines, "", "xmodal COMMAND --help lists a command's options."])


def _load(path: Path) -> Any:
    """A model from its own folder or from the run folder that holds it as `best`."""
    from xmodal.model import Matcher

    return Matcher.from_pretrained(path / "best" if (path / "best").is_dir() else path)


if __name__ == "__main__":
    main()
