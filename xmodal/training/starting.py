"""A run that begins with the weights of a model that is there: fine-tuning, and training in stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import PartialState
from tqdm import tqdm

from xmodal.pretrained import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn


def begin_with(model: nn.Module, earlier: nn.Module, folder: Path, *, silent: bool = False) -> None:
    """Give a model the weights of an earlier one wherever both have a parameter or buffer of the same name.

    What only the new one has stays as it was drawn. What was taken, what is new and what was left is said, once for all
    processes.

    Args:
        model: what is going to be trained.
        earlier: what was trained.
        folder: where the earlier one came from.
        silent: say nothing.

    Raises:
        ValueError: if a shape differs, or if nothing has the same name; the model is then left as it was.

    >>> from pathlib import Path
    >>> from torch import nn
    >>> trained, longer = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> begin_with(longer, trained, Path("runs/scan/best"))
    begins with 2 weights of runs/scan/best; new: 1
    """
    own, given = model.state_dict(), earlier.state_dict()
    taken = [name for name in own if name in given]
    if not taken:
        raise ValueError(
            f"model.start_from: {folder} has nothing that this model has; its weights are of {_parts(given)}, this "
            f"model's of {_parts(own)}"
        )
    for name in taken:
        if own[name].shape != given[name].shape:
            raise ValueError(
                f"model.start_from: {name} of {folder} has shape {tuple(given[name].shape)}, that of this model has "
                f"{tuple(own[name].shape)}; give the options of model that are in its {CONFIG}, or leave start_from out"
            )
    model.load_state_dict({name: given[name] for name in taken}, strict=False)
    if not silent and PartialState().is_main_process:
        fresh, unused = _parts(name for name in own if name not in given), _parts(given.keys() - own.keys())
        said = f"begins with {len(taken)} weights of {folder}"
        tqdm.write(said + (f"; new: {fresh}" if fresh else "") + (f"; not used: {unused}" if unused else ""))


def _parts(names: Iterable[str]) -> str:
    """The parts that weights belong to, each once."""
    return ", ".join(sorted({name.rpartition(".")[0] or name for name in names}))
