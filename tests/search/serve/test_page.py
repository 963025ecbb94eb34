"""The page in a browser: what is typed is found, words show where they look, images are more like this, or excluded."""

from __future__ import annotations

import pytest
import torch

from scripts.page.browser import SEARCH, open_page, why_no_browser
from tests.search.serve.world import serving
from xmodal.search.composed import example_vectors, find_composed
from xmodal.search.queries import Query
from xmodal.search.serve.app import make_app
from xmodal.search.serve.photographs import Photographs
from xmodal.search.serve.searcher import Searcher

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))


@pytest.fixture(scope="module")
def opened(world):
    searcher = Searcher(world.index, world.matcher, world.calibration)
    with (
        serving(make_app(searcher, Photographs(world.images, world.index.ids))) as url,
        open_page(url) as (page, problems),
    ):
        yield page, problems


@pytest.fixture
def page(opened):
    """The page as it is at first; nothing may go wrong on it."""
    page, problems = opened
    page.goto(page.url.partition("?")[0])
    page.wait_for_function("() => document.getElementById('status').textContent === '60 images'")
    yield page
    assert not problems


def shown(page):
    return page.eval_on_selector_all("figure", "figures => figures.map(one => one.dataset.id)")


def overlay(page):
    return page.eval_on_selector_all("figure svg", "drawings => drawings.map(one => one.innerHTML)")


def test_what_is_typed_is_found(page, world):
    page.type("#text", "a red tile")  # without Enter: a pause is enough
    page.wait_for_selector("figure")
    right = world.index.search(world.matcher, "a red tile", k=24)
    assert page.url.endswith("/?text=a+red+tile")
    page.wait_for_function("() => document.getElementById('status').textContent.includes('nothing else scores higher')")
    assert shown(page) == [hit.image_id for hit in right]
    likely = world.calibration.probability(torch.tensor([hit.score for hit in right]), images=60)
    assert page.text_content("figure .likely") == f"{100 * likely[0]:.0f}% likely"
    page.wait_for_function("() => [...document.images].every(one => one.complete && one.naturalWidth > 0)")


def test_the_search_of_the_benchmark_is_that_of_a_user(page, world):
    for sentence in ("a blue tile", "white"):
        answer = page.evaluate(SEARCH, sentence)
        assert answer["ids"] == [hit.image_id for hit in world.index.search(world.matcher, sentence, k=24)]
        assert 0 < answer["painted"] <= answer["settled"]
        assert "nothing else scores higher" in page.text_content("#status")


def test_a_word_lights_where_it_looks(page):
    page.fill("#text", "a red tile and a blue tile")
    page.press("#text", "Enter")
    page.click('.word:text-is("red")')
    page.wait_for_selector(".stage.lit rect.most")
    red, picture = overlay(page), page.locator("#grid").screenshot()
    assert page.locator('.word[aria-pressed="true"]').all_text_contents() == ["red"]
    page.click('.word:text-is("blue")')
    page.wait_for_function("before => document.querySelector('figure svg').innerHTML !== before", arg=red[0])
    assert overlay(page) != red
    assert page.locator("#grid").screenshot() != picture
    page.click('.word:text-is("blue")')
    page.wait_for_function("() => !document.querySelector('.lit')")
    assert set(overlay(page)) == {""}


def test_more_like_this_and_exclude(page):
    page.fill("#text", "a red tile")
    page.press("#text", "Enter")
    page.wait_for_selector("figure")
    first, second, *_ = shown(page)
    page.locator("figure .exclude").first.click()
    page.wait_for_function("id => document.querySelector('figure').dataset.id === id", arg=second)
    assert first not in shown(page)
    page.locator("figure .like").first.click()
    page.wait_for_function("id => document.querySelector('figure').dataset.id !== id", arg=second)
    assert second not in shown(page)
    assert page.locator("#parts button").count() == 2
    page.locator("#parts button").nth(1).click()  # what was excluded comes back
    page.wait_for_function("() => document.querySelectorAll('#parts button').length === 1")


def test_a_photograph_is_sent(page, world):
    page.set_input_files("#file", str(world.images / "scene-9.png"))
    page.wait_for_selector("figure")
    assert page.locator("#parts img").count() == 1
    examples = dict(zip(["sent"], example_vectors(world.matcher, [str(world.images / "scene-9.png")]), strict=True))
    (right,) = find_composed(world.index, world.matcher, [Query(like=("sent",))], k=24, examples=examples)
    assert shown(page) == [hit.image_id for hit in right.hits]


def test_what_is_wrong_is_told(page, opened):
    page.fill("#text", "red NOT NOT")
    page.press("#text", "Enter")
    page.wait_for_selector("#status.problem")
    assert "a sentence of the query is empty" in page.text_content("#status")
    (problem,) = opened[1]
    assert "status of 422" in problem
    opened[1].clear()  # the browser's own note of it
