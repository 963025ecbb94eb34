"""Recipes are found by path and by name, and say what they train."""

from __future__ import annotations

import pytest

from xmodal.cli import main
from xmodal.training.config import load_recipe, to_dict
from xmodal.training.recipes import describe_recipe, find_recipe, known_recipes


def test_a_name_is_the_recipe_of_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in known_recipes().items():
        assert find_recipe(name) == find_recipe(f"{name}.yaml") == path
        assert to_dict(load_recipe(name)) == to_dict(load_recipe(path))


def test_a_file_goes_before_a_name_and_a_name_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vsrn_f30k").mkdir()
    (tmp_path / "scan_t2i_lse_f30k").write_text("epochs: 5")
    assert load_recipe("scan_t2i_lse_f30k").epochs == 5
    assert load_recipe("vsrn_f30k").model.head["name"] == "vsrn"


def test_a_base_is_found_beside_the_recipe_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for base in ("bfan_prob_f30k", "ablations/addr_ridge"):
        (tmp_path / "mine.yaml").write_text(f"base: {base}\nepochs: 5")
        assert to_dict(load_recipe("mine.yaml")) == {**to_dict(load_recipe(base)), "epochs": 5}
    (tmp_path / "bfan_prob_f30k").write_text("seed: 7")
    (tmp_path / "mine.yaml").write_text("base: bfan_prob_f30k")
    assert load_recipe("mine.yaml").seed == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scan_t2i_les_f30k", "did you mean 'scan_t2i_lse_f30k'?); known: adapt_i2t_coco, "),
        ("addr_ridge", "did you mean 'ablations/addr_ridge'?); known: "),
        ("here/scan_t2i_lse_f30k.yaml", "does not exist, nor is it known by name"),
        ("here", "here is a folder, wanted a YAML file"),
    ],
)
def test_a_wrong_name_is_answered_with_the_near_miss(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--recipe", name])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_every_recipe_is_listed_with_what_it_trains(capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["matching:", "retrieval:", "ablations:"]
    told = dict(line.split(maxsplit=1) for line in lines if line.startswith(" "))
    assert told == {name: describe_recipe(path) for name, path in known_recipes().items()}
    assert all(len(line) > 20 for line in told.values())
    assert lines.index("retrieval:") < next(n for n, line in enumerate(lines) if "daml_cub" in line)


def test_a_description_is_the_first_sentence(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# SCAN on mine (Lee et al., 2018), with\n# 0.5 of it. More to say.\nepochs: 3\n# No more.")
    assert describe_recipe(recipe) == "SCAN on mine (Lee et al., 2018), with 0.5 of it."
    recipe.write_text("epochs: 3\n# No more.")
    assert describe_recipe(recipe) == ""


def test_a_recipe_that_is_no_text_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"epochs: \xff")
    with pytest.raises(ValueError, match=r"mine\.yaml is no YAML"):
        load_recipe(tmp_path / "mine.yaml")
