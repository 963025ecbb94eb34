"""Captions as others save them, variant by variant; nothing is lost in silence and nothing is merged in silence."""

from __future__ import annotations

import gzip
import json

import pytest

from preprocess.captions import Coco, Flickr, Images, Karpathy, Table, main
from preprocess.image_ids import image_stem, read_image_names
from xmodal.data import Caption, RegionStore, RegionStoreWriter, load_captions


@pytest.fixture
def convert(tmp_path):
    def convert(kind, content, name="captions.txt", **options):
        path = tmp_path / name
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        main(kind(path, tmp_path / "out.jsonl", **options))
        return load_captions(tmp_path / "out.jsonl")

    return convert


FLICKR8K = """image,caption
1000268201_693b08cb0e.jpg,A child in a pink dress is climbing up a set of stairs in an entry way .
1000268201_693b08cb0e.jpg,"A girl going into a ""wooden"" building , smiling ."
"""

FLICKR30K = """image_name| comment_number| comment
1000092795.jpg| 0| Two young guys with shaggy hair look at their hands .
1000092795.jpg| 1| "Two men" in green shirts , in a yard .
2199200615.jpg| 4   A dog runs across the grass .
"""


def test_kaggle_flickr8k(convert):
    assert convert(Table, FLICKR8K) == [
        Caption("1000268201_693b08cb0e", "0", FLICKR8K.split("\n")[1].split(",")[1], "train"),
        Caption("1000268201_693b08cb0e", "1", 'A girl going into a "wooden" building , smiling .', "train"),
    ]


def test_kaggle_flickr30k(convert):
    """With pipes, spaces, quotation marks of the captions, and the one row of the real file that lacks a pipe."""
    assert convert(Table, FLICKR30K, "results.csv", split="test") == [
        Caption("1000092795", "1000092795#0", "Two young guys with shaggy hair look at their hands .", "test"),
        Caption("1000092795", "1000092795#1", '"Two men" in green shirts , in a yard .', "test"),
        Caption("2199200615", "2199200615#4", "A dog runs across the grass .", "test"),
    ]


TWO = [Caption("7", "0", "Ein Café, zwei.", "dev"), Caption("8", "1", 'Die "Bar".', "train")]

FORMS = {
    "comma": 'image_id,caption,split\n7,"Ein Café, zwei.",val\n8,"Die ""Bar"".",\n',
    "spaces": 'Image, Split, Caption\n7.jpg, valid, "Ein Café, zwei."\n8.jpg,, "Die ""Bar""."\n',
    "no quotes": 'image,split,caption\n7.jpg,dev,Ein Café, zwei.\n8.jpg,train,Die "Bar".\n',
    "semicolon": "filename;caption;split\nphotos/7.jpg;Ein Café, zwei.;validation\n"
    'photos/8.jpg;"Die ""Bar"".";restval\n',
    "tab": 'image\tsplit\tsentence\n7.JPG\tval\tEin Café, zwei.\n8.JPG\ttrain\tDie "Bar".\n',
    "spreadsheet": 'image_id\tcaption\tsplit\n7.0\tEin Café, zwei.\tdev\n8.0\t"Die ""Bar""."\ttrain\n',
    "json lines": '{"image": "a/7.jpg", "caption": "Ein Café, zwei.", "split": "dev"}\n\n'
    '{"image": "a/8.jpg", "caption": "Die \\"Bar\\"."}',
    "json list": '[{"image_id": 7.0, "text": "Ein Café, zwei.", "split": "dev"}, '
    '{"image_id": 8, "text": "Die \\"Bar\\"."}]',
}


@pytest.mark.parametrize("form", FORMS)
def test_tables(convert, form):
    for text in (FORMS[form], FORMS[form].replace("\n", "\r\n")):
        assert convert(Table, text) == TWO
    if not form.startswith("json"):
        assert convert(Table, FORMS[form].replace("\n", "\r")) == TWO


