"""`xmodal serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # tyro reads the annotations

import tyro  # noqa: TC002  # what options are annotated with is read at run time


@dataclass(frozen=True)
class Serve:
    """Serve an index: a page to search with, a JSON API (/openapi.json), /health and /metrics."""

    index: tyro.conf.Positional[Path]
    """Folder that `xmodal index` made, of images."""
    model: Path
    """Run folder, or folder written by save_pretrained, that the index was built with."""
    images: Path | None = None
    """Folder with the image files, named by image id; without, the page shows ids."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own let everybody in who reaches them."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    body_bytes: int = 10_000_000
    """Bytes of a photograph that is sent, at most."""
    pixels: int = 16_000_000
    """Pixels of a photograph that is sent, at most."""
    seconds: float = 30.0
    """What a request may take."""


def serve(config: Serve) -> None:
    """Open everything, say where it is, and serve until Ctrl-C."""
    from importlib.util import find_spec

    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise ImportError(f"serving needs {', '.join(missing)}: pip install 'xmodal[serve]'")
    from xmodal.search.serve.guard import Limits
    from xmodal.search.serve.server import allowed_hosts, listen, open_app, run

    limits = Limits(config.body_bytes, config.pixels, config.seconds)
    hosts = allowed_hosts(config.host)
    app = open_app(config.index, config.model, config.images, limits=limits, hosts=hosts)
    with listen(config.host, config.port) as listening:
        name = f"[{config.host}]" if ":" in config.host else config.host
        print(f"http://{name}:{listening.getsockname()[1]}/ serves {config.index}; Ctrl-C stops it", flush=True)
        run(app, listening)
