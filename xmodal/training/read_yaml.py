"""YAML as people write it, and no more of it than a recipe needs: what is read is small, flat and plain data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from xmodal.schema import DEEPEST

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_TEXT = 1_000_000
"""Characters of a text."""
MOST_VALUES = 20_000
"""Values in a text, those behind an alias counted wherever it stands."""
LONGEST_NUMBER = 100
"""Characters of a number."""


class TooMuchError(yaml.MarkedYAMLError):
    """YAML that is well formed but says too much, or something twice.

    >>> str(TooMuchError(problem="epochs is there twice"))
    'epochs is there twice'
    """


def read_yaml(text: str) -> Any:
    """What a text in YAML says, with numbers as people write them and dates as text.

    Anchors may be used as long as what they stand for stays small.

    Raises:
        yaml.YAMLError: it is no YAML.
        TooMuchError: it is too long or nested too deeply, names a key twice, has an alias inside of what it stands for,
            or tags.

    >>> read_yaml("{rate: 2e-4, levels: &levels [layer3], others: *levels}")
    {'rate': 0.0002, 'levels': ['layer3'], 'others': ['layer3']}
    >>> read_yaml("optimizer: {decay: 0.1, decay: 0.5}")
    Traceback (most recent call last):
    ...
    xmodal.training.read_yaml.TooMuchError: optimizer.decay is there twice
      in "<unicode string>", line 1, column 25:
        optimizer: {decay: 0.1, decay: 0.5}
                                ^
    """
    if len(text) > LARGEST_TEXT:
        raise TooMuchError(problem=f"it has {len(text)} characters; wanted at most {LARGEST_TEXT}")
    return yaml.load(text, _Loader)


def read_yaml_file(path: Path, what: str) -> Any:
    """What a file in YAML says, as `read_yaml` reads it.

    Args:
        path: the file.
        what: what it is called in messages.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML in UTF-8 or says too much; the file is named.

    >>> from pathlib import Path
    >>> _ = Path("mine.yaml").write_text("epochs: [5")
    >>> read_yaml_file(Path("mine.yaml"), "recipe")
    Traceback (most recent call last):
    ...
    ValueError: recipe mine.yaml is no YAML: while parsing a flow sequence...
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise ValueError(f"{what} {path} has more than {LARGEST_TEXT} bytes; a {what} has a few hundred")
    try:
        return read_yaml(content.decode("utf-8"))
    except TooMuchError as error:
        raise ValueError(f"{what} {path}: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8 is a ValueError, as is a number that Python cannot read
        raise ValueError(f"{what} {path} is no YAML: {error}") from error


def write_yaml(values: Any, **options: Any) -> str:
    """Values in YAML, which `read_yaml` and other readers read as they are.

    Args:
        values: plain data.
        options: of `yaml.dump`.

    >>> write_yaml({"folder": "1e3", "epochs": 10, "name": "010"}, sort_keys=False)
    "folder: '1e3'\\nepochs: 10\\nname: '010'\\n"
    """
    return yaml.dump(values, Dumper=_Dumper, **options)


class _Loader(yaml.SafeLoader):
    """PyYAML takes 2e-4 for text and 010 for eight, as YAML 1.1 asks for; here they are what whoever writes them means.

    They are numbers, 0.0002 and ten.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._path: list[tuple[yaml.Node | None, Any]] = []  # the nodes around the current one, and its place in each
        self._extent: dict[yaml.Node, tuple[int, int]] = {}  # values in a node, and how deep they are nested
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """A node of the text, if neither it nor what its aliases stand for is too much."""
        self._path.append((parent, index))
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "tag:yaml.org,2002:str"):
            self._refuse(f"has the tag {event.tag}; wanted plain data without tags", event.start_mark)
        self._count += 1
        if len(self._path) > DEEPEST or self._count > MOST_VALUES:
            self._refuse_extent(event.start_mark)
        node: Any = super().compose_node(parent, index)
        if any(node is around for around, _ in self._path):
            self._refuse("has an alias inside of what the alias stands for", event.start_mark)
        if node not in self._extent:
            self._extent[node] = self._measured(node)
        count, depth = self._extent[node]
        if count > MOST_VALUES or len(self._path) + depth > DEEPEST:
            self._refuse_extent(event.start_mark)
        self._path.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping in which no key comes twice; what is merged into it may be changed by it."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                self._path.append((node, key))
                self._refuse("is there twice", key.start_mark)
            seen.add(name)
        return node

    def _measured(self, node: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            is_number = node.tag.rpartition(":")[2] in ("int", "float")
            if is_number and len(node.value) > LONGEST_NUMBER:
                self._refuse(f"is a number of {len(node.value)} characters", node.start_mark)
            return 1, 0
        pairs = isinstance(node, yaml.MappingNode)
        inner = [self._extent[one] for value in node.value for one in (value if pairs else [value])]
        return 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)

    def _refuse_extent(self, mark: Any) -> None:
        self._refuse(
            f"has more than {MOST_VALUES} values or more than {DEEPEST} levels of them, aliases counted wherever they "
            "stand",
            mark,
        )

    def _refuse(self, problem: str, mark: Any) -> None:
        names = [index.value if isinstance(index, yaml.ScalarNode) else index for _, index in self._path]
        path = ".".join(str(name) for name in names if name is not None and not isinstance(name, list))
        where = path if len(path) <= 80 else f"{path[:77]}..."
        raise TooMuchError(problem=f"{where or 'it'} {problem}", problem_mark=mark)


def _whole_number(loader: _Loader, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return int(text, {"0b": 2, "0x": 16}.get(text.lstrip("+-")[:2], 10))


# Dates are text, 010 is ten and 1:30 no number, as in YAML 1.2.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] not in ("timestamp", "int", "float")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0[bB][01][01_]*|0[xX][0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what we or others would read as something else than text."""


_Dumper.yaml_implicit_resolvers = {
    first: [resolver for kind in (_Loader, yaml.SafeDumper) for resolver in kind.yaml_implicit_resolvers.get(first, [])]
    for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **_Loader.yaml_implicit_resolvers}
}
