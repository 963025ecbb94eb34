"""Options that are one of a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_choice(name: str, value: str, choices: Iterable[str] | Any) -> None:
    """Make sure that an option has a value that is known.

    Args:
        name: of the option.
        value: of the option.
        choices: what is known, as names or as a `Literal`.

    Raises:
        ValueError: for any other value; the message lists what is known.

    Example:
        >>> from typing import Literal
        >>> from xmodal.objectives.choices import check_choice
        >>> check_choice("reduction", "max", Literal["sum", "mean"])
        Traceback (most recent call last):
        ...
        ValueError: reduction must be one of sum, mean; got 'max'
    """
    known = get_args(choices) or tuple(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
