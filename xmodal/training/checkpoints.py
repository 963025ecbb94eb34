"""What a run writes: checkpoints that are never half there, the best model, the log, the environment."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import random
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xmodal.data.atomic import link, room_named, written_whole
from xmodal.data.torch_files import load_torch
from xmodal.heads.attended_program import is_compiled
from xmodal.pretrained import BEST as BEST
from xmodal.products import chosen_products
from xmodal.training.config import flatten
from xmodal.training.read_yaml import write_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xmodal.training.config import RunConfig
    from xmodal.training.task import Model

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
CONFIG = "config.yaml"


def goes_on(config: RunConfig) -> bool:
    """Whether a run goes on from a checkpoint: it must, or it may and there is one.

    >>> from xmodal.training.config import TrainConfig
    >>> goes_on(TrainConfig(resume=True)), goes_on(TrainConfig(output=Path("."), resume_if_present=True))
    (True, False)
    """
    return config.resume or (config.resume_if_present and (config.output / CHECKPOINT).exists())


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, keep: int = 2) -> None:
    """Write the run's state beside the old one and rename it into place: a kill leaves one of the two whole.

    Args:
        folder: run folder.
        state: tensors and plain values.
        keep: how many of the last checkpoints to keep; the one before the last is `checkpoint.1.pt`, and so on.

    Raises:
        OSError: the disk is full, say; the checkpoints that were there stay.

    >>> for step in (100, 200, 300):
    ...     save_checkpoint(Path("."), {"step": step})
    >>> sorted(path.name for path in Path(".").iterdir())
    ['checkpoint.1.pt', 'checkpoint.pt']
    """
    with written_whole(folder / CHECKPOINT) as temporary:
        with temporary.open("wb") as file:  # whose errors, unlike those of torch's own writing, say what is wrong
            torch.save(dict(state), file)
        kept = [folder / CHECKPOINT, *(folder / f"checkpoint.{number}.pt" for number in range(1, keep))]
        for newer, older in reversed(list(itertools.pairwise(kept))):
            if newer.is_file():
                with written_whole(older) as copy:
                    copy.unlink()
                    link(newer, copy)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The run's last state, every byte of which is checked.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged; the message names the checkpoint before it, if that one is whole.

    >>> save_checkpoint(Path("."), {"step": 100, "weight": torch.ones(2)})
    >>> load_checkpoint(Path("."))
    {'step': 100, 'weight': tensor([1., 1.])}
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        left = f"; there is a model in {folder / BEST}, but no state to go on from" if (folder / BEST).exists() else ""
        raise FileNotFoundError(
            f"{path} does not exist: there is nothing to resume{left}. Start a new run without --resume, in another "
            "folder if this one holds a model."
        )
    try:
        return _read(path)
    except ValueError as error:
        raise ValueError(f"{error}. {_older(folder)}") from error


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint, if all of it is as it was written."""
    try:
        state = load_torch(path)
    except Exception as error:  # what is damaged can fail in any way
        raise ValueError(f"{path} is damaged or no checkpoint of xmodal ({error})") from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path} is no checkpoint of xmodal: it does not hold the state of a run")
    return state


def _older(folder: Path) -> str:
    """What to do about a damaged checkpoint."""
    by_age = sorted(folder.glob("checkpoint.*.pt"), key=lambda path: (len(path.name), path.name))
    for path in by_age:
        try:
            step = _read(path)["step"]
        except ValueError:
            continue
        return f"{path} is whole, of step {step}: rename it to {CHECKPOINT} and resume from there"
    return "No other checkpoint is whole: start a new run in another folder"


def save_best(folder: Path, model: Model) -> None:
    """Write the best model so far, as its `from_pretrained` reads it: at every moment `best` is one whole model.

    >>> from xmodal.embedder import Embedder
    >>> embedder = Embedder({"name": "mlp", "input_dim": 8}, dim=4)
    >>> save_best(Path("."), embedder)
    >>> Embedder.from_pretrained("best").dim
    4
    """
    model.save_pretrained(folder / BEST)