@pytest.mark.parametrize("form", ["comma", "tab", "json lines"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("encoding", "named"), [("utf-8-sig", None), ("utf-16", None), ("latin-1", "latin-1"), ("utf-16-le", "utf-16-le")]
)
def test_encodings(convert, form, encoding, named, packed):
    data = FORMS[form].encode(encoding)
    assert convert(Table, gzip.compress(data) if packed else data, encoding=named) == TWO


def test_another_encoding_is_named_with_its_line_and_the_option(convert):
    with pytest.raises(
        ValueError, match=r"captions\.txt, line 2: 'utf-8' codec can't decode byte 0xe9.*--encoding latin-1"
    ):
        convert(Table, FORMS["comma"].encode("latin-1"))


def test_the_first_of_every_list_counts(tmp_path, convert):
    """A byte order mark would otherwise be a part of the first image's name."""
    (tmp_path / "test.txt").write_text("7.jpg\r\n8.jpg\r\n", "utf-8-sig")
    tokens = "7.jpg#0\tA dog .\n8.jpg#0\tA cat .\n"
    captions = convert(Flickr, tokens.encode("utf-8-sig"), split_lists={"test": tmp_path / "test.txt"})
    assert captions == [Caption("7", "7.jpg#0", "A dog .", "test"), Caption("8", "8.jpg#0", "A cat .", "test")]
    (tmp_path / "lines.jsonl").write_text('{"image": "7.jpg", "split": "test"}\n', "utf-8-sig")
    assert read_image_names(tmp_path / "lines.jsonl") == {"7": "7"}
    (tmp_path / "dataset.json").write_text('{"images": [{"id": 7, "file_name": "COCO_7.jpg"}]}', "utf-16")
    assert read_image_names(tmp_path / "dataset.json") == {"7": "COCO_7"}
    (tmp_path / "dataset.json.gz").write_bytes(gzip.compress((tmp_path / "dataset.json").read_bytes()))
    assert read_image_names(tmp_path / "dataset.json.gz") == {"7": "COCO_7"}
    (tmp_path / "out.jsonl").write_bytes((tmp_path / "out.jsonl").read_text("utf-8").encode("utf-8-sig"))
    assert load_captions(tmp_path / "out.jsonl") == captions


def karpathy(*images):
    return {"images": [{"split": "test", "sentences": [{"raw": "A dog."}], **image} for image in images]}


def test_karpathy_without_sentence_ids_or_raw_text(convert):
    sentences = [{"tokens": ["a", "dog"]}, {"raw": "A cat.", "tokens": ["a", "cat"]}]
    assert convert(Karpathy, karpathy({"filename": "7.jpg", "sentences": sentences})) == [
        Caption("7", "7#0", "a dog", "test"),
        Caption("7", "7#1", "A cat.", "test"),
    ]


@pytest.mark.parametrize(
    ("split", "ours"),
    [("val", "dev"), ("valid", "dev"), ("dev", "dev"), ("validation", "dev"), ("restval", "train"), ("train", "train")],
)
def test_splits_go_by_any_name(convert, split, ours):
    (caption,) = convert(Karpathy, karpathy({"filename": "7.jpg", "split": split}))
    assert caption.split == ours
    (caption,) = convert(Table, f"image,caption,split\n7.jpg,A dog.,{split.title()}\n")
    assert caption.split == ours


def test_an_unknown_split_is_named(convert):
    with pytest.raises(ValueError, match=r"7\.jpg is of split 'tset'; known: train, restval, dev, val"):
        convert(Karpathy, karpathy({"filename": "7.jpg", "split": "tset"}))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("7.jpg", "7"), ("val2014/7.JPEG", "7"), ("C:\\photos\\7.png", "7"), ("391895.0", "391895"), ("a.b.c", "a.b.c"),
        ("a.b.webp", "a.b"), (".jpg", ".jpg"), (" 7.jpg ", "7"), ("v1.5", "v1.5"), ("1000092795", "1000092795"),
    ],
)  # fmt: skip
def test_the_stem_of_a_name(name, stem):
    assert image_stem(name) == stem


def test_dotted_names_without_extension_stay_apart(convert):
    captions = convert(Karpathy, karpathy({"filename": "film.001"}, {"filename": "film.002"}))
    assert [caption.image_id for caption in captions] == ["film.001", "film.002"]


