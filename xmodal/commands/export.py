"""`xmodal export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro  # noqa: TC002  # what options are annotated with is read at run time

from xmodal.commands.opening import load_model


@dataclass(frozen=True)
class Export:
    """Write a model as programs for onnxruntime and others, or for torch.export, and check them against it."""

    model: tyro.conf.Positional[Path]
    """Run folder, or folder written by save_pretrained."""
    output: Path = Path("exported")
    """Folder to write, or to replace."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx, or torch for torch.export."""


def export(config: Export) -> None:
    """Write the programs and say how far they are from the model."""
    from xmodal.data.atomic import refuse_inputs
    from xmodal.export import export_matcher

    refuse_inputs(config.output, [config.model])
    differences = export_matcher(load_model(config.model), config.output, form=config.format)
    for name, difference in differences.items():
        print(f"{name:6} differs from the model by at most {difference:.1e} of its largest number")
    print(f"wrote {config.output}")
