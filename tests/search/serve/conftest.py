"""A world to serve. Where what a server is made of is not installed, `test_installed.py` is skipped and says so."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NEEDED = {"fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve", "httpx": "dev"}
MISSING = [f"{name} (pip install 'xmodal[{extra}]')" for name, extra in NEEDED.items() if find_spec(name) is None]
collect_ignore = ["test_api.py", "test_page.py", "test_requests.py"] if MISSING else []


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    from tests.search.serve.world import Tiles, make_world
    from xmodal.encoders.extractors import EXTRACTORS

    EXTRACTORS[Tiles.name] = Tiles
    yield make_world(tmp_path_factory.mktemp("world"))
    del EXTRACTORS[Tiles.name]
