"""`xmodal inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import load_model


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
    """Without --model: what finds the regions, see `xmodal prepare regions --help`."""
    output: Path = Path("regions.png")
    """Picture to write."""


def inspect(config: Inspect) -> None:
    """Print and draw the regions of a photograph, and score it."""
    from xmodal.data.atomic import refuse_inputs
    from xmodal.data.images import read_image
    from xmodal.encoders.extractors import EXTRACTORS
    from xmodal.given import build_extractor
    from xmodal.names import build
    from xmodal.search.photograph import describe_regions, describe_scores
    from xmodal.search.pictures import draw_regions

    if (config.model is None) == (config.extractor is None):
        raise ValueError("give either --model or --extractor: a model brings the extractor that it was trained with")
    if config.sentences and config.model is None:
        raise ValueError("--sentences need --model to score them")
    refuse_inputs(config.output, [config.image])
    image = read_image(config.image)
    matcher = None if config.model is None else load_model(config.model)
    if matcher is not None:
        extractor = build_extractor(matcher.extractor)
    else:
        extractor = build("extractor", EXTRACTORS, {"name": config.extractor})
    (regions,) = extractor([image])
    scores: list[str] = []
    if matcher is not None and config.sentences:
        scores = describe_scores(matcher, regions, image.size, config.sentences)
    print(f"{config.image}: {image.width} x {image.height}, {len(regions.boxes)} regions by {extractor.name}")
    print(*describe_regions(regions, extractor.class_names), *scores, sep="\n")
    draw_regions(image, regions, extractor.class_names, config.output, notes=scores)
    print(f"wrote {config.output}")
