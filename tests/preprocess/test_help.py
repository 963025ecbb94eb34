"""Every program of this folder tells how it is called."""

from __future__ import annotations

import pytest
import tyro

from preprocess import (
    bottom_up_tsv,
    captions,
    coco_annotations,
    features,
    labelled_datasets,
    npz_folder,
    scan_npy,
    verify,
    vocabulary,
)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (coco_annotations, coco_annotations.Source),
        (scan_npy, scan_npy.Config),
        (bottom_up_tsv, bottom_up_tsv.Config),
        (npz_folder, npz_folder.Config),
        (features, features.Config),
        (verify, verify.Config),
        (captions, captions.Source),
        (labelled_datasets, labelled_datasets.Command),
        (vocabulary, vocabulary.Config),
    ],
)
def test_help_says_how_to_call_it(module, arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(arguments, description=module.__doc__, args=["--help"])
    assert f"python -m {module.__name__}" in capsys.readouterr().out
