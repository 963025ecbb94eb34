"""Models in folders and on the hub: `save_pretrained` and `from_pretrained`, for the whole package alike."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn
from torch.overrides import TorchFunctionMode

from xmodal.data.atomic import folder_written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from typing_extensions import Self

WEIGHTS = "model.safetensors"

BEST = "best"
"""Folder of a run that has its best model."""
CONFIG = "config.json"
CARD = "README.md"
CALIBRATION = "calibration.json"
"""What makes probabilities of a model's scores; it belongs to the weights, and goes when others are saved."""
HASH = "weights_sha256"
"""What the configuration calls the hash of the file of weights, by which damage to it is noticed."""

ADVICE = "Copy the model's folder again, or train or import it again."


class Pretrained(nn.Module, PyTorchModelHubMixin):
    """A model whose arguments are kept in `config.json` and whose weights are kept in `model.safetensors`.

    >>> import torch
    >>> class Scale(Pretrained):
    ...     def __init__(self, factor: float = 1.0) -> None:
    ...         super().__init__()
    ...         self.factor = nn.Parameter(torch.tensor(factor))
    >>> Scale(factor=2.0).save_pretrained("scale")
    >>> Scale.from_pretrained("scale").factor.item()
    2.0
    """

    _own_files = (CONFIG, WEIGHTS, CALIBRATION)
    """What `save_pretrained` writes or removes; a model card and what else is in the folder stays."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def fingerprint(self, *, trusting: bool = False) -> str:
        """A hash of what the model computes: its arguments and its weights, wherever they are; hexadecimal.

        Models with the same fingerprint embed alike, so that what one has embedded the other may search.

        Args:
            trusting: give the last fingerprint again if no weight seems to have changed since: their versions, as torch
                counts them, and their norms are the same. That takes a hundredth of the time.

        >>> import torch
        >>> class Shift(Pretrained):
        ...     def __init__(self, by: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.by = nn.Parameter(torch.tensor(by))
        >>> Shift(2.0).save_pretrained("shift")
        >>> Shift(2.0).fingerprint() == Shift.from_pretrained("shift").fingerprint() != Shift(3.0).fingerprint()
        True
        """
        state = self.state_dict()
        marks = [_mark(tensor.detach()) for tensor in state.values()]
        if not trusting or self._fingerprint is None or self._fingerprint[0] != marks:
            arguments = self._options_to_save(self._hub_mixin_config or {})  # type: ignore[arg-type]
            digest = hashlib.sha256(json.dumps(_without_places(arguments), sort_keys=True, default=str).encode())
            for name, tensor in sorted(state.items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._fingerprint = marks, digest.hexdigest()
        return self._fingerprint[1]

    _fingerprint: tuple[Any, str] | None = None
    """The last one, and the marks of the tensors it is of."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write configuration and weights to a folder; `options` are those of the hub's `save_pretrained`.

        A model that is there is replaced in one step, so that a reader finds the old or the new one, whole; what else
        is in the folder stays.

        Raises:
            OSError: the folder cannot be written, or the disk is full; a model that is there stays.
        """
        given: Any = self._hub_mixin_config or {}
        card, arguments = Path(save_directory) / CARD, self._options_to_save(given)
        with folder_written_whole(save_directory, keep=lambda name: name not in self._own_files) as temporary:
            if card.is_file():  # a model card that somebody wrote is not replaced
                shutil.copyfile(card, temporary / CARD)
            result = super().save_pretrained(temporary, **{"config": arguments, **options})
            stored = json.loads((temporary / CONFIG).read_text("utf-8"))
            stored[HASH] = _hash(temporary / WEIGHTS)
            (temporary / CONFIG).write_text(json.dumps(stored, indent=2, sort_keys=True), "utf-8")
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, str(save_directory / WEIGHTS))

    def _options_to_save(self, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments by which another process builds the same model."""
        return options

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load what `save_pretrained` wrote, from a folder or from the hub; evaluation mode.

        Args:
            pretrained_model_name_or_path: the folder, the run folder that has it as `best`, or a hub id.
            options: `map_location`, the device to load to (a name or a `torch.device`), and what the hub takes.

        Raises:
            FileNotFoundError: if a path is given and no model is there.
            ValueError: the configuration or the weights are damaged, or they do not belong together; or they are a
                model of another kind.
        """
        folder = Path(pretrained_model_name_or_path)
        if isinstance(pretrained_model_name_or_path, str) and len(folder.parts) == 2 and not folder.exists():
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        folder = model_folder(folder)
        _read_config(folder)
        return super().from_pretrained(str(folder), **options)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str | torch.device = "cpu", strict: bool = True, **options: Any
    ) -> Self:
        # The hub hands over its own options together with those of __init__.
        known = inspect.signature(cls.__init__).parameters
        download = {name: options.pop(name) for name in list(options) if name not in known}
        folder = Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id, **download))
        config, weights = folder / CONFIG, folder / WEIGHTS
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} does not exist: the folder has a configuration but no weights")
        stored = _read_config(folder)
        _refuse_other_kind(cls, folder, stored)
        noted = stored.get(HASH)
        if noted is not None and noted != _hash(weights):
            raise ValueError(f"{weights} is damaged, or not of this {CONFIG}: its hash differs. {ADVICE}")
        try:
            with _ParametersNotDrawn() if strict else contextlib.nullcontext():
                model = cls(**cls._options_to_load(folder, options))
        except ValueError as error:  # of names and values that no part has
            named = str(folder) in str(error)
            raise error if named else ValueError(f"{config} cannot be followed: {error}") from error
        except (TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:  # of values of a wrong kind
            raise ValueError(f"{config} does not describe a {cls.__name__} ({error}). {ADVICE}") from error
        try:
            cls._load_as_safetensor(model, str(weights), "cpu", strict)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights} is damaged, or not of this {CONFIG} ({error}). {ADVICE}") from error
        return model.to(map_location).eval()

    @classmethod
    def _options_to_load(cls, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments with which to build a model whose weights are then read from a folder."""
        return options


def model_folder(path: str | Path) -> Path:
    """Where the model of a folder is: in the folder itself or, of a run folder, in `best`.

    >>> Path("run", "best").mkdir(parents=True)
    >>> model_folder("run").name
    'best'
    """
    folder = Path(path)
    return folder / BEST if not (folder / CONFIG).is_file() and (folder / BEST).is_dir() else folder


def weights_hash(path: str | Path) -> str:
    """The hash of the weights in the folder of a model or of its run: what its scores depend on.

    Raises:
        FileNotFoundError: no model is there.
        ValueError: its configuration is damaged.

    >>> class Scale(Pretrained):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.factor = nn.Parameter(torch.ones(1))
    >>> Scale().save_pretrained("scale")
    >>> len(weights_hash("scale"))
    64
    """
    folder = model_folder(path)
    return _read_config(folder).get(HASH) or _hash(folder / WEIGHTS)


class _ParametersNotDrawn(TorchFunctionMode):
    """Parameters are left as they are where random values would be drawn for them: all of them are read from a file.

    Drawing takes longer than reading and checking do.
    """

    _DRAWS = frozenset(
        [
            *(torch.Tensor.uniform_, torch.Tensor.normal_),
            *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
        ]
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, unless it draws a parameter."""
        kwargs = kwargs or {}
        if func in self._DRAWS:
            drawn = args[0] if args else kwargs["tensor"]
            if isinstance(drawn, nn.Parameter):
                return drawn
        return func(*args, **kwargs)


def _mark(tensor: Tensor) -> tuple[int, int, float]:
    """What is another for a tensor whose values were changed: also by way of `.data`, which torch does not count."""
    version = 0 if tensor.is_inference() else tensor._version  # torch counts no versions of inference tensors
    values = tensor.flatten()
    norm = values.dot(values) if values.is_floating_point() else values.sum()
    return tensor.data_ptr(), version, float(norm)


def _without_places(options: Any) -> Any:
    """Arguments without what only says where weights were read from."""
    if isinstance(options, dict):
        return {key: _without_places(value) for key, value in options.items() if key not in _PLACES}
    return options


_PLACES = ("weights", "model", "extractor", "captioner")
"""Options that change nothing of how a built model embeds: files that its weights came from, and other parts."""


def _refuse_other_kind(kind: type[Pretrained], folder: Path, config: dict[str, Any]) -> None:
    """Refuse the configuration of a model that is none of a kind, and say of which kind it is."""
    if lacking := _lacking(kind, config):
        kinds = [other.__name__ for other in Pretrained.__subclasses__() if not _lacking(other, config)]
        hint = f"; it is of the kind {kinds[0]}: load it as one" if kinds else ""
        raise ValueError(f"{folder} holds no {kind.__name__}: its {CONFIG} lacks {', '.join(lacking)}{hint}")


def _lacking(kind: type[Pretrained], config: dict[str, Any]) -> list[str]:
    """The arguments that a kind of model cannot do without and a configuration does not have."""
    arguments = inspect.signature(kind).parameters.values()
    needed = [each.name for each in arguments if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    return [name for name in needed if name not in config]


def _read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model, as far as it can be read."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no model: {CONFIG} is missing (save_pretrained writes one)")
    try:
        config = json.loads(path.read_text("utf-8"))  # as the hub's own reading does, which takes no byte order mark
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}). {ADVICE}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(config).__name__}, wanted an object. {ADVICE}")
    return config


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
