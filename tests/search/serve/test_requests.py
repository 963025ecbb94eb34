"""Requests made to harm are refused with a reason: some here, thousands by `python -m scripts.attack.requests`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from scripts.attack import requests
from tests.search.serve.world import serving
from xmodal.search.serve.app import make_app
from xmodal.search.serve.photographs import Photographs
from xmodal.search.serve.searcher import Searcher


@pytest.fixture(scope="module")
def url(world):
    searcher = Searcher(world.index, world.matcher, world.calibration)
    with serving(make_app(searcher, Photographs(world.images, world.index.ids))) as url:
        yield url


def wrong(trials):
    return [trial for trial in trials if trial.wrong]


def test_what_is_no_http(url, caplog):
    trials = list(requests.raw(url))
    assert not wrong(trials)
    assert len(trials) == len(requests.RAW)
    assert {trial.what: trial.status for trial in trials}["an encoded path"] == 404
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_pictures_made_to_harm(url):
    trials = list(requests.pictures(url, count=20, seed=0))
    assert not wrong(trials)
    status = {trial.what: trial.status for trial in trials}
    for what in ("nothing", "1x1", "SVG", "PostScript", "HTML", "noise", "GIF of 65535x65535"):
        assert status[what] == 422
    for what in (one for one in status if "60000" in one or "100000" in one or "2147483647" in one):
        assert status[what] == 422
    assert status["too many bytes"] == 413
    for what in ("CMYK", "16 bits", "animated GIF", "animated WebP", "with alpha"):
        assert status[what] == 200


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis: pip install schemathesis")
def test_what_the_document_describes(url):
    trials = list(requests.described(url, count=48, seed=0))
    assert not wrong(trials)
    assert {200, 422} <= {trial.status for trial in trials}
    assert len(trials) > 24


def test_what_is_wrong_is_seen():
    import httpx

    assert requests.checked("x", httpx.Response(500, json={"reason": "it failed"})).wrong
    assert requests.checked("x", httpx.Response(404, json={"detail": "it failed"})).wrong
    assert requests.checked("x", httpx.Response(404, text="it failed")).wrong
    assert not requests.checked("x", httpx.Response(404, json={"reason": "it is not there"})).wrong
