"""A Ray cluster of several nodes on this machine.

python -m cluster.local up                              # a head; up to 3 nodes of 2 CPUs come when jobs ask for them
python -m cluster.local up --name big --max_nodes 8 --cpus_per_node 1 --dashboard_port 0
python -m cluster.local status
python -m cluster.local down                            # ends what `up` started, and only that
"""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser

from cluster.local.cluster import ClusterError, LocalCluster, Settings, find
from orchestrator.errors import UserError


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m cluster.local", description=__doc__)
    commands = parser.add_subcommands()
    up = ArgumentParser()
    up.add_class_arguments(Settings)
    commands.add_subcommand("up", up, help="start it")
    for name, text in (("down", "stop it"), ("status", "what runs")):
        other = ArgumentParser()
        other.add_argument("--name", type=str, default=Settings.name)
        commands.add_subcommand(name, other, help=text)
    asked = parser.parse_args(argv)
    command = asked[asked.subcommand]
    if asked.subcommand == "up":
        _say(LocalCluster.start(Settings(**command.as_dict())))
        return
    cluster = find(command.name)
    if cluster is None:
        print(f"no cluster {command.name} was started here")
    elif asked.subcommand == "down":
        cluster.stop()
        print(f"cluster {command.name} stopped")
    elif not cluster.is_up:
        raise ClusterError(
            f"cluster {command.name} does not answer at {cluster.dashboard}; `down` cleans up, then `up`"
        )
    else:
        print(f"cluster {command.name}: {len(cluster.nodes())} nodes of at most {cluster.settings.max_nodes}")
        _say(cluster)


def _say(cluster: LocalCluster) -> None:
    settings = cluster.settings
    variables = " ".join(f"{name}={value}" for name, value in cluster.environment.items())
    print(
        f"cluster   {settings.name} at {cluster.address}, up to {settings.max_nodes} nodes of "
        f"{settings.cpus_per_node:g} CPUs; logs in {cluster.scratch}\n"
        f"dashboard {cluster.dashboard} (this machine alone)\n"
        f"next      export {variables}\n"
        "          ray job submit --working-dir . -- python jobs/pretrain.py --config demo\n"
        f"metrics   {cluster.targets} names where they are, for Prometheus\n"
        f"stop      python -m cluster.local down --name {settings.name}"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
