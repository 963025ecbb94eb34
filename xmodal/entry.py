"""How every program starts and ends: options from a type, and whatever stops it told in one line.

What the user can mend ends with exit status 2, Ctrl-C with 130 and an error of our own with 1; none of them shows a
traceback unless `--debug` is among the arguments.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, get_type_hints

from xmodal.arguments import read_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEBUG = "--debug"
DEBUG_HELP = f"{DEBUG} shows the traceback of an error."

MENDABLE = (ValueError, OSError, KeyError, EOFError, ImportError, FloatingPointError, MemoryError)
"""What comes of wrong arguments, of files that are missing, damaged or forbidden, of too little room, of packages that
are not installed, and of training that diverges."""


@contextlib.contextmanager
def ends_in_one_line(prog: str, arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of a program without `--debug`; what stops the program inside ends the process, with one line.

    Raises:
        SystemExit: with status 2 for what the user can mend, 130 after Ctrl-C, 141 when nobody reads the output any
            more, and 1 for any other error, whose place is told. With `--debug`, the error itself goes through.

    >>> import contextlib, sys
    >>> with contextlib.redirect_stderr(sys.stdout), ends_in_one_line("xmodal train", ["--epochs", "0"]) as arguments:
    ...     raise ValueError("epochs must be at least 1,\\n    got 0")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    # File names need not be UTF-8; those that are not are printed as the bytes that they are.
    with contextlib.suppress(AttributeError):  # what took the place of stdout may know no errors
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        yield [argument for argument in arguments if argument != DEBUG]
    except (Exception, KeyboardInterrupt) as error:
        if DEBUG in arguments:
            raise
        status, message = _told(error)
        if message:
            print(f"{prog}: {message}", file=sys.stderr)
        sys.exit(status)


def run_program(
    main: Callable[[Any], None],
    arguments: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> None:
    """Call `main` with what the command line says; it takes one thing, and that thing's type is its options.

    Args:
        main: the program, a function of one argument whose annotation tyro turns into options.
        arguments: the command line after the program's name; without, the process's own.
        prog: the program's name; without, how Python was told to run its module.
        description: what its help says; without, the docstring of its module.

    Raises:
        SystemExit: for --help, for wrong arguments, and as for `ends_in_one_line`.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Greeting:
    ...     name: str
    ...     times: int = 1
    >>> def main(greeting: Greeting) -> None:
    ...     print(*[f"Hello, {greeting.name}."] * greeting.times)
    >>> run_program(main, ["--name", "Ada", "--times", "2"], prog="hello", description="Greet somebody.")
    Hello, Ada. Hello, Ada.
    """
    module = sys.modules[main.__module__]
    prog = prog or f"python -m {module.__spec__.name if module.__spec__ else module.__name__}"
    about = f"{description or inspect.cleandoc(module.__doc__ or '')}\n\n{DEBUG_HELP}"
    (parameter,) = inspect.signature(main).parameters
    kind = get_type_hints(main, include_extras=True)[parameter]
    with ends_in_one_line(prog, sys.argv[1:] if arguments is None else arguments) as options:
        main(read_arguments(kind, options, prog=prog, description=about))


def _told(error: BaseException) -> tuple[int, str]:
    """The exit status and the line that an error ends a program with."""
    if isinstance(error, KeyboardInterrupt):
        return 130, str(error) or "stopped by Ctrl-C"
    if isinstance(error, BrokenPipeError):
        # The interpreter would complain once more when it flushes what nobody reads.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141, ""
    # A KeyError's own string is the representation of its message.
    message = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if isinstance(error, MENDABLE):
        return 2, message or type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return 1, f"{type(error).__name__} at {place.filename}, line {place.lineno}: {message} ({DEBUG_HELP})"