def test_names_that_would_be_one_image_are_refused(tmp_path, convert):
    both = karpathy({"filepath": "a", "filename": "7.jpg"}, {"filepath": "b", "filename": "7.jpg"})
    with pytest.raises(ValueError, match=r"'a/7\.jpg \(image 0\)' and 'b/7\.jpg \(image 1\)' would both be image '7'"):
        convert(Karpathy, both, "dataset.json")
    with pytest.raises(ValueError, match=r"'a/7\.jpg .*' and 'b/7\.jpg .*' would both be image '7'"):
        read_image_names(tmp_path / "dataset.json")
    with pytest.raises(ValueError, match=r"'1\.jpg .*' and '2\.jpg .*' would both be image '9'"):
        convert(Karpathy, karpathy({"filename": "1.jpg", "cocoid": 9}, {"filename": "2.jpg", "cocoid": 9}))
    with pytest.raises(ValueError, match=r"'7\.jpg' and '7\.png' would both be image '7'"):
        convert(Table, "image,caption\n7.jpg,A dog.\n7.png,A cat.\n")
    lines = "".join(json.dumps({"image": f"{f}/7.jpg", "split": "dev", "captions": ["A dog."]}) + "\n" for f in "ab")
    with pytest.raises(ValueError, match=r"'a/7\.jpg' and 'b/7\.jpg' would both be image '7'"):
        convert(Images, lines)
    with pytest.raises(ValueError, match=r"'7\.jpg' and '7\.png' would both be image '7'"):
        convert(Flickr, "7.jpg#0\tA dog .\n7.png#0\tA cat .\n")


def test_a_list_of_two_splits_is_refused(tmp_path, convert):
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("7.jpg\n")
    lists = {name: tmp_path / f"{name}.txt" for name in ("train", "test")}
    with pytest.raises(ValueError, match=r"test\.txt lists '7\.jpg', which the list of 'train' has"):
        convert(Flickr, "7.jpg#0\tA dog .\n", split_lists=lists)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "7.jpg", "caption": 5}', r"row 1: caption is 5, wanted a string"),
        ('{"image": "7.jpg", "caption": null}', r"row 1 has no \['caption'\]; it has \['image'\]"),
        ("image,caption,Caption\n7.jpg,A dog.,Ein Hund.\n", "has several columns called 'caption'"),
        ('{"image": ["7.jpg"], "caption": "A dog."}', r"row 1: image_id is \['7\.jpg'\], wanted a string"),
        ('{"image": "7.jpg", "caption": ["A dog."]}', r"row 1: caption is \['A dog\.'\], wanted a string"),
        ('{"image": "7.jpg", "caption": "A dog.", "split": 1}', "row 1: split is 1, wanted a string"),
        ('{"image": true, "caption": "A dog."}', "row 1: image_id is True, wanted a string"),
        ("[1, 2]", "row 1 is 1, wanted an object"),
        ("[" * 99999, "is not JSON"),
        ("image,caption,split\n7.jpg,A dog, a cat,test\n", "row 1 has 4 values for 3 columns; quote captions"),
        ('image,caption\n7.jpg,"A dog.\n8.jpg,A cat.\n', r"line 3: .*quotation mark without its partner"),
        ("image,caption\n,A dog.\n", "row 1: image_id is '', wanted a string"),
        ("A dog.\nA cat.\n", r"row 1 has no \['caption', 'image_id'\]"),
        ("", r"gives no caption"),
    ],
)
def test_bad_tables_are_named(convert, content, message):
    with pytest.raises(ValueError, match=rf"captions\.txt.*{message}"):
        convert(Table, content)


SIX = "image,caption\n" + "".join(f"7.jpg,Dog {n}.\n8.jpg,Cat {n}.\n" for n in range(6)) + "9.jpg,Cow.\n"


def test_captions_per_image(convert, capsys):
    captions = convert(Table, SIX, captions_per_image=5)
    assert [caption.caption for caption in captions if caption.image_id == "7"] == [f"Dog {n}." for n in range(5)]
    assert len(captions) == 11
    assert "11 captions; left out: 0 empty, 0 in no split, 2 after the first 5 of their image (1 images have fewer" in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"1 of 3 images have fewer than 5 captions, '9' for one \(1\)"):
        convert(Table, SIX, captions_per_image=5, exact=True)
    assert len(convert(Table, SIX, captions_per_image=1, exact=True)) == 3
    with pytest.raises(ValueError, match="captions_per_image is 0"):
        convert(Table, SIX, captions_per_image=0)
    with pytest.raises(ValueError, match="--exact needs --captions-per-image"):
        convert(Table, SIX, exact=True)


