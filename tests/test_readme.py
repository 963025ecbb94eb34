"""Every code block of the README runs: Python as it stands, commands on small files with the names the README uses."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.cli import main
from xmodal.data import RegionStore, RegionStoreWriter, Vocabulary
from xmodal.evaluation import evaluate_retrieval
from xmodal.heads import HEADS
from xmodal.model import Matcher
from xmodal.names import build
from xmodal.scoring import evaluate_exact, score_all, score_pairs, shortlist
from xmodal.search.retrieve import retrieve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code, monkeypatch):
    monkeypatch.setattr("xmodal.heads.HEADS", dict(HEADS))
    exec(compile(code, "README.md", "exec"), {})


def test_the_head_of_the_readme_keeps_the_contract(monkeypatch, tmp_path):
    heads = dict(HEADS)
    monkeypatch.setattr("xmodal.heads.HEADS", heads)
    (code,) = (code for code in blocks("python") if 'HEADS["max_sim"]' in code)
    exec(compile(code, "README.md", "exec"), {})
    head = heads["max_sim"]()
    torch.manual_seed(0)
    regions, words = torch.randn(12, 3, 8), torch.randn(12, 4, 8)
    scores = head(regions, words)
    everything = torch.ones(12, 3, dtype=torch.bool), torch.ones(12, 4, dtype=torch.bool)
    torch.testing.assert_close(scores, head(regions, words, *everything))
    torch.testing.assert_close(head.pairs(regions, words), scores.diag())
    torch.testing.assert_close(score_all(head, regions, words), scores)
    pair = torch.tensor([3, 0]), torch.tensor([5, 1])
    torch.testing.assert_close(score_pairs(head, regions, words, None, None, *pair), scores[pair])
    assert shortlist(head, regions, words, k=12).recall_of_exact_top10 == 100.0
    metrics = evaluate_exact(head, regions, words, caption_image=torch.arange(12))
    assert metrics.pop("exact")["pairs"] == 144
    assert metrics == evaluate_retrieval(scores, torch.arange(12))
    with pytest.raises(NotImplementedError, match="MaxSim does not say where its words look"):
        head.attention(regions, words)

    with RegionStoreWriter(tmp_path / "test.h5", dim=8, extractor="by hand") as writer:
        for image in range(5):
            writer.write(str(image), regions[image])
    image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    monkeypatch.setattr("xmodal.model.HEADS", heads)
    matcher = Matcher(image, text, {"name": "max_sim"}, vocabulary=["a", "dog"])
    (found,) = retrieve(matcher, RegionStore(tmp_path / "test.h5"), ["a dog"], top=5)
    assert sorted(found.image_ids) == ["0", "1", "2", "3", "4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the files that the README's commands name: photographs; Flickr30k's layout, few dims."""
    home = tmp_path_factory.mktemp("readme")
    precomp = home / "data" / "f30k_precomp"
    precomp.mkdir(parents=True)
    generator = np.random.default_rng(0)
    things = ["dog", "cat", "man", "woman", "ball", "tree", "boat", "horse"]
    for split, images in (("train", 8), ("dev", 8), ("test", 1000)):
        np.save(precomp / f"{split}_ims.npy", generator.standard_normal((images, 2, 6), dtype=np.float32))
        captions = [f"a {things[i % 8]} and a {things[(i + j) % 8]}" for i in range(images) for j in range(5)]
        (precomp / f"{split}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    (home / "photos").mkdir()
    lines = ["image_id,caption"]
    for number in range(20):
        Image.new("RGB", (32, 32), (12 * number, 99, 0)).save(home / "photos" / f"{number}.png")
        lines += [f"{number}.png,a {things[number % 8]}", f"{number}.png,one {things[number % 8]} on the beach"]
    (home / "mine.csv").write_text("\n".join(lines))
    checkpoint = ROOT / "tests" / "golden" / "s1_scan_basic.pth.tar"
    shutil.copy(checkpoint, home / "model_best.pth.tar")
    size = len(torch.load(checkpoint, weights_only=False)["model"][1]["embed.weight"])
    Vocabulary([f"word{i}" for i in range(size - 4)]).save(home / "f30k_precomp_vocab.json")
    return home


def ask_once(app, _listening) -> None:
    """In the place of serving until Ctrl-C."""
    from starlette.testclient import TestClient

    with TestClient(app, base_url="http://localhost") as client:
        (hit, *_) = client.get("/api/search", params={"text": "a dog"}).json()["hits"]
        assert client.get("/api/photograph", params={"id": hit["id"]}).headers["content-type"] == "image/jpeg"


def run(command: str) -> None:
    """Run one README command here; training runs for one epoch of a small model."""
    program, *arguments = shlex.split(command)
    small = ["--epochs", "1", "--model.image.dim", "16", "--no-progress"]
    if program == "make":
        subprocess.run(["make", "-n", "-C", str(ROOT), *arguments], check=True, capture_output=True)
    elif program == "accelerate":
        launched = [sys.executable, "-m", "accelerate.commands.launch", *arguments[1:], *small, "--output", "runs/two"]
        done = subprocess.run(launched, check=True, capture_output=True, text=True)
        assert done.stdout.count("best rsum") == 1, "two processes, one run"
    elif arguments[0] == "serve":
        if find_spec("fastapi") is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("xmodal.search.serve.server.run", ask_once)
                main([*arguments, "--port", "0"])
    else:
        assert program == "xmodal"
        main([*arguments, *(small if arguments[0] == "train" else [])])


@pytest.mark.skipif(find_spec("efficientnet_lite_pytorch") is None, reason="needs the weights of the first steps")
def test_commands_run_in_order(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    trained = set()
    for command in (line for block in blocks("bash") for line in block.splitlines() if line):
        for name in re.findall(r"runs/(\w+)", command) if "evaluate" in command else ():
            if name not in trained:  # the README trains one of the two models of the ensemble
                trained.add(name)
                if not Path("runs", name).exists():
                    run(f"xmodal train --recipe {name}")
        run(command)
    assert "ensemble" in capsys.readouterr().out
    assert Path("models/scan/config.json").is_file()
    assert Path("search.png").is_file()


def test_files_that_the_readme_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_every_recipe_is_a_configuration():
    from xmodal.training.config import load_recipe

    recipes = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))
    assert recipes
    for config in map(load_recipe, recipes):
        if config.task == "retrieval":
            continue  # these have a test of their own
        build("head", HEADS, config.model.head, {"dim": config.model.image["dim"]})
