"""Figures hold their texts letter by letter, in fonts that have them."""

from __future__ import annotations

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from xmodal.figures import find_fonts, new_figure, save_figure

# No mathematics, some that does not parse, and some that does.
TEXTS = ("costs $5", "a $_$ sign", "$x$ and $y^2$")


def labeled(figure, texts):
    """A figure with these texts wherever pictures have some."""
    cell = figure.subplots()
    figure.suptitle(texts[0])
    figure.supxlabel("\n".join(texts), family="monospace")
    cell.set_title(texts[1])
    cell.text(0.5, 0.5, texts[2], bbox={"facecolor": "white"})
    cell.set_xticks(range(3), texts, rotation=45)
    cell.plot([0, 2], [0, 1], label=texts[1])
    cell.legend()
    return figure


def test_dollars_are_dollars(tmp_path):
    """As matplotlib draws them where every one is escaped, which it reads as a dollar."""
    save_figure(labeled(new_figure(4, 4), TEXTS), tmp_path / "ours.png")
    escaped = labeled(Figure(figsize=(4, 4), layout="constrained"), [text.replace("$", r"\$") for text in TEXTS])
    escaped.savefig(tmp_path / "escaped.png", dpi=120)
    ours, right = (np.asarray(Image.open(tmp_path / name)) for name in ("ours.png", "escaped.png"))
    assert (ours < 128).any()
    assert np.array_equal(ours, right)


def test_letters_come_from_any_font_that_has_them(tmp_path, caplog, monkeypatch):
    """DejaVu Sans has no ᶁ, STIX, which matplotlib brings, has; where no font has a letter, one line says so."""
    families, missing = find_fonts({"a", "ᶁ"})
    assert families
    assert not missing
    for installed, told in ((font_manager.fontManager.ttflist, []), ([], ["no installed font has ᶁ: they are boxes"])):
        monkeypatch.setattr(font_manager.fontManager, "ttflist", installed)
        caplog.clear()
        figure = new_figure(1, 1)
        figure.suptitle("ᶁ")
        save_figure(figure, tmp_path / "letter.png")
        assert [record.getMessage().split(" in ")[0] for record in caplog.records] == told
