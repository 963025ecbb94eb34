"""A name builds what it stands for; a wrong one is answered with the nearest."""

from __future__ import annotations

import functools
import sys
from textwrap import dedent

import pytest

from xmodal.encoders.extractors import EXTRACTORS
from xmodal.heads import HEADS, SCAN, VSRN, Head
from xmodal.model import TEXT_ENCODERS
from xmodal.names import build, fill, find, storable
from xmodal.signatures import options_of
from xmodal.spelling import near_miss


def make(size: int, color: str = "red") -> tuple[int, str]:
    return size, color


def test_options_are_passed_on():
    assert build("thing", {"make": make}, {"name": "make", "size": 3, "color": "blue"}) == (3, "blue")
    assert build("thing", {"make": make}, {"name": "make", "size": 3}) == (3, "red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mak"}, r"unknown thing 'mak' \(did you mean 'make'\?\); known: make, other"),
        ({"name": "zzz"}, r"unknown thing 'zzz'; known: make, other"),
        ({"size": 3}, "unknown thing None"),
        (
            {"name": "make", "size": 3, "colour": 1},
            r"no option 'colour' \(did you mean 'color'\?\)",
        ),
        ({"name": "make"}, "thing 'make' needs the option 'size'"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("thing", {"make": make, "other": make}, options)


def test_near_miss_is_silent_about_strangers():
    assert near_miss("qqq", ["make"]) == ""


@pytest.fixture
def home(tmp_path, monkeypatch, heads):
    """A folder of modules outside the package, on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_head.py").write_text(
        dedent(
            """
            from xmodal.encoders.base import TextEncoder
            from xmodal.heads import HEADS, VSRN, Head

            class Gated(Head):
                def __init__(self, dim: int, steps: int = 3, **options):
                    super().__init__()
                    self.dim, self.steps, self.options = dim, steps, options

            class Deeper(VSRN):
                def __init__(self, gate: float = 0.5, **options):
                    super().__init__(**options)
                    self.gate = gate

            class Positional(Head):
                def __init__(self, dim: int, steps: int = 3, /, *, gate: float = 0.5):
                    super().__init__()
                    self.options = dim, steps, gate

            class Outer:
                class Inner(Head):
                    pass

            class Encoder(TextEncoder):
                def __init__(self, vocabulary_size: int, dim: int = 3):
                    super().__init__()
                    self.sizes = vocabulary_size, dim

            SETTING = 3
            HEADS["gated"] = Gated
            """
        )
    )
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "wrong.py").write_text("def (:\n")
    return tmp_path


@pytest.fixture
def heads(monkeypatch):
    registry = dict(HEADS)
    monkeypatch.setattr("xmodal.heads.HEADS", registry)
    return registry


def test_a_class_of_anybody_is_built_by_its_dotted_name(home, heads):
    gated = build("head", heads, {"name": "my_head:Gated", "dim": 4, "beyond": 1})
    assert (gated.dim, gated.steps, gated.options) == (4, 3, {"beyond": 1})
    assert build("text encoder", TEXT_ENCODERS, {"name": "my_head:Encoder"}, {"vocabulary_size": 9}).sizes == (9, 3)
    assert type(build("head", heads, {"name": "my_head:Outer.Inner"})).__qualname__ == "Outer.Inner"


def test_options_that_are_taken_by_position_are_given_so(home, heads):
    name = {"name": "my_head:Positional"}
    assert build("head", heads, name, {"dim": 4}).options == (4, 3, 0.5)
    assert build("head", heads, {**name, "steps": 5, "gate": 1.0}, {"dim": 4}).options == (4, 5, 1.0)


def test_a_value_of_a_wrong_type_is_told_with_the_part():
    with pytest.raises(ValueError, match=r"head 'scan': temperature is '9'; wanted a finite number"):
        build("head", HEADS, {"name": "scan", "temperature": "9"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_hed:Gated", r"there is no module 'my_hed' \(did you mean 'my_head'\?\)"),
        ("xmodal.hads:SCAN", r"there is no module 'xmodal.hads' \(did you mean 'heads'\?\)"),
        ("my_head.sub:Gated", "there is no module 'my_head.sub'"),
        (
            "my_head:Gatd",
            r"my_head.py\) has no 'Gatd' \(did you mean 'Gated'\?\); it has VSRN, Gated, Deeper, Positional",
        ),
        ("my_head:Outer.Iner", "has no 'Outer.Iner'"),
        ("broken:Gated", "module 'broken' needs a module that is not there: No module named 'no_such_module'"),
        ("leaving:Gated", "importing module 'leaving' failed: SystemExit: 3"),
        ("wrong:Gated", "importing module 'wrong' failed: SyntaxError"),
        ("os:system", "is a builtin_function_or_method, not a class derived from xmodal.heads.base.Head"),
        ("my_head:SETTING", "is a int, not a class derived from"),
        (
            "my_head:Encoder",
            "a class derived from xmodal.encoders.base.TextEncoder, not a class derived from xmodal.heads",
        ),
        ("subprocess:Popen", "is a class derived from object, not a class derived from"),
        ("my_head.Gated", "unknown head 'my_head.Gated'.* name a class of your own package.module:Class"),
        ("my head:Gated", "must be named package.module:Class"),
        (".my_head:Gated", "must be named package.module:Class"),
        (":Gated", "must be named package.module:Class"),
        (["scan"], "unknown head "),
    ],
)
def test_what_is_not_there_is_told_apart(home, heads, name, message):
    with pytest.raises(ValueError, match=message):
        build("head", heads, {"name": name})


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "builtins:exec", "my_head:Gated"])
def test_an_extractor_is_a_class_with_a_name_that_can_be_called(home, name):
    with pytest.raises(ValueError, match="not a class with name and __call__"):
        find("extractor", EXTRACTORS, name)
    grid = EXTRACTORS["vit-b16-grid"]
    assert find("extractor", EXTRACTORS, f"{grid.__module__}:{grid.__qualname__}") is grid


def test_options_beyond_the_signature_are_passed_on():
    def make_more(size: int, *others: int, **options: int) -> tuple[int, dict[str, int]]:
        return size, options

    registry = {"more": make_more, "half": functools.partial(make, color="green")}
    assert build("thing", registry, {"name": "more", "size": 1, "weight": 2}) == (1, {"weight": 2})
    assert build("thing", registry, {"name": "half", "size": 1}) == (1, "green")
    assert options_of(registry["half"]).named["color"].default == "green"
    with pytest.raises(ValueError, match="'more' needs the option 'size'"):
        build("thing", registry, {"name": "more", "weight": 2})


def test_options_that_a_parent_takes_are_known(home):
    options = options_of(find("head", HEADS, "my_head:Deeper"))
    assert set(options.named) == {"gate", "dim", "layers", "norm", "region_norm"}
    assert not options.named["dim"].required
    deeper = build("head", HEADS, {"name": "my_head:Deeper", "layers": 1}, {"dim": 4})
    assert isinstance(deeper, VSRN)
    assert (deeper.dim, deeper.gate) == (4, 0.5)
    with pytest.raises(ValueError, match=r"cannot be made with the options .*unexpected keyword argument 'layer'"):
        build("head", HEADS, {"name": "my_head:Deeper", "layer": 1}, {"dim": 4})


def test_known_sizes_are_filled_in_where_they_are_taken():
    known = {"dim": 8, "vocabulary_size": 9}
    assert fill("head", HEADS, {"name": "vsrn", "layers": 1}, known) == {"name": "vsrn", "layers": 1, "dim": 8}
    assert fill("head", HEADS, {"name": "vsrn", "dim": 8}, known) == {"name": "vsrn", "dim": 8}
    assert fill("head", HEADS, {"name": "scan"}, known) == {"name": "scan"}
    with pytest.raises(ValueError, match="head 'vsrn': dim is stated as 16, but it is 8 here"):
        build("head", HEADS, {"name": "vsrn", "dim": 16}, known)


def test_the_stored_name_is_one_that_another_process_finds(home, heads):
    build("head", heads, {"name": "my_head:Gated", "dim": 4})
    assert heads["gated"].__module__ == "my_head"
    assert storable("head", heads, {"name": "gated", "dim": 4}) == {"name": "my_head:Gated", "dim": 4}
    assert storable("head", heads, {"name": "my_head:Gated"}) == {"name": "my_head:Gated"}
    assert storable("head", heads, {"name": "scan"}) == {"name": "scan"}
    heads["scan"] = heads["gated"]
    assert storable("head", heads, {"name": "scan"}) == {"name": "my_head:Gated"}


def test_what_another_process_cannot_find_is_said_when_it_is_stored(monkeypatch):
    class Local(Head):
        pass

    with pytest.warns(UserWarning, match="head 'local' is no class that can be imported. Another process cannot load"):
        assert storable("head", {"local": Local}, {"name": "local"}) == {"name": "local"}
    with pytest.warns(UserWarning, match="head 'half' is no class that can be imported"):
        storable("head", {"half": functools.partial(SCAN, "i2t")}, {"name": "half"})
    script = type("Scripted", (Head,), {"__module__": "__main__", "__qualname__": "Scripted"})
    with pytest.warns(UserWarning, match=r"stored as '__main__:Scripted'.*put the class at the top of a file"):
        assert storable("head", {"mine": script}, {"name": "mine"}) == {"name": "__main__:Scripted"}
    with pytest.raises(ValueError, match=r"'__main__' .* has no 'Scripted'.*put the class at the top of a file"):
        build("head", HEADS, {"name": "__main__:Scripted"})


def test_a_package_offers_parts_by_entry_points(home, heads):
    info = home / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[xmodal.heads]\nsaf = my_head:Gated\nold = my_head:Gone\nscan = my_head:Gated\n"
        "[xmodal.encoders]\nsaf_text = my_head:Encoder\n"
    )
    assert build("head", heads, {"name": "saf", "dim": 4}).steps == 3
    assert storable("head", heads, {"name": "saf"}) == {"name": "my_head:Gated"}
    assert find("head", heads, "scan") is SCAN  # ours come first
    assert build("text encoder", TEXT_ENCODERS, {"name": "saf_text", "vocabulary_size": 9}).sizes == (9, 3)
    with pytest.raises(ValueError, match=r"head 'old' \(entry point my_head:Gone\): module 'my_head' .* has no 'Gone'"):
        find("head", heads, "old")
    with pytest.raises(ValueError, match=r"unknown head 'saff' \(did you mean 'saf'\?\)"):
        find("head", heads, "saff")
