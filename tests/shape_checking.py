"""Runtime checking of the annotated shapes, for `pytest --jaxtyping`.

The package imports the names of its annotations under `TYPE_CHECKING` only, and runtime checks would break
`torch.compile`; so both are switched on here, from outside, before the packages are first imported.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
import typing

import typeguard
from jaxtyping import install_import_hook


def typechecked(function):
    """A type checker for jaxtyping's hook: every annotated argument is handed to typeguard.

    `typeguard.typechecked` itself rewrites a function's source, and the functions that jaxtyping passes have none.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            annotation = signature.parameters[name].annotation
            if annotation is not inspect.Parameter.empty:
                typeguard.check_type(value, annotation, forward_ref_policy=typeguard.ForwardRefPolicy.IGNORE)
        return function(*args, **kwargs)

    return checked


def import_with_shape_checks(*packages: str) -> None:
    """Import packages with every function's annotations resolved and checked at run time."""
    loaded = [name for name in sys.modules if name in packages]
    if loaded:
        raise RuntimeError(f"{', '.join(loaded)} imported before shape checking could be switched on")
    # Other libraries do not import under TYPE_CHECKING: all that is needed of them is loaded before that is set.
    roots = {package.split(".")[0] for package in packages}
    for root in roots:
        for module in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
    for name in [name for name in sys.modules if name.split(".")[0] in roots]:
        del sys.modules[name]
    typing.TYPE_CHECKING = True
    try:
        with install_import_hook(packages, f"{__name__}.typechecked"):
            for package in packages:
                importlib.import_module(package)
    finally:
        typing.TYPE_CHECKING = False
