"""Programs in C++, made by the machine's compiler when they are first needed, in seconds, and kept in the user's cache.

Many short passes of torch over numbers that a cache holds take several times as long as what they compute. A program
says the same in one pass. None is needed: without a compiler, and with `XMODAL_NATIVE=0`, torch does it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from xmodal.cache import cache_folder

VARIABLE = "XMODAL_NATIVE"
HEADER = Path(__file__).with_name("lanes.h")
FLAGS = ("-std=gnu++17", "-O3", "-march=native", "-fno-math-errno", "-fno-exceptions", "-shared", "-fPIC", "-w")

logger = logging.getLogger("xmodal")


@functools.cache
def program(source: Path) -> ctypes.CDLL | None:
    """The program of a file, made if it is not there yet; None where there is no compiler, or it is not wanted.

    Example:
        >>> from pathlib import Path
        >>> from xmodal.compiled import program
        >>> source = Path("two.cpp")
        >>> written = source.write_text('extern "C" int two() { return 2; }')
        >>> made = program(source)
        >>> made is None or made.two() == 2
        True
    """
    if os.environ.get(VARIABLE) == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        logger.info("no C++ compiler is there for %s: torch computes the same, slower", source.name)
        return None
    folder = cache_folder()
    if folder is None:
        logger.warning(
            "there is no home to keep a program of %s in: torch computes the same, slower. Set XDG_CACHE_HOME",
            source.name,
        )
        return None
    try:
        return ctypes.CDLL(str(_made(compiler, source, folder)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        logger.warning("%s could not make a program of %s: torch computes the same, slower. %s", compiler, source, said)
        return None


def _made(compiler: str, source: Path, folder: Path) -> Path:
    """The path of the program for this machine."""
    named = hashlib.sha256(source.read_bytes() + HEADER.read_bytes())
    for each in (compiler, *FLAGS, platform.platform(), *sorted(_abilities())):
        named.update(each.encode() + b"\0")
    path = folder / f"{source.stem}-{named.hexdigest()[:16]}.so"
    if not path.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}-{os.getpid()}.tmp")
        command = [compiler, *FLAGS, f"-I{HEADER.parent}", str(source), "-o", str(temporary)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            temporary.replace(path)  # whole or not at all
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _abilities() -> set[str]:
    """What the processor can do, where the system says it: a home may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {platform.processor()}
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
