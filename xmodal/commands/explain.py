"""`xmodal explain`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import Split, load_model


@dataclass(frozen=True)
class Explain:
    """Show why a sentence fits an image as it does: what looks where, how surely, what adds how much to the score."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    image_id: tyro.conf.Positional[str]
    """Image of the split."""
    sentence: tyro.conf.Positional[str]
    """The sentence."""
    data: Split
    images: Path
    """Folder with the image files, named by image id."""
    output: Path = Path("explanation.png")
    """Picture to write."""
    page: Path = Path("explanation.html")
    """Page to write, one file that needs nothing else."""


def explain(config: Explain) -> None:
    """Write the picture and the page of one pair."""
    from xmodal.data import RegionStore
    from xmodal.data.atomic import refuse_inputs
    from xmodal.data.split import files_of, store_file
    from xmodal.search.explained_page import write_page
    from xmodal.search.explained_picture import draw_explanation
    from xmodal.search.explanation import explained
    from xmodal.search.pictures import find_image

    store = RegionStore(store_file(config.data.folder, config.data.split))
    image = find_image(config.images, config.image_id)
    for path in (config.output, config.page):
        refuse_inputs(path, [image, *files_of(config.data.folder, config.data.split)])
    pair = explained(load_model(config.model), store, config.image_id, image, config.sentence)
    draw_explanation(pair, config.output)
    write_page(pair, config.page)
    print(f"score {pair.score:.4f}\nwrote {config.output} and {config.page}")
