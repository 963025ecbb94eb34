"""The examples of every docstring run, in a folder of their own: those that write files leave none behind."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import preprocess
import xmodal

EXAMPLES_MAY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

MODULES = [
    module.name
    for package in (xmodal, preprocess)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith(".__main__")
]


@pytest.mark.parametrize("name", ["xmodal", *MODULES])
def test_examples_run(name, tmp_path, monkeypatch):
    if name == "xmodal.scoring.triton_device":
        pytest.importorskip("triton")
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name), optionflags=EXAMPLES_MAY).failed == 0
