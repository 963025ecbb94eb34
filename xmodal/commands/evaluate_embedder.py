"""`xmodal evaluate-embedder`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003  # tyro reads the annotations

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import load_model
from xmodal.training.config import LabelledDataConfig, load_recipe


@dataclass(frozen=True)
class EvaluateEmbedder:
    """Evaluate an embedder by retrieval and clustering of labelled images, and draw what it does."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    path: Path
    """An index, a folder with one folder a class, or a file of features."""
    splits: tuple[str, ...] = ("test",)
    """Splits whose images belong together: test, or query gallery."""
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """Levels K of R@K."""
    resize: int | None = None
    """Pixels of the shorter side of an image before it is cropped; as in the run, or 256 for a model without one."""
    crop: int | None = None
    """Side of the square that is cut out of the center; as in the run, or 224."""
    square: bool | None = None
    """Stretch an image to a square before it is cropped; as in the run, or not."""
    neighbors: Path | None = None
    """Also draw the nearest images of some queries here."""
    queries: int = 8
    """How many queries to draw, spread evenly over the images."""
    map: Path | None = None
    """Also draw all images on a plane here."""
    json: Path | None = None
    """Also write all numbers here."""


def evaluate_embedder(config: EvaluateEmbedder) -> None:
    """Print the metrics of an embedder, and draw."""
    from xmodal.data.atomic import check_writable, refuse_inputs, written_whole
    from xmodal.embedder import Embedder
    from xmodal.evaluation.labelled import check_evaluable, evaluate_embeddings
    from xmodal.search.neighbors import draw_map, draw_neighbors
    from xmodal.training.retrieval import load_split

    if config.queries < 1:
        raise ValueError(f"--queries is {config.queries}; wanted at least one to draw")
    for path in (config.json, config.neighbors, config.map):
        if path is not None:
            check_writable(path)
    embedder = load_model(config.model, Embedder)
    images = load_split(crops_of(config), config.splits, train=False)
    for path in filter(None, (config.json, config.neighbors, config.map)):
        refuse_inputs(path, [config.path, *images.image_id])
    check_evaluable(images.labels, images.query, config.recall_at, ks_name="recall_at")
    progress = sys.stderr.isatty()
    embeddings = embedder.embed_all(images, progress=progress)
    options = {"query": images.query, "ks": config.recall_at, "normalize": embedder.normalize, "progress": progress}
    results = evaluate_embeddings(embeddings, images.labels, **options)
    print("\n".join(f"{name:12} {value:6.1f}" for name, value in results.items()))
    if config.json is not None:
        with written_whole(config.json) as whole:
            whole.write_text(json.dumps(results, indent=2), encoding="utf-8")
    if config.neighbors is not None:
        asked = range(len(images)) if images.query is None else images.query.nonzero().flatten().tolist()
        queries = asked[:: max(1, len(asked) // config.queries)][: config.queries]
        how = {"query": images.query, "normalize": embedder.normalize}
        draw_neighbors(embeddings, images.labels, images.image_id, queries, config.neighbors, **how)
        print(f"wrote {config.neighbors}")
    if config.map is not None:
        names = images.class_names
        draw_map(embeddings, images.labels, config.map, class_names=names, normalize=embedder.normalize)
        print(f"wrote {config.map}")


def crops_of(config: EvaluateEmbedder) -> LabelledDataConfig:
    """Where the images are, and how they are cropped: as in the model's run, but for what is asked for.

    >>> from pathlib import Path
    >>> _ = Path("config.yaml").write_text("task: retrieval\\ndata: {resize: 64, crop: 60}\\n")
    >>> data = crops_of(EvaluateEmbedder(Path("."), Path("birds"), crop=56))
    >>> data.path.name, data.resize, data.crop, data.square
    ('birds', 64, 56, False)
    """
    from xmodal.pretrained import BEST
    from xmodal.training.checkpoints import CONFIG

    run = config.model.parent if config.model.name == BEST else config.model
    trained = load_recipe(run / CONFIG).data if (run / CONFIG).is_file() else LabelledDataConfig()
    asked = {name: value for name in ("resize", "crop", "square") if (value := getattr(config, name)) is not None}
    return replace(trained, path=config.path, **asked)
