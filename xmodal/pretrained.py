"""Models in folders and on the hub: `save_pretrained` and `from_pretrained`, for the whole package alike."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import save_model
from torch import nn

from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

WEIGHTS = "model.safetensors"


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

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def save_weights(self, folder: Path) -> None:
        """Replace the weights in a folder that `save_pretrained` wrote; a reader finds the old or new ones, whole."""
        with written_whole(folder / WEIGHTS) as temporary:
            save_model(self, str(temporary))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the arguments and the weights into a folder; see huggingface_hub's `save_pretrained`."""
        arguments = self._options_to_save(self._hub_mixin_config or {})
        return super().save_pretrained(save_directory, **{"config": arguments, **options})

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_weights(save_directory)

    def _options_to_save(self, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments by which another process builds the same model."""
        return options

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load what `save_pretrained` wrote, from a folder or from the hub; evaluation mode.

        Raises:
            FileNotFoundError: if a path is given and no model is there.
        """
        folder = Path(pretrained_model_name_or_path)
        is_hub_id = isinstance(pretrained_model_name_or_path, str) and len(folder.parts) == 2 and not folder.exists()
        if not is_hub_id and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no model: config.json is missing (save_pretrained writes one)")
        return super().from_pretrained(str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any):
        # The hub hands over its own options together with those of __init__.
        known = inspect.signature(cls.__init__).parameters
        download = {name: options.pop(name) for name in list(options) if name not in known}
        folder = Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id, **download))
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} does not exist: the folder has a configuration but no weights")
        model = cls(**cls._options_to_load(folder, options))
        return cls._load_as_safetensor(model, str(weights), map_location, strict).eval()

    @classmethod
    def _options_to_load(cls, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments with which to build a model whose weights are then read from a folder."""
        return options
