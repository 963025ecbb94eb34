"""A picture of how words and regions lay in the course of some runs, from their logs.

    python -m scripts.experiments.addr.alignment --runs runs/without runs/with_addr --output alignment.png

Each folder is one run's; the curves are named after the folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)

from scripts.experiments.addr.page import logged
from xmodal.entry import run_program
from xmodal.figures import new_figure, save_figure
from xmodal.training.basin import MEAN_COSINE, POSITIVE_SHARE

PANELS = {
    "mean_cosine": ("cosine of the mean word and the mean region", MEAN_COSINE),
    "positive_share": ("share of positive products", POSITIVE_SHARE),
    "gap": ("gap of a pair", None),
}
"""What is drawn, and below what both of the first two mean that a run sits in the basin."""


@dataclass(frozen=True)
class Picture:
    """Curves of the alignment."""

    runs: tuple[Path, ...]
    """Folders of runs."""
    output: Path
    """The picture, a PNG."""


def main(picture: Picture) -> None:
    """Draw the three numbers over the steps, one curve a run."""
    figure = new_figure(12, 3.5)
    for axes, (name, (title, limit)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for run in picture.runs:
            axes.plot(logged(run, f"loss/alignment/{name}"), label=run.name, linewidth=1)
        if limit is not None:
            axes.axhspan(axes.get_ylim()[0], limit, color="gray", alpha=0.15)
        axes.set(title=title, xlabel="step")
    figure.axes[0].legend()
    save_figure(figure, picture.output)
    print(f"wrote {picture.output}")


if __name__ == "__main__":
    run_program(main, prog="python -m scripts.experiments.addr.alignment")
