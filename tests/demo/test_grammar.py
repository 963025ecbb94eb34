from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.demo.grammar import (
    COUNT_WORDS,
    Group,
    SceneObject,
    group_objects,
    place,
    plural,
    relation,
    with_article,
    write_caption,
)

CANVAS = 100
OBJECTS = st.lists(
    st.builds(
        lambda name, x, y, side: SceneObject(name, (x, y, x + side, y + side)),
        st.sampled_from(["red apple", "owl", "mouse"]),
        st.integers(0, 60),
        st.integers(0, 60),
        st.integers(15, 40),
    ),
    min_size=1,
    max_size=5,
)


def describe(objects: list[SceneObject], seed: int):
    return write_caption(objects, canvas=CANVAS, background="pink", rng=random.Random(seed))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "dogs"),
        ("cherry", "cherries"),
        ("turkey", "turkeys"),
        ("fox", "foxes"),
        ("peach", "peaches"),
        ("bus", "buses"),
        ("tomato", "tomatoes"),
        ("computer mouse", "computer mice"),
        ("tropical fish", "tropical fish"),
    ],
)
def test_plural(name, expected):
    assert plural(name) == expected


@pytest.mark.parametrize(("noun", "expected"), [("owl", "an owl"), ("unicorn", "a unicorn"), ("big owl", "a big owl")])
def test_article(noun, expected):
    assert with_article(noun) == expected


def test_place_names_all_ninths():
    places = [[place(((x + 0.5) / 3, (y + 0.5) / 3)) for x in range(3)] for y in range(3)]
    assert places == [
        ["in the top left corner", "at the top", "in the top right corner"],
        ["on the left", "in the middle", "on the right"],
        ["in the bottom left corner", "at the bottom", "in the bottom right corner"],
    ]
    assert place((1.0, 1.0)) == "in the bottom right corner"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.1, 0.5), (0.9, 0.5), {"to the left of", "on the left of"}),
        ((0.9, 0.5), (0.1, 0.5), {"to the right of", "on the right of"}),
        ((0.5, 0.1), (0.5, 0.9), {"above", "over"}),
        ((0.5, 0.9), (0.5, 0.1), {"below", "under"}),
        ((0.4, 0.4), (0.5, 0.5), {"next to", "beside", "near"}),
        ((0.1, 0.1), (0.9, 0.9), {None}),
    ],
)
def test_relation(first, second, expected):
    groups = [Group("owl", (0,), (*first, *first), 0.2), Group("mouse", (1,), (*second, *second), 0.2)]
    assert relation(*groups, random.Random(0)) in expected


@given(OBJECTS, st.integers(0, 1000))
def test_mentions_name_the_objects_they_point_at(objects, seed):
    caption = describe(objects, seed)
    assert caption.mentions
    for mention in caption.mentions:
        assert caption.text[mention.start : mention.end] == mention.text
        (name,) = {objects[index].name for index in mention.objects}
        everything = {index for index, thing in enumerate(objects) if thing.name == name}
        assert set(mention.objects) == everything, "a noun phrase speaks of all objects of its name"
        assert mention.text == (name if len(everything) == 1 else plural(name))


@given(OBJECTS, st.integers(0, 1000))
def test_counts_and_articles_are_true(objects, seed):
    caption = describe(objects, seed)
    for mention in caption.mentions:
        before = re.sub(r" (big|large|small|little)$", "", caption.text[: mention.start].rstrip()).split(" ")[-1]
        if len(mention.objects) == 1:
            assert before in {"a", "an"}
        elif before == "several":
            assert len(mention.objects) >= 3
        else:
            assert before == COUNT_WORDS[len(mention.objects)]
    assert not re.search(r"\ba [aeio]|\ban [^aeio]|  | ,|^ | $", caption.text)


@given(OBJECTS, st.integers(0, 1000))
def test_directions_are_true_of_every_object(objects, seed):
    caption = describe(objects, seed)
    for first, second in zip(caption.mentions, caption.mentions[1:], strict=False):
        between = caption.text[first.end : second.start]
        one = [objects[index].center for index in first.objects]
        other = [objects[index].center for index in second.objects]
        if "left of" in between:
            assert max(x for x, _ in one) < min(x for x, _ in other)
        if "right of" in between:
            assert min(x for x, _ in one) > max(x for x, _ in other)
        if re.search("above|over", between):
            assert max(y for _, y in one) < min(y for _, y in other)
        if re.search("below|under", between):
            assert min(y for _, y in one) > max(y for _, y in other)


@given(OBJECTS, st.integers(0, 1000))
def test_two_names_are_always_said_where_there_are_two(objects, seed):
    names = {thing.name for thing in objects}
    assert len(describe(objects, seed).mentions) >= min(len(names), 2)


def test_wording_varies_and_a_seed_repeats_it():
    objects = [SceneObject("owl", (0, 0, 20, 20)), SceneObject("mouse", (60, 0, 90, 30))]
    texts = [describe(objects, seed).text for seed in range(50)]
    assert len(set(texts)) > 20
    assert texts == [describe(objects, seed).text for seed in range(50)]


def test_groups_keep_order_and_extent():
    objects = [
        SceneObject("owl", (0, 0, 20, 20)),
        SceneObject("mouse", (40, 40, 60, 60)),
        SceneObject("owl", (80, 0, 100, 20)),
    ]
    owls, mouse = group_objects(objects, CANVAS)
    assert (owls.name, owls.objects, owls.extent, owls.size) == ("owl", (0, 2), (0.1, 0.1, 0.9, 0.1), 0.2)
    assert (mouse.noun, owls.noun) == ("mouse", "owls")
