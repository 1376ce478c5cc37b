"""Look before money is spent: what a run needs, against a `ray up` file or a running cluster.

python -m cluster.check cluster.yaml --config vit-b-32 --data.train 's3://bucket/{00000..41454}.tar'
python -m cluster.check 10.0.0.1:6379 --config my-run.yaml       # on each node of that cluster
python -m cluster.check                                          # the demo, on the cluster that RAY_ADDRESS names
python -m cluster.check 10.0.0.1:6379 --timeout_s 120            # for each answer of each node; 60 where none is given

One line each: ok, warn or fail, what was seen, and the cure. It exits with 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from cluster.preflight.line import Line, guarded
from cluster.preflight.ray_up import check_file
from cluster.preflight.storage import check_shards, check_writable
from orchestrator import cli
from orchestrator.config import Config
from orchestrator.errors import UserError
from orchestrator.storage import absolute

TIMEOUT_S = 60.0
REACH_S = 10.0


def check(target: str, config: Config, timeout_s: float) -> list[Line]:
    """All lines.

    Parameters
    ----------
    target : a `ray up` file, or a cluster's address
    config : of the run that it is for
    timeout_s : for each answer of each node
    """
    config.run.storage_path = absolute(config.run.storage_path)
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        here = "this machine"
        return [*check_file(target, config), check_writable(config.run.storage_path, here), check_shards(config, here)]
    os.environ["RAY_ADDRESS"] = target
    from cluster.preflight.on_nodes import check_nodes
    from orchestrator.train.cluster import connect

    def join() -> Line:
        reach(target)
        return Line("ok", "address", target, connect(config))

    joined = guarded(
        "address", target, join, "Start the cluster, check the address (or file name) and, where it asks, the token"
    )
    return [joined, *(check_nodes(config, timeout_s) if joined.status == "ok" else [])]


def reach(address: str) -> None:
    """Connect to a port once; Ray itself would try for long.

    Parameters
    ----------
    address : host:port; others, such as `auto`, are left to Ray
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        usage="python -m cluster.check [file | address] [--timeout_s S] [--config recipe] [--section.key value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--timeout_s", type=float, default=TIMEOUT_S, help="for each answer of each node")
    # The target stands first: argparse would take the value of an option that only the run's parser knows for it.
    named = bool(argv) and not argv[0].startswith("-")
    target = argv[0] if named else os.environ.get("RAY_ADDRESS", "")
    asked, options = parser.parse_known_args(argv[named:])
    if not target:
        parser.error("name first a `ray up` file or the address of a cluster, or set RAY_ADDRESS")
    config = cli.parse(options, __doc__ or "")
    config.validate()
    lines = check(target, config, asked.timeout_s)
    for line in lines:
        print(line, flush=True)
    failed = sum(line.status == "fail" for line in lines)
    print(f"{len(lines)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
