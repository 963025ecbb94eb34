"""Relevance is checked when it is made, and judgements name the file and the line of what is wrong."""

from __future__ import annotations

import gzip
import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data import Relevance, load_relevance


@st.composite
def relevances(draw):
    """Any pairs with grades, in any order."""
    images, captions = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    cells = [(image, caption) for image in range(images) for caption in range(captions)]
    pairs = draw(st.lists(st.sampled_from(cells), unique=True))
    grades = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(pairs), max_size=len(pairs)))
    image, caption = zip(*pairs, strict=True) if pairs else ((), ())
    return Relevance(image, caption, grades, images=images, captions=captions)


def table(relevance):
    """Grade of every pair, 0 where there is none."""
    grades = torch.zeros(relevance.images, relevance.captions, dtype=torch.float64)
    grades[relevance.image, relevance.caption] = relevance.grade
    return grades


@given(relevances(), st.data())
def test_selecting_is_indexing_the_table(relevance, data):
    images, captions = (
        data.draw(st.lists(st.integers(0, count - 1), unique=True)) for count in (relevance.images, relevance.captions)
    )
    assert torch.equal(table(relevance.select(images, captions)), table(relevance)[images][:, captions])


@given(relevances())
def test_what_each_caption_and_image_says(relevance):
    grades = table(relevance)
    assert (relevance.grade > 0).all()
    partners = [row.nonzero().flatten().tolist() for row in grades.T]
    if all(len(images) == 1 for images in partners):
        assert relevance.caption_image.tolist() == [images[0] for images in partners]
    else:
        assert relevance.caption_image is None
    first = [min(row.nonzero().flatten().tolist(), default=relevance.captions) for row in grades]
    assert relevance.image_order.tolist() == sorted(range(relevance.images), key=lambda image: (first[image], image))


def test_a_caption_image_index_is_relevance():
    index = torch.tensor([2, 0, 2])
    relevance = Relevance.from_caption_image(index, images=4)
    assert (relevance.images, relevance.captions, relevance.grade.tolist()) == (4, 3, [1.0, 1.0, 1.0])
    assert torch.equal(relevance.caption_image, index)


def test_classes_are_relevance():
    relevance = Relevance.from_labels([1, 2, 1], [2, 1, 3])
    assert table(relevance).tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("image", "caption", "grade", "message"),
    [
        ([0, 2], [0, 1], None, r"image\[1\] is 2; wanted an index below the 2 images"),
        ([0, -1], [0, 1], None, r"image\[1\] is -1"),
        ([0, 1], [0, 3], None, r"caption\[1\] is 3; wanted an index below the 3 captions"),
        ([0, 1, 0], [0, 1, 0], None, "image 0 and caption 0 is listed 2 times"),
        ([0, 1], [0, 1], [1.0, -0.5], r"grade\[1\] is -0.5; wanted a finite number"),
        ([0, 1], [0, 1], [float("nan"), 1.0], r"grade\[0\] is nan"),
        ([0, 1], [0, 1], [float("inf"), 1.0], r"grade\[0\] is inf"),
        ([0, 1], [0], None, "2 images, 1 captions"),
        ([0, 1], [0, 1], [1.0], r"grades of shape \(1,\)"),
        ([0.0, 1.0], [0, 1], None, "image is torch.float32; wanted integer"),
        ([[0, 1]], [0, 1], None, r"image has shape \(1, 2\)"),
    ],
)
def test_what_is_no_relevance_is_refused(image, caption, grade, message):
    with pytest.raises(ValueError, match=message):
        Relevance(image, caption, grade, images=2, captions=3)


@pytest.mark.bad_input
def test_choosing_what_is_not_there_or_twice_is_refused():
    relevance = Relevance.from_caption_image([0, 1])
    with pytest.raises(ValueError, match=r"image\[0\] is 2"):
        relevance.select([2], [0])
    with pytest.raises(ValueError, match="captions are chosen more than once"):
        relevance.select([0], [1, 1])
    with pytest.raises(ValueError, match="no caption to tell the number of images from"):
        Relevance.from_caption_image([])


def judgement(image, caption, **grade):
    return json.dumps({"image_id": image, "caption_id": caption, **grade})


GOOD = judgement("b", 0, grade=0.5)


@pytest.fixture
def load(tmp_path):
    def load(*lines, **options):
        path = tmp_path / "judgements.jsonl"
        path.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))
        return load_relevance(path, ["a", "b"], ["0", "1", "2"], **options)

    return load


def test_judgements(load):
    relevance = load(b"\xef\xbb\xbf", GOOD, judgement("a", "0"), judgement("a", "2", grade=0), judgement("a", "1"))
    assert table(relevance).tolist() == [[1, 1, 0], [0.5, 0, 0]]


def test_unknown_ids_are_left_out_only_when_asked_and_counted(load, caplog):
    with caplog.at_level(logging.WARNING, "xmodal"):
        relevance = load(GOOD, judgement("c", "0"), judgement("a", "7"), skip_unknown=True)
    assert table(relevance).tolist() == [[0, 0, 0], [0.5, 0, 0]]
    assert "judgements.jsonl: left out 2 of 3 judgements" in caplog.text


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        (b"\xff\n", "line 2: 'utf-8' codec can't decode byte 0xff"),
        ("[1]", "line 2: wanted an object .* found list"),
        ('{"image_id": "a"}', r"line 2: wanted an object .* found \['image_id'\]"),
        (judgement("a", "0", grade=1, by="me"), "line 2: wanted an object"),
        (judgement("a", "0", grade=-1), "line 2: grade is -1, wanted"),
        (judgement("a", "0", grade=float("nan")), "line 2: grade is nan"),
        (judgement("a", "0", grade="2"), "line 2: grade is '2'"),
        (judgement("a", "0", grade=True), "line 2: grade is True"),
        (judgement("a", None), "line 2: caption_id is None"),
        (GOOD, "line 2: image 'b' and caption '0' were judged before"),
        (judgement("c", "0"), "line 2: image 'c' is not among"),
        (judgement("a", "9"), "line 2: caption '9' is not among .* skip_unknown"),
    ],
)
def test_a_wrong_line_is_named(load, line, message):
    with pytest.raises(ValueError, match=rf"judgements\.jsonl, {message}"):
        load(GOOD, line)


@pytest.mark.bad_input
def test_files_without_judgements_are_refused(load, tmp_path):
    for lines in ((), (judgement("a", 0, grade=0),)):
        with pytest.raises(ValueError, match=r"judgements\.jsonl has no judgement"):
            load(*lines)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_relevance(tmp_path / "nowhere", [], [])


def test_judgements_may_be_packed_and_names_come_once(load, tmp_path):
    """As captions, by the same reader: gzipped, whatever the name, or UTF-16."""
    line = '{"image_id": "7", "caption_id": "0", "grade": 0.5}\n'
    for content in (gzip.compress(line.encode()), line.encode("utf-16"), b"\xef\xbb\xbf" + line.encode()):
        (tmp_path / "j").write_bytes(content)
        assert load_relevance(tmp_path / "j", ["7"], ["0"]).grade.tolist() == [0.5]
    for images, captions, told in ((["7", "7"], ["0"], "images has '7'"), (["7"], ["0", "0"], "captions has '0'")):
        with pytest.raises(ValueError, match=f"the list of {told} more than once"):
            load_relevance(tmp_path / "j", images, captions)
    (tmp_path / "j").write_text(line.replace("0.5", "1" + "0" * 400))
    with pytest.raises(ValueError, match=r"j, line 1: grade is 1000.*, wanted a finite number"):
        load_relevance(tmp_path / "j", ["7"], ["0"])
