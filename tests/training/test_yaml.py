"""YAML says what its writer means: numbers as Python reads them, text as text, files by their name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xmodal.cli import main
from xmodal.training import checkpoints
from xmodal.training.config import DataConfig, TrainConfig, load_recipe, to_dict
from xmodal.training.read_yaml import read_yaml, write_yaml


@pytest.mark.parametrize("text", ["010", "-007", "0", "+3", "1_000", "08"])
def test_whole_numbers_are_decimal(text):
    value = read_yaml(f"epochs: {text}")["epochs"]
    assert (type(value), value) == (int, int(text))


@pytest.mark.parametrize("text", [".5", "-.5", "+.5e3", "1e3", "-1E-3", "1.e3", "1_000.5", "00.5", "2.5e+3", "-.inf"])
def test_numbers_with_a_point_or_an_exponent_are_those_of_python(text):
    value = read_yaml(f"rate: {text}")["rate"]
    assert (type(value), value) == (float, float(text.replace("-.inf", "-inf")))


@pytest.mark.parametrize(("text", "value"), [("0x1F", 31), ("-0xff", -255), ("0b101", 5)])
def test_other_bases_are_those_that_say_so(text, value):
    assert read_yaml(f"[{text}]") == [value]


@pytest.mark.parametrize(
    "text", ["1:30", "-1:30:05", "1:30.5", "2026-01-02", "0o17", "1e", ".", "e3", "0x", "٣", "٣e٢"]
)
def test_what_is_no_number_is_text(text):
    assert read_yaml(f"[{text}]") == [text]


@given(st.text("0123456789.eE+-_:xXoObfnaIiNFtruylsY~ #'\"", max_size=8))
def test_text_that_is_written_is_read_again_by_us_and_by_others(text):
    written = write_yaml({"folder": text, text: 1})
    assert read_yaml(written) == yaml.safe_load(written) == {"folder": text, text: 1}


@given(st.one_of(st.integers(-(10**20), 10**20), st.floats(allow_nan=False), st.booleans(), st.none()))
def test_values_that_are_written_are_read_again_by_us_and_by_others(value):
    written = write_yaml([value])
    for (read,) in (read_yaml(written), yaml.safe_load(written)):
        assert (type(read), read) == (type(value), value)


def test_a_number_that_is_none_is_written_and_read():
    assert math.isnan(read_yaml(write_yaml([math.nan]))[0])


@pytest.mark.parametrize("folder", ["1e3", "010", "1:30", "2026-01-02", ".5", "null"])
def test_a_run_is_read_again_whatever_its_folder_is_called(tmp_path, folder):
    config = TrainConfig(data=DataConfig(folder=Path(folder)))
    checkpoints.write_config(tmp_path, to_dict(config))
    assert load_recipe(tmp_path / checkpoints.CONFIG) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- {name: folder", "list of servers {path} is no YAML: while parsing a flow mapping"),
        (b"- {name: a, name: b}", "list of servers {path}: 0.name is there twice"),
        ("- {name: folder}".encode("utf-16"), "list of servers {path} is no YAML: 'utf-8' codec can't decode"),
        (b"name: folder", "{path} holds {{'name': 'folder'}}; wanted a list"),
    ],
)
def test_a_list_of_servers_that_cannot_be_read_is_named_in_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "servers.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["cluster", str(tmp_path), str(path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith(f"xmodal cluster: {message.format(path=path)}")