def fingerprint(*lists: Iterable[str]) -> str:
    """A hash of lists of names in their order, which tells whether two runs see the same data, wherever it is.

    >>> fingerprint(["7", "8"], ["a dog"]) == fingerprint(["7"], ["8", "a dog"])
    False
    """
    hashed = hashlib.sha256()
    for names in lists:
        hashed.update(json.dumps(list(names)).encode())
    return hashed.hexdigest()


def random_states() -> dict[str, Any]:
    """The states of every global random generator.

    >>> sorted(random_states())
    ['cuda', 'numpy', 'python', 'torch']
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": json.dumps(random.getstate()),
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """The inverse of `random_states`.

    >>> states = random_states()
    >>> drawn = torch.rand(3)
    >>> restore_random_states(states)
    >>> bool((torch.rand(3) == drawn).all())
    True
    """
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = json.loads(states["python"])
    random.setstate((version, tuple(internal), gauss_next))


def environment() -> dict[str, Any]:
    """Versions, machine, command and git commit: what it takes to run this again.

    >>> sorted(environment())
    ['attention', 'command', 'device', 'git_commit', 'machine', 'packages', 'products', 'python', 'threads']
    """
    return {**_surroundings(), "products": chosen_products(), "attention": attention()}


def attention() -> str:
    """What computes attention, and so decides on its last bits: "compiled" or "torch".

    >>> attention() in ("compiled", "torch")
    True
    """
    return "compiled" if is_compiled() else "torch"


@cache
def _surroundings() -> dict[str, Any]:
    """What stays the same while a process lives."""
    packages = ("xmodal", "torch", "transformers", "accelerate", "h5py", "numpy", "nltk")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in packages},
        "git_commit": _git_commit(),
    }


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """The resolved configuration and the environment of a run.

    >>> write_config(Path("."), {"epochs": 30})
    >>> Path("config.yaml").read_text()
    'epochs: 30\\n'
    """
    with written_whole(folder / CONFIG) as temporary:
        temporary.write_text(write_yaml(dict(config), sort_keys=False))
    with written_whole(folder / "environment.json") as temporary:
        temporary.write_text(json.dumps(environment(), indent=2))


class Log:
    """The JSONL log of a run, one object a line, and TensorBoard beside it where that is installed.

    Args:
        folder: run folder.
        step: keep the lines of an earlier run up to this step; later ones come again after a resume.

    >>> with Log(Path(".")) as log:
    ...     log.write(100, **{"loss/total": 7.5})
    >>> Path("log.jsonl").read_text()
    '{"step": 100, "loss/total": 7.5}\\n'
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        path = folder / LOG
        kept: list[str] = []
        if step and path.is_file():
            whole_lines = path.read_text("utf-8", "replace").split("\n")[:-1]  # a kill may have left a beginning
            kept = [line for number, line in enumerate(whole_lines, 1) if _step(line, f"{path}, line {number}") <= step]
        with written_whole(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)  # flushed after every line
        self._tensorboard = _tensorboard(folder, step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        with room_named(self._file.name):
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, step: int, **values: Any) -> None:
        """Append one line; numbers, and numbers in nested dicts, also go to TensorBoard."""
        with room_named(self._file.name):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._tensorboard is not None:
            for name, value in flatten(values, "/").items():
                if isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(name, value, step)


def _step(line: str, where: str) -> int:
    """The step of a line of the log."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {line[:80]!r}. Remove the line, or the file, and resume.") from error


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # run from its source, not installed


def _git_commit() -> str | None:
    """The commit of the source that is running, marked if it was changed since; None outside its repository."""
    here = Path(__file__).parent
    try:
        tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, cwd=here, capture_output=True, check=True)
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git: the version tells
