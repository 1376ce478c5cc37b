"""Nodes of a Ray cluster that are groups of processes on this machine: the hands of Ray's autoscaler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster.local.processes import end, free_port, tree

READY = "autoscaler-ready"
HEAD_ID = "head"
HEAD_TYPE = "head"
# By these Ray tells which node of its own an instance of the provider has become.
INSTANCE_ID, NODE_TYPE = "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME"


class LocalNodes(NodeProvider):
    """Starts and ends worker nodes on this machine.

    Ray's autoscaler makes one, in a process of its own, from the `provider` of a cluster's configuration.

    Parameters
    ----------
    provider_config : address (host:port of the head), object_store_bytes (of a node), folder (of the nodes' folders)
    cluster_name : of the configuration
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str):
        super().__init__(provider_config, cluster_name)
        self._lock = threading.RLock()
        self._tags: dict[str, dict[str, str]] = {
            HEAD_ID: {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE}
        }
        self._processes: dict[str, subprocess.Popen] = {}
        # Whoever starts the cluster waits for it: the autoscaler works.
        (Path(provider_config["folder"]) / READY).touch()

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Ids of the nodes that live and have these tags; one whose processes are gone is none any more."""
        with self._lock:
            for node_id, process in list(self._processes.items()):
                if process.poll() is not None:
                    self._forget(node_id)
            return [node_id for node_id, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags.get(node_id, {})

    def external_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    def internal_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            self._start(tags, dict(resources), labels)

    def _start(self, tags: dict[str, str], resources: dict[str, float], labels: dict[str, str]) -> None:
        node_id = uuid.uuid4().hex[:6]
        config = self.provider_config
        # A folder of its own, as a machine has: nodes that share one unpack a job's files over each other's.
        folder = Path(config["folder"]) / node_id
        folder.mkdir()
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={config['address']}",
            "--node-ip-address=127.0.0.1", "--disable-usage-stats", f"--temp-dir={folder}",
            f"--num-cpus={resources.pop('CPU', 0):g}", f"--num-gpus={resources.pop('GPU', 0):g}",
            f"--object-store-memory={config['object_store_bytes']}",
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip
        for name in ("memory", "object_store_memory"):
            resources.pop(name, None)
        if resources:
            command.append(f"--resources={json.dumps(resources)}")
        if labels:
            command.append("--labels=" + ",".join(f"{name}={value}" for name, value in labels.items()))
        environment = {**os.environ, INSTANCE_ID: node_id, NODE_TYPE: tags[TAG_RAY_USER_NODE_TYPE]}
        with self._lock, (folder / "node.log").open("ab") as out:
            self._processes[node_id] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            self._tags[node_id] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            process = self._forget(node_id)
        if process is not None:
            end(tree(process), patience_s=10)
            process.wait()

    def _forget(self, node_id: str) -> subprocess.Popen | None:
        self._tags.pop(node_id, None)
        return self._processes.pop(node_id, None)
