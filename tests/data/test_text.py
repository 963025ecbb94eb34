"""Text as people save it: every byte order mark is stripped, every encoding read or named with the line."""

from __future__ import annotations

import gzip
import zipfile

import pytest

from xmodal.data.text import parse_json, read_lines, read_text

LINES = ["Ein Café.", "二匹の犬", "a\u2028b"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_form_reads_alike(tmp_path, encoding, packed, ends):
    data = "".join(line + ends for line in LINES).encode(encoding)
    path = tmp_path / "captions.txt"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert list(read_lines(path)) == LINES
    assert read_text(path) == "".join(line + ends for line in LINES)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_a_named_encoding_reads_alike(tmp_path, encoding):
    (tmp_path / "captions.txt").write_bytes("Ein Café.\nÜ".encode(encoding))
    assert list(read_lines(tmp_path / "captions.txt", encoding)) == ["Ein Café.", "Ü"]


def test_a_mark_wins_over_a_named_encoding(tmp_path):
    (tmp_path / "captions.txt").write_bytes("Ü".encode("utf-8-sig"))
    assert read_text(tmp_path / "captions.txt", "latin-1") == "Ü"
    (tmp_path / "captions.txt").write_bytes("\ufeffÜ".encode("utf-16-le"))
    assert read_text(tmp_path / "captions.txt", "utf-16-le") == "Ü"


def test_what_cannot_be_read_is_named_with_its_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"A dog.\n" * 5000 + "Ein Café.\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"captions\.txt, line 5001: 'utf-8' codec can't decode byte 0xe9.*--encoding latin-1"
    ):
        list(read_lines(path))
    path.write_bytes("A dog.\nA cat.".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"captions\.txt, line 1 holds a zero byte.*--encoding utf-16-le"):
        read_text(path)
    path.write_bytes("A dog.\nA cat.".encode("utf-16") + b"x")
    with pytest.raises(ValueError, match=r"captions\.txt, line 2: 'utf-16-le' codec can't decode"):
        read_text(path)
    with pytest.raises(ValueError, match="encoding 'klingon' is unknown"):
        read_text(path, "klingon")
    path.write_bytes(gzip.compress(b"A dog.\n" * 99)[:-12])
    with pytest.raises(ValueError, match="damaged gzip file"):
        read_text(path)
    with pytest.raises(FileNotFoundError, match=r"no file at .*absent"):
        read_text(tmp_path / "absent")


def test_bad_json_is_named():
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        parse_json("{", "line 3")
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        parse_json("[" * 100000, "line 3")


def test_a_workbook_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "captions.xlsx", "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(ValueError, match=r"captions\.xlsx is a zip archive, or a workbook.*save it as CSV"):
        read_text(tmp_path / "captions.xlsx")
