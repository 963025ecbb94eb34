"""`xmodal cluster`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # tyro reads the annotations

import tyro  # noqa: TC002  # what options are annotated with is read at run time


@dataclass(frozen=True)
class BuildCluster:
    """Deal the items of an index to several servers of vectors, Milvus or PostgreSQL, which are searched as one."""

    index: tyro.conf.Positional[Path]
    """Folder that `xmodal index` made."""
    servers: tyro.conf.Positional[Path]
    """YAML file with a list of servers: `- {name: milvus, uri: "http://10.0.0.7:19530"}`."""
    output: Path | None = None
    """File to write, for `xmodal search --index`; by default INDEX with the suffix .cluster.json."""
    overwrite: bool = False
    """Replace a cluster that is there, on its servers too."""


def build_cluster(config: BuildCluster) -> None:
    """Deal an index to servers and say what each holds."""
    from xmodal.search.engines.cluster import Cluster
    from xmodal.search.index import Index
    from xmodal.training.read_yaml import read_yaml_file

    if not config.servers.is_file():
        raise FileNotFoundError(f"there is no file {config.servers} with a list of servers")
    servers = read_yaml_file(config.servers, "list of servers")
    if not isinstance(servers, list) or not all(isinstance(each, dict) for each in servers):
        raise ValueError(f"{config.servers} holds {servers!r}; wanted a list: - {{name: folder, path: /disk1}}")
    output = config.output or config.index.with_suffix(".cluster.json")
    cluster = Cluster.build(Index.open(config.index), output, servers, overwrite=config.overwrite)
    print(f"{output}: {len(cluster)} {cluster.plan.indexed}")
    for server, items in zip(cluster.roster.servers, cluster.plan.items, strict=True):
        print(f"  {items} on {server.address}")