def store(path, *names):
    with RegionStoreWriter(path, dim=2, extractor="by hand") as writer:
        for name in names:
            writer.write(name, [[1, 0]])
    return path


def test_captions_of_images_that_were_left_out_are_dropped(tmp_path, convert, capsys):
    """A store speaks for the split that it is named after; what it calls an image is what counts."""
    text = "image,caption,split\n7.jpg,A dog.,train\n8.jpg,A cat.,train\n8.jpg,Cats.,train\n9.jpg,A cow.,test\n"
    train, test = store(tmp_path / "train.h5", "7.jpg"), store(tmp_path / "test.h5", "9")
    expected = [Caption("7.jpg", "0", "A dog.", "train"), Caption("9", "3", "A cow.", "test")]
    assert convert(Table, text, only_images_of=(train, test)) == expected
    assert (
        "2 captions; left out: 0 empty, 0 in no split, 2 about 1 image that is in no store" in capsys.readouterr().out
    )
    assert convert(Table, text, only_images_of=(train,)) == expected
    assert convert(Table, text, only_images_of=(store(tmp_path / "all.h5", "7.jpg"),)) == expected[:1]
    with pytest.raises(ValueError, match=r"no caption is about an image of .*no\.h5: the captions name '7', .* 'x'"):
        convert(Table, text, only_images_of=(store(tmp_path / "no.h5", "x"),))
    with pytest.raises(FileNotFoundError, match="no region store at"):
        convert(Table, text, only_images_of=(tmp_path / "absent.h5",))


def test_a_captions_file_is_repaired_in_place(tmp_path, convert):
    text = "image,caption,split\n7.jpg,A dog.,train\n8.jpg,A cat.,train\n"
    whole = convert(Table, text)
    path = tmp_path / "out.jsonl"
    main(Table(path, path))
    assert load_captions(path) == whole
    main(Table(path, path, only_images_of=(store(tmp_path / "train.h5", "7"),)))
    assert load_captions(path) == whole[:1]
    assert RegionStore(tmp_path / "train.h5").image_id == ["7"]


def test_a_spreadsheet_says_what_separates_its_cells(convert):
    assert [caption.caption for caption in convert(Table, "sep=;\r\nimage;caption\r\n7.jpg;A dog, running.\r\n")] == [
        "A dog, running."
    ]


def test_tables_one_after_the_other(convert):
    """The heading of the second one is no caption of an image called image."""
    captions = convert(Table, "image,caption\n7.jpg,A dog.\nimage,caption\n8.jpg,A cat.\n")
    assert [(caption.image_id, caption.caption) for caption in captions] == [("7", "A dog."), ("8", "A cat.")]


@pytest.mark.parametrize(
    ("kind", "content", "options"),
    [
        (Images, '{"image": "7.jpg", "split": "Valid", "captions": ["A dog."]}', {}),
        (Coco, {"annotations": [{"id": 1, "image_id": 7, "caption": "A dog."}]}, {"split": "val"}),
        (Table, "image,caption\n7.jpg,A dog.\n", {"split": "validation"}),
    ],
)
def test_splits_go_by_our_names_in_every_kind(convert, kind, content, options):
    assert [caption.split for caption in convert(kind, content, **options)] == ["dev"]


def test_lists_of_splits_go_by_our_names(tmp_path, convert):
    (tmp_path / "val.txt").write_text("7.jpg\n")
    captions = convert(Flickr, "7.jpg#0\tA dog.\n", split_lists={"val": tmp_path / "val.txt"})
    assert [caption.split for caption in captions] == ["dev"]


def test_images_are_chosen_by_any_name_of_a_split(tmp_path):
    (tmp_path / "images.jsonl").write_text('{"image": "7.jpg", "split": "valid"}\n')
    assert read_image_names(tmp_path / "images.jsonl", "dev") == read_image_names(tmp_path / "images.jsonl", "val")
