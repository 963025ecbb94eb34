"""Arguments of a program as a value of the type of its options; what tyro refuses is told in one line, not in a box."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from typing import TYPE_CHECKING, Any

import tyro

from xmodal.spelling import near_miss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def read_arguments(kind: Any, arguments: Sequence[str], *, prog: str, description: str, **options: Any) -> Any:
    """What the arguments say, with the type's own defaults for the rest.

    Args:
        kind: a dataclass, say; anything that tyro turns into options.
        arguments: what follows the program's name.
        prog: the program's name.
        description: what its help says first.
        options: others of `tyro.cli`, such as `default`.

    Raises:
        ValueError: for an option that does not exist, with the nearest one that does, one that is missing, or a value
            that cannot be.
        SystemExit: after printing the help.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Greeting:
    ...     times: int = 1
    >>> about = {"prog": "hello", "description": "Greet."}
    >>> read_arguments(Greeting, ["--times", "3"], **about)
    Greeting(times=3)
    >>> read_arguments(Greeting, ["--tims", "3"], **about)
    Traceback (most recent call last):
    ...
    ValueError: unknown option --tims (did you mean '--times'?); see hello --help
    """

    def run(arguments: Sequence[str]) -> Any:
        return tyro.cli(kind, args=list(arguments), prog=prog, description=description, **options)

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return run(arguments)
    except SystemExit as error:
        if error.code in (0, None):
            raise
    known = _options_in_help(run)
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in known:
            raise ValueError(f"unknown option {option}{near_miss(option, known)}; see {prog} --help")
    raise ValueError(_first_section(printed.getvalue(), kind))


def _options_in_help(run: Callable[[Sequence[str]], Any]) -> list[str]:
    """Every option that the help of a program names."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run(["--help"])
    return re.findall(r"(?<![\w-])--\w[\w.-]*", printed.getvalue())


def _first_section(box: str, kind: Any) -> str:
    """The text of a box between its title and its next rule, without what tyro puts before a refusal of ours.

    Where there is no UTF-8, the frame of the box is of minus signs.
    """

    def is_rule(line: str) -> bool:
        return not line.strip("─-")

    lines = [line.strip("│╰╯ ") for line in box.splitlines()[1:]]
    inside = itertools.dropwhile(is_rule, lines)
    text = " ".join(itertools.takewhile(lambda line: not is_rule(line), inside))
    ours = re.fullmatch(r"Error parsing (\w[\w.-]*): (.* is .*; wanted .*)", text)
    if ours is None:
        return text
    return ours[2] if ours[1] == getattr(kind, "__name__", "") else f"{ours[1].replace('-', '_')}.{ours[2]}"
