import subprocess
import sys

import pytest

from xmodal.cli import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_well(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: xmodal {command}" in capsys.readouterr().out


def test_overview_names_every_command(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_unknown_command_is_answered_with_the_near_miss(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "xmodal: unknown command 'trian' (did you mean 'train'?); known: train, " in capsys.readouterr().err


def test_unknown_option_is_answered_with_the_near_miss(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--epoch", "3"])
    assert stopped.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("epohcs: 3\n", "no option 'epohcs' (did you mean 'epochs'?)"),
        ("optimizer: {learning_rat: 0.1}\n", "no option 'learning_rat' (did you mean 'learning_rate'?)"),
        ("- 1\n", "must be a mapping of options"),
    ],
)
def test_wrong_recipe_is_named(recipe, message, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--recipe", str(path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert str(path) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "nowhere.yaml"], "recipe nowhere.yaml does not exist"),
        (["train", "--recipe"], "--recipe needs the path of a YAML file"),
        (["train", "--data.folder", "nowhere"], "nowhere"),
        (["evaluate", "nowhere", "--data.folder", "nowhere"], "nowhere"),
    ],
)
def test_missing_files_are_named_without_a_traceback(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("xmodal ")
    assert message in printed
    assert "Traceback" not in printed


def test_module_and_program_are_the_same():
    done = subprocess.run([sys.executable, "-m", "xmodal", "--help"], capture_output=True, text=True, check=True)
    assert "usage: xmodal COMMAND" in done.stdout
