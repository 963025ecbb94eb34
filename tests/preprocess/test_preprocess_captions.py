"""Every source of captions gives the same kind of file; what is left out is counted and what is wrong is named."""

from __future__ import annotations

import json

import pytest

from preprocess.captions import Coco, Flickr, Images, Karpathy, Table, main
from xmodal.data import Caption, load_captions


@pytest.fixture
def convert(tmp_path):
    def convert(kind, content, name="input.json", **options):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        main(kind(path, tmp_path / "captions.jsonl", **options))
        return load_captions(tmp_path / "captions.jsonl")

    return convert


def test_karpathy(convert, capsys):
    images = [
        {"filename": "COCO_7.jpg", "cocoid": 7, "split": "restval", "sentences": [{"sentid": 1, "raw": "A dog."}]},
        {"filename": "10.jpg", "split": "val", "sentences": [{"sentid": 2, "raw": "É"}, {"sentid": 3, "raw": " "}]},
        {"filename": "11.jpg", "split": "test", "sentences": [{"sentid": 4, "raw": "A cat."}]},
    ]
    assert convert(Karpathy, {"images": images}) == [
        Caption("7", "1", "A dog.", "train"),
        Caption("10", "2", "É", "dev"),
        Caption("11", "4", "A cat.", "test"),
    ]
    assert "3 captions; left out: 1 empty, 0 in no split" in capsys.readouterr().out


def test_coco(convert):
    annotations = [{"image_id": 7, "id": 70, "caption": "A dog."}]
    assert convert(Coco, {"annotations": annotations}, split="test") == [Caption("7", "70", "A dog.", "test")]


TOKENS = "7.jpg#0\tA dog .\n7.jpg#1\tDogs .\n8.jpg#0\tA cat .\n"


def test_flickr(convert, tmp_path, capsys):
    assert [caption.split for caption in convert(Flickr, TOKENS)] == ["train"] * 3
    (tmp_path / "test.txt").write_text("7.jpg\n")
    captions = convert(Flickr, TOKENS, split_lists={"test": tmp_path / "test.txt"})
    assert captions == [Caption("7", "7.jpg#0", "A dog .", "test"), Caption("7", "7.jpg#1", "Dogs .", "test")]
    assert "1 in no split" in capsys.readouterr().out


def test_images(convert):
    lines = '{"image": "x.jpg", "split": "dev", "captions": ["A dog.", "Rex."]}\n'
    assert convert(Images, lines) == [Caption("x", "x#0", "A dog.", "dev"), Caption("x", "x#1", "Rex.", "dev")]
    with pytest.raises(ValueError, match="is not what `images` reads: KeyError\\('captions'\\)"):
        convert(Images, '{"image": "x.jpg", "split": "dev"}')


def test_csv_and_json_lines(convert):
    text = 'image_id,caption,split\nx,"A dog, ""Rex"".",dev\ny,A cat.,\n'
    expected = [Caption("x", "0", 'A dog, "Rex".', "dev"), Caption("y", "1", "A cat.", "train")]
    assert convert(Table, text, "mine.csv") == expected
    lines = (
        '{"image_id": "x", "caption": "A dog, \\"Rex\\".", "split": "dev"}\n{"image_id": "y", "caption": "A cat."}\n'
    )
    assert convert(Table, lines, "mine.jsonl") == expected
    row = {"image_id": 3, "caption": "A dog.", "caption_id": 0, "split": "test"}
    assert convert(Table, row, "mine.jsonl") == [Caption("3", "0", "A dog.", "test")]


@pytest.mark.parametrize("others", ["", '9.jpg, "2, 3",dev\n', '9.jpg,dev, "two\nlines"\n'])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_caption_is_what_its_row_says_whatever_is_in_others(convert, others, newline):
    """A comma followed by a quotation mark is text in one row, and opens a cell in another one."""
    rows = {
        "7.jpg,A dog, running fast.": "A dog, running fast.",
        '8.jpg,He says, "hi"': 'He says, "hi"',
        '9.jpg,He says, "hi" to me': 'He says, "hi" to me',
        '10.jpg,"He says, ""hi"" to me"': 'He says, "hi" to me',
        '11.jpg, "Quoted, behind a space"': "Quoted, behind a space",
        '12.jpg, "not" all of it': '"not" all of it',
        '13.jpg, "in""side"': 'in"side',
        '14.jpg,5" wide': '5" wide',
    }
    text = newline.join(["image, caption", *rows]) + newline
    captions = {caption.image_id: caption.caption for caption in convert(Table, text, "mine.csv")}
    assert captions == {row.partition(".")[0]: caption for row, caption in rows.items()}
    if others:  # with the caption in the middle, or with a line in it
        heading = "image,caption,split" if others.startswith('9.jpg, "2') else "image,split,caption"
        (caption,) = convert(Table, f"{heading}\n{others}", "mine.csv")
        assert (caption.caption, caption.split) == ("2, 3" if "2, 3" in others else "two\nlines", "dev")


@pytest.mark.parametrize(
    ("kind", "content", "name", "message"),
    [
        (
            Karpathy,
            {"annotations": []},
            "input.json",
            r"input\.json is not what `karpathy` reads: KeyError\('images'\)",
        ),
        (Coco, [1], "input.json", r"input\.json is not what `coco` reads"),
        (Coco, "{", "input.json", r"input\.json is not JSON"),
        (Coco, {"annotations": []}, "input.json", "no caption"),
        (Flickr, TOKENS + "7.jpg A dog", "tokens.txt", r"tokens\.txt, line 4: wanted NAME\.jpg#NUMBER<tab>CAPTION"),
        (Table, "picture,caption\nx,A dog.\n", "mine.csv", r"mine\.csv, row 1 has no \['image_id'\]"),
        (Table, "image_id,caption\nx\n", "mine.csv", r"mine\.csv, row 1 has no \['caption'\]"),
        (Table, '{"image_id": "x", "caption": "A dog."}\n{', "mine.jsonl", r"mine\.jsonl, line 2 is not JSON"),
        (
            Images,
            {"image": "7.jpg", "split": "train", "captions": "A dog."},
            "i.jsonl",
            r"i\.jsonl, line 1: captions is 'A dog\.', wanted a list of strings",
        ),
        (
            Karpathy,
            {"images": [{"filename": "7.jpg", "split": "train", "sentences": [{"tokens": "A dog"}]}]},
            "k.json",
            r"k\.json is not what `karpathy` reads: .*tokens is 'A dog', wanted a list of words",
        ),
        (
            Karpathy,
            {"images": [{"filename": "7.jpg", "split": "train", "sentences": {}}]},
            "k.json",
            r"sentences of 7\.jpg is \{\}, wanted a list",
        ),
        (
            Table,
            '[{"image": "6.jpg", "caption": "A cat"}, {"image": "7.jpg", "caption": "A dog \\ud83d"}]',
            "s.json",
            r"s\.json, row 2: caption 'A dog \\ud83d' holds half a letter",
        ),
        (Table, 'image,caption\n6.jpg,A cat\n7.jpg,"A dog\n', "q.csv", r"q\.csv, line 3: .*Is a quotation mark with"),
    ],
)
def test_bad_input_is_named(convert, tmp_path, kind, content, name, message):
    with pytest.raises(ValueError, match=message):
        convert(kind, content, name)
    assert not (tmp_path / "captions.jsonl").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        main(Coco(tmp_path / "nowhere.json", tmp_path / "captions.jsonl"))
