"""`xmodal train`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xmodal.training.config import RunConfig


def train(config: RunConfig) -> None:
    """Train, then say where things are."""
    from xmodal.training.config import criterion_of
    from xmodal.training.trainer import train as run

    best = run(config)
    if os.environ.get("RANK", "0") == "0":
        value = criterion_of(best, config.criterion)
        print(f"best {config.criterion} {value:.1f} at step {best['step']}; model in {config.output / 'best'}")
