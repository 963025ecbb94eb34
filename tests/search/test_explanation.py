"""Pictures and pages of a pair: every number on them is the head's, and text of any script stays text."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from xmodal.cli import main
from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.heads import HEADS as HEADS_BY_NAME
from xmodal.heads import Head
from xmodal.model import Matcher
from xmodal.search.explained_page import write_page
from xmodal.search.explained_picture import draw_explanation
from xmodal.search.explanation import View, explained
from xmodal.search.retrieve import explain_pair

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORDS = ["a", "dog", "犬", "كلب", "</script>"]
HEADS = {
    "scan": {"name": "scan"},
    "scan i2t": {"name": "scan", "direction": "i2t", "aggregation": "mean"},
    "bfan": {"name": "bfan"},
    "vsrn": {"name": "vsrn", "layers": 1},
    "cosine": {"name": "cosine"},
}


@pytest.fixture
def store(tmp_path):
    Image.new("RGB", (60, 40), "white").save(tmp_path / "a.png")
    with RegionStoreWriter(tmp_path / "test.h5", dim=4, extractor="by hand", box_convention="xyxy relative") as writer:
        features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        boxes = [[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.25, 0.25, 0.75, 0.75]]
        writer.write("a", features, boxes=boxes, image_size=(60, 40))
    return RegionStore(tmp_path / "test.h5")


def make(head):
    torch.manual_seed(0)
    normalize = head["name"] != "vsrn"
    image = {"name": "regions", "input_dim": 4, "dim": 8, "normalize": normalize}
    text = {"name": "gru", "dim": 8, "word_dim": 4, "bidirectional": normalize, "normalize": normalize}
    return Matcher(image, text, head, WORDS).eval()


class Page(HTMLParser):
    """What a browser would see: elements, their text, tables, and everything that could be fetched."""

    def __init__(self, text):
        super().__init__()
        self.buttons, self.rows, self.links, self.scripts, self.open, self.h1 = [], [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data", "poster", "srcset")]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "button":
            self.buttons.append([attributes, ""])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append([attributes, ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "every element is closed in its place"

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1][1] += data
        elif "button" in self.open:
            self.buttons[-1][1] += data
        elif self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        elif "h1" in self.open:
            self.h1 += data


@pytest.mark.parametrize("head", HEADS)
def test_every_number_of_the_page_is_the_heads(head, store, tmp_path):
    matcher, sentence = make(HEADS[head]), "a dog"
    pair = explained(matcher, store, "a", tmp_path / "a.png", sentence)
    write_page(pair, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.open
    data = json.loads(page.scripts[0][1])
    assert data["words"] == ["<start>", "a", "dog", "<end>"]
    assert data["score"] == pytest.approx(matcher.score(store[0], sentence).item())
    torch.testing.assert_close(torch.tensor(data["boxes"]), store.boxes(0) * torch.tensor([60.0, 40.0, 60.0, 40.0]))

    found = matcher.explain(store.batch([0]), sentence)
    assert [view["looking"] for view in data["views"]] == [each.looking for each in found]
    labels = []
    for view, each in zip(data["views"], found, strict=True):
        weights = each.attention.weights[0].double()
        weights = weights.T if each.looking == "regions" else weights[:1] if each.looking == "caption" else weights
        assert len(view["rows"]) == len(weights)
        for place, (row, wanted) in enumerate(zip(view["rows"], weights, strict=True)):
            assert row["weights"] == pytest.approx(wanted.tolist(), abs=1e-6)
            entropy = -sum(p * math.log2(p) for p in wanted.tolist() if p > 0)
            assert row["entropy"] == pytest.approx(entropy, abs=1e-4)
            assert row["sure"] == pytest.approx(1 - entropy / math.log2(len(wanted)), abs=1e-4)
            assert row["share"] == (None if each.shares is None else pytest.approx(each.shares[0, place].item()))
            if each.attention.focal is not None:
                kept = each.attention.focal[0].T if each.looking == "regions" else each.attention.focal[0]
                assert row["kept"] == kept[place].tolist()
            labels.append((row["label"], row["share"], row["sure"], row["entropy"]))
    if all(each.shares is not None for each in found):
        assert sum(share for _, share, _, _ in labels) == pytest.approx(data["score"], abs=1e-5)
    assert [text for _, text in page.buttons] == [label for label, *_ in labels]
    assert all(
        attributes["type"] == "button" and attributes["aria-pressed"] == "false" for attributes, _ in page.buttons
    )
    table = [row for row in page.rows if row[1] != "adds to the score"]
    for cells, (label, share, sure, entropy) in zip(table, labels, strict=True):
        told = "not told" if share is None else f"{share:.4f}"
        assert cells[:4] == [label, told, f"{100 * sure:.0f}%", f"{entropy:.2f} bits"]


def test_the_page_needs_nothing_else_and_escapes_everything(store, tmp_path):
    sentence = '<b onclick="x">犬 & كلب</b> </script><script>alert(1)</script> $title "'
    pair = explained(make(HEADS["bfan"]), store, "a", tmp_path / "a.png", sentence)
    write_page(pair, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.h1 == sentence
    assert len(page.scripts) == 2
    assert page.scripts[0][0] == {"type": "application/json", "id": "explanation"}
    assert json.loads(page.scripts[0][1])["sentence"] == sentence
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|innerHTML|eval\(", page.scripts[1][1])
    (picture,) = page.links
    assert picture.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
        assert image.size == (60, 40)
    assert "default-src 'none'; img-src data:" in text
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_choosing_a_word_lights_what_it_looks_at(store, tmp_path):
    pair = explained(make(HEADS["bfan"]), store, "a", tmp_path / "a.png", "a dog")
    write_page(pair, tmp_path / "page.html")
    seen = []
    for keys in ("", "buttons[2].dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"):
        script = f"<script>buttons[2].click(); {keys}</script></body>"
        (tmp_path / "clicked.html").write_text(
            (tmp_path / "page.html").read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8"
        )
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += [
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
        ]
        page = (tmp_path / "clicked.html").as_uri()
        command = [CHROMIUM, *flags, page]
        seen.append(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    (view, _) = pair.views
    for row, dom in zip((2, 3), seen, strict=True):
        most = int(view.weights[row].argmax())
        told = f"{pair.words[row]}: looks most at region {most + 1} ({100 * view.weights[row].max():.0f}%)"
        assert escape(told) in dom
        assert re.findall(r'aria-pressed="true" data-view="0" data-row="(\d)"', dom) == [str(row)]
        boxes = re.findall(r"<rect [^>]*>", dom)
        assert ["most" in box for box in boxes] == [place == most for place in range(3)]
        assert ["kept" in box for box in boxes] == view.kept[row].tolist()


@pytest.mark.parametrize("head", HEADS)
def test_pictures_have_all_views(head, store, tmp_path):
    pair = explained(make(HEADS[head]), store, "a", tmp_path / "a.png", "a dog")
    draw_explanation(pair, tmp_path / "explanation.png")
    with Image.open(tmp_path / "explanation.png") as picture:
        width, height = picture.size
    draw_explanation(explained(make(HEADS["cosine"]), store, "a", tmp_path / "a.png", "a dog"), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert (width >= picture.width, height > picture.height) == (True, head not in ("scan", "vsrn", "cosine"))


def test_views_of_one_region_and_of_none():
    view = View("words", torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]))
    assert view.entropy.tolist() == [0.0, 1.0, 0.0]
    assert view.sure.tolist() == [1.0, 0.0, 0.0]


def test_the_command_writes_both_files(store, tmp_path, capsys):
    make(HEADS["bfan"]).save_pretrained(tmp_path / "model")
    files = ["--output", str(tmp_path / "e.png"), "--page", str(tmp_path / "e.html")]
    command = ["explain", str(tmp_path / "model"), "a", "a dog", "--data.folder", str(tmp_path)]
    main([*command, "--images", str(tmp_path), *files])
    assert f"wrote {tmp_path / 'e.png'} and {tmp_path / 'e.html'}" in capsys.readouterr().out
    explain_pair(make(HEADS["bfan"]), store, "a", tmp_path / "a.png", "a dog", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "e.html").read_bytes()


@pytest.mark.bad_input
def test_what_cannot_be_explained_says_why(store, tmp_path, monkeypatch):
    with pytest.raises(KeyError, match="zebra"):
        explained(make(HEADS["scan"]), store, "zebra", tmp_path / "a.png", "a dog")
    pair = explained(make(HEADS["scan"]), store, "a", tmp_path / "nowhere.png", "a dog")
    for write in (write_page, draw_explanation):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
            write(pair, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()

    class Silent(Head):
        def compare(self, images, captions, region_mask=None, word_mask=None):
            return images.mean(dim=1) @ captions.mean(dim=1).T

    monkeypatch.setitem(HEADS_BY_NAME, "silent", Silent)
    with pytest.raises(NotImplementedError, match="Silent does not say where its words look"):
        explained(make({"name": "silent"}), store, "a", tmp_path / "a.png", "a dog")
