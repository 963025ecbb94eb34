"""The command line: `xmodal train | evaluate | search | ...`, each a dataclass that tyro turns into options."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from xmodal.arguments import read_arguments
from xmodal.commands.cluster import BuildCluster, build_cluster
from xmodal.commands.evaluate import Evaluate, evaluate
from xmodal.commands.evaluate_embedder import EvaluateEmbedder, evaluate_embedder
from xmodal.commands.explain import Explain, explain
from xmodal.commands.export import Export, export
from xmodal.commands.index import BuildIndex, build_index
from xmodal.commands.inspect import Inspect, inspect
from xmodal.commands.recipes import Recipes, recipes
from xmodal.commands.search import Search, search
from xmodal.commands.serve import Serve, serve
from xmodal.commands.train import train
from xmodal.entry import DEBUG, DEBUG_HELP, ends_in_one_line
from xmodal.spelling import near_miss
from xmodal.training.config import RunConfig, TrainConfig, load_recipe

COMMANDS: dict[str, tuple[Any, type]] = {
    "train": (train, TrainConfig),
    "recipes": (recipes, Recipes),
    "evaluate": (evaluate, Evaluate),
    "evaluate-embedder": (evaluate_embedder, EvaluateEmbedder),
    "index": (build_index, BuildIndex),
    "cluster": (build_cluster, BuildCluster),
    "search": (search, Search),
    "serve": (serve, Serve),
    "explain": (explain, Explain),
    "inspect": (inspect, Inspect),
    "export": (export, Export),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: wrong input ends with one clear line and exit status 2, not with a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _import_from_here()
    name = next((argument for argument in arguments if argument != DEBUG), "--help")
    if name in ("-h", "--help"):
        print(_overview())
        return
    with ends_in_one_line(f"xmodal {name}" if name in (*COMMANDS, "prepare") else "xmodal", arguments) as rest:
        if name == "prepare":
            # A wheel has these programs in another folder than a checkout, so that only their name is the same.
            import_module("xmodal.prepare.programs").run([*rest[1:], *([DEBUG] if DEBUG in arguments else [])])
        elif name in COMMANDS:
            _run(name, rest[1:])
        else:
            known = (*COMMANDS, "prepare")
            raise ValueError(f"unknown command {name!r}{near_miss(name, known)}; known: {', '.join(known)}")


def _import_from_here() -> None:
    """Let names lead to classes in files beside the user, as under `python -m`; what is installed goes first."""
    if "" not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.append("")


def _run(name: str, arguments: list[str]) -> None:
    """Run one of the commands with its options."""
    command, kind = COMMANDS[name]
    prog = f"xmodal {name}"
    if kind is not TrainConfig:
        command(read_arguments(kind, arguments, prog=prog, description=f"{_description(kind)} {DEBUG_HELP}"))
        return
    from xmodal.training.command_line import parse

    recipe, arguments = _recipe(arguments)
    about = f"{_description(type(recipe))} {DEBUG_HELP}"
    command(parse(recipe, arguments, prog=prog, description=about))


def _recipe(arguments: list[str]) -> tuple[RunConfig, list[str]]:
    """Take `--recipe FILE` out of the arguments; everything else on the command line overrides the recipe."""
    places = [at for at, argument in enumerate(arguments) if argument.partition("=")[0] == "--recipe"]
    if not places:
        return TrainConfig(), arguments
    if len(places) > 1:
        raise ValueError("--recipe is given more than once; a recipe may name another as its base instead")
    (at,) = places
    _, is_joined, recipe = arguments[at].partition("=")
    after = at + (1 if is_joined else 2)
    recipe = recipe if is_joined else "".join(arguments[at + 1 : after])
    if not recipe:
        raise ValueError("--recipe needs the path of a YAML file, or a name that `xmodal recipes` lists")
    return load_recipe(recipe), arguments[:at] + arguments[after:]


def _description(kind: type) -> str:
    text = (kind.__doc__ or "").strip()
    return (
        text + " --recipe FILE or NAME reads a YAML recipe first, see `xmodal recipes`."
        if issubclass(kind, RunConfig)
        else text
    )


def _overview() -> str:
    lines = [f"  {name:19}{_description(kind)}" for name, (_, kind) in COMMANDS.items()]
    lines.append(f"  {'prepare':19}Make region stores, captions and vocabularies of what you have.")
    end = f"xmodal COMMAND --help lists a command's options. {DEBUG_HELP}"
    return "\n".join(["usage: xmodal COMMAND ...", "", *lines, "", end])


if __name__ == "__main__":
    main()
