"""What is installed works without the checkout: a wheel in an empty virtual environment, called from elsewhere."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from tiny_data import make_data

ROOT = Path(__file__).parents[1]


def python(*arguments) -> None:
    subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Calls the installed `xmodal`, or Python beside it, in a folder outside the checkout.

    Only what xmodal depends on comes from here: `.pth` files of a folder that a `.pth` file names are not read, so that
    a checkout which is installed here is not found there.
    """
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "environment", with_pip=False)
    programs = home / "environment" / ("Scripts" if os.name == "nt" else "bin")
    python("pip", "--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = (home / "environment").rglob("site-packages")
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def call(program, *arguments):
        command = [str(programs / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.home = home
    return call


def test_the_wheel_claims_one_name_and_carries_everything(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"xmodal"}
    assert len(names) == len(set(names))
    for here, there in (("xmodal", "xmodal"), ("preprocess", "xmodal/prepare"), ("scripts/recipes", "xmodal/recipes")):
        files = [path for path in (ROOT / here).rglob("*") if path.suffix in (".py", ".yaml", ".typed")]
        assert files
        assert {f"{there}/{path.relative_to(ROOT / here).as_posix()}" for path in files} <= set(names)


WHERE = """
from importlib.util import find_spec
for name in ("xmodal", "xmodal.prepare", "preprocess"):
    print(getattr(find_spec(name), "origin", None))
"""


def test_the_wheel_is_what_is_imported(installed):
    package, programs, preprocess = installed("python", "-c", WHERE).splitlines()
    assert Path(package).is_relative_to(installed.home)
    assert Path(programs).is_relative_to(installed.home)
    assert preprocess == "None"


def test_programs_and_recipes_are_there(installed):
    assert "usage: xmodal prepare captions" in installed("xmodal", "prepare", "captions", "--help")
    assert "  scan_t2i_lse_f30k " in installed("xmodal", "recipes")


def test_training_runs_from_a_recipe_whose_base_is_in_the_wheel(installed):
    (installed.home / "data").mkdir()
    make_data(installed.home / "data")
    small = ["--model.image.dim", "8", "--model.text.dim", "8", "--batch-size", "25", "--epochs", "1", "--no-progress"]
    told = installed(
        *("xmodal", "train", "--recipe", "ablations/addr_ridge", "--data.folder", "data", "--output", "run"), *small
    )
    assert "best rsum" in told
    assert (installed.home / "run" / "best" / "config.json").is_file()
