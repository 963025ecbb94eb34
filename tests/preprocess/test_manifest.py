"""Captions and vocabularies that are not what a program wrote are noticed, until somebody says that they are right."""

from __future__ import annotations

import json

import pytest
from tiny_data import make_data

from preprocess import captions, verify, vocabulary
from preprocess.manifest import MANIFEST, find_changed, note_written


@pytest.fixture
def folder(tmp_path):
    folder = make_data(tmp_path / "data")
    note_written(folder / "captions.jsonl")
    vocabulary.main(vocabulary.Config(folder / "captions.jsonl", folder / "vocabulary.json", ("train",), 1))
    return folder


def problems(folder, **options):
    return [f.message for f in verify.verify(verify.Config(folder, **options)) if f.level == "ERROR"]


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    place = data.index(b"a", int(place * len(data)))
    data[place] ^= 2  # another letter: no reader can tell
    path.write_bytes(data)


def test_what_was_written_is_as_it_was(folder):
    assert set(json.loads((folder / MANIFEST).read_text())) == {"captions.jsonl", "vocabulary.json"}
    assert problems(folder) == []


@pytest.mark.parametrize("name", ["captions.jsonl", "vocabulary.json"])
def test_one_letter_is_noticed_until_it_is_accepted(folder, name, capsys):
    flip(folder / name)
    (found,) = [problem for problem in problems(folder) if "is not what was written" in problem]
    assert name in found
    assert "--accept" in found
    with pytest.raises(SystemExit):
        verify.main(verify.Config(folder))
    if name == "vocabulary.json":
        verify.main(verify.Config(folder, accept=True))
        assert "accepted as they are: captions.jsonl, vocabulary.json" in capsys.readouterr().out
        assert problems(folder) == []


def test_a_file_that_is_gone_is_told(folder):
    (folder / "vocabulary.json").unlink()
    assert problems(folder) == ["vocabulary.json of manifest.json is gone: put it back, or write the folder again"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"../secret": "0"}', '{"captions.jsonl": 7}', "[" * 100_000])
def test_a_damaged_manifest_is_named_and_can_be_made_anew(folder, damage):
    (folder / MANIFEST).write_text(damage)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: .* --accept"):
        find_changed(folder)
    verify.main(verify.Config(folder, accept=True))
    assert find_changed(folder) == {}


def test_every_program_that_writes_captions_notes_them(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("image,caption,split\n1.jpg,A dog.,train\n")
    captions.main(captions.Table(table, tmp_path / "out" / "captions.jsonl"))
    assert find_changed(tmp_path / "out") == {}
    flip(tmp_path / "out" / "captions.jsonl", 0.1)
    assert list(find_changed(tmp_path / "out")) == ["captions.jsonl"]
