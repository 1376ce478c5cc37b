"""Start a cluster on this machine, find it again, stop it, and nothing else that runs here."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.local.nodes import HEAD_ID, HEAD_TYPE, INSTANCE_ID, NODE_TYPE, READY
from cluster.local.processes import MARK, end, free_port, is_taken, members, tail, wait_until
from orchestrator.errors import UserError
from orchestrator.train.cluster import STARTS, TOO_SLOW

START_S = 90.0


class ClusterError(UserError, RuntimeError):
    """A cluster that cannot be started, found or stopped; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What a cluster on this machine looks like.

    Parameters
    ----------
    name : tells clusters of one user apart
    cpus_per_node : logical CPUs of a worker node, which need not be there: two nodes of two on two cores share them
    min_nodes, max_nodes : worker nodes, besides the head, which has no CPUs
    idle_s : seconds without work after which a node is taken away
    port : of the head, for the nodes; 0: a free one
    dashboard_port : where jobs are submitted; 0: a free one
    object_store_mb : shared memory of a node
    auth : Ray's own authentication: token (made at the first start, kept in ~/.ray/auth_token), or disabled; the
        dashboard listens on loopback, Ray's other ports on all interfaces, where only the token keeps strangers out
    """

    name: str = "local"
    cpus_per_node: float = 2.0
    min_nodes: int = 0
    max_nodes: int = 3
    idle_s: float = 60.0
    port: int = 0
    dashboard_port: int = 8265
    object_store_mb: int = 500
    auth: str = "token"

    def check(self) -> None:
        """Raise ClusterError for the first value that cannot work."""
        for key, wrong, cure in (
            ("name", not self.name.replace("-", "").isalnum(), "letters, digits and hyphens"),
            ("cpus_per_node", self.cpus_per_node <= 0, "above 0"),
            ("max_nodes", not 0 <= self.min_nodes <= self.max_nodes or not self.max_nodes, "at least 1 and min_nodes"),
            ("idle_s", self.idle_s <= 0, "above 0"),
            ("object_store_mb", self.object_store_mb < 80, "at least 80, Ray's least"),
            ("auth", self.auth not in ("token", "disabled"), "token or disabled"),
        ):
            if wrong:
                raise ClusterError(f"{key}={getattr(self, key)!r}: {cure}")


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that was started.

    Parameters
    ----------
    settings : that it was started with
    address : host:port of its head
    dashboard : URL that jobs are submitted to
    mark : what its processes carry in their environment
    scratch : its folder of logs and sockets
    """

    settings: Settings
    address: str
    dashboard: str
    mark: str
    scratch: Path

    @property
    def environment(self) -> dict[str, str]:
        """For processes that submit jobs to it."""
        return {"RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_AUTH_MODE": self.settings.auth}

    def headers(self) -> dict[str, str]:
        """Of HTTP requests to its dashboard."""
        if self.settings.auth == "disabled":
            return {}
        token = subprocess.run([_ray(), "get-auth-token"], check=True, capture_output=True, text=True).stdout.strip()
        return {"Authorization": f"Bearer {token}"}

    @property
    def is_up(self) -> bool:
        """Whether its head lives and answers."""
        return self.has_head and _answers(self.dashboard)

    @property
    def has_head(self) -> bool:
        """Whether its head lives; a busy one may be slow to answer, and a dead one's port may be another's by now."""
        return any(starts(process) == "head" for process in self.processes())

    @property
    def targets(self) -> Path:
        """Where its metrics are, for Prometheus: a file that Ray keeps up to date."""
        return self.scratch / "prom_metrics_service_discovery.json"

    @classmethod
    def start(cls, settings: Settings) -> LocalCluster:
        """Start the head; nodes come when work asks for them.

        Raises
        ------
        ClusterError : one of this name runs already, a port is taken, or Ray does not start; nothing is left running
        """
        settings.check()
        before = find(settings.name)
        if before is not None:
            if before.has_head:
                raise ClusterError(
                    f"cluster {settings.name} runs already, at {before.address}; stop it with `python -m cluster.local "
                    f"down --name {settings.name}`, or choose another --name"
                )
            before.stop()  # what a crash has left
        for key in ("port", "dashboard_port"):
            if getattr(settings, key) and is_taken(getattr(settings, key)):
                raise ClusterError(f"{key}={getattr(settings, key)}: another process listens there; take another, or 0")
        settings = dataclasses.replace(
            settings, port=settings.port or free_port(), dashboard_port=settings.dashboard_port or free_port()
        )
        # Sockets lie in it, whose paths must stay short.
        scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        cluster = cls(
            settings,
            f"127.0.0.1:{settings.port}",
            f"http://127.0.0.1:{settings.dashboard_port}",
            uuid.uuid4().hex,
            scratch,
        )
        cluster._remember()
        try:
            cluster._start_head()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def _start_head(self) -> None:
        settings = self.settings
        if settings.auth == "token":
            # Ray's own token, made where there is none; the file belongs to this user alone.
            subprocess.run([_ray(), "get-auth-token", "--generate"], check=True, capture_output=True)
        (self.scratch / "autoscaling.json").write_text(json.dumps(self.autoscaling(), indent=2))
        command = [
            _ray(), "start", "--head", "--block", "--disable-usage-stats", f"--port={settings.port}",
            "--node-ip-address=127.0.0.1", "--num-cpus=0", "--num-gpus=0", f"--temp-dir={self.scratch}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={settings.dashboard_port}",
            f"--object-store-memory={settings.object_store_mb << 20}",
            f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
            f"--autoscaling-config={self.scratch / 'autoscaling.json'}",
        ]  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            MARK: self.mark,
            INSTANCE_ID: HEAD_ID,
            NODE_TYPE: HEAD_TYPE,
            "RAY_AUTH_MODE": settings.auth,
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            # The autoscaler imports this package, wherever it was started from.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
            # Ray's own ports for metrics are fixed: of two clusters here, one would show the other's.
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "DASHBOARD_METRIC_PORT": str(free_port()),
            # `ray job stop` waits so long for a run to write its checkpoint, in place of 3 seconds.
            "RAY_JOB_STOP_WAIT_TIME_S": "600",
        }
        log = self.scratch / "head.log"

        def works_after_a_start() -> bool:
            with log.open("wb") as out:
                head = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )

            def works() -> bool:
                return (self.scratch / READY).exists() and self.is_up

            return wait_until(lambda: head.poll() is not None or works(), START_S) and head.poll() is None

        for _ in range(STARTS):
            if works_after_a_start():
                return
            if TOO_SLOW not in tail(log):
                break
        raise ClusterError(f"Ray did not start; its log ends:\n{tail(log)}")

    def autoscaling(self) -> dict[str, Any]:
        """Ray's configuration of the autoscaler."""
        settings = self.settings
        return {
            "cluster_name": settings.name,
            "max_workers": settings.max_nodes,
            "idle_timeout_minutes": settings.idle_s / 60,
            "upscaling_speed": 100.0,
            "provider": {
                "type": "external",
                "module": "cluster.local.nodes.LocalNodes",
                "disable_node_updaters": True,
                "address": self.address,
                "object_store_bytes": settings.object_store_mb << 20,
                "folder": str(self.scratch),
            },
            # Ray asks for these; nothing is set up on a node, which is this machine.
            **{key: [] for key in ("cluster_synced_files", "initialization_commands", "rsync_exclude", "rsync_filter")},
            **{f"{part}setup_commands": [] for part in ("", "head_", "worker_")},
            **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            "file_mounts_sync_continuously": False,
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {
                    "resources": {"CPU": settings.cpus_per_node},
                    "node_config": {},
                    "min_workers": settings.min_nodes,
                    "max_workers": settings.max_nodes,
                },
            },
        }

    def stop(self) -> None:
        """End its processes, whoever started them, and remove what it left; other clusters stay."""
        end(self.processes(), patience_s=10)
        # What was being started meanwhile.
        end(self.processes(), patience_s=2)
        shutil.rmtree(self.scratch, ignore_errors=True)
        _state_file(self.settings.name).unlink(missing_ok=True)

    def _remember(self) -> None:
        file = _state_file(self.settings.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({**dataclasses.asdict(self), "scratch": str(self.scratch)}, indent=2))
        part.replace(file)

    def nodes(self) -> list[psutil.Process]:
        """The first process of each worker node that lives."""
        return [process for process in self.processes() if starts(process) == "worker"]

    def processes(self) -> list[psutil.Process]:
        """All that live."""
        return members(self.mark, self.scratch)


def find(name: str) -> LocalCluster | None:
    """The cluster of this name that was started and not stopped; its processes may have died meanwhile."""
    file = _state_file(name)
    if not file.exists():
        return None
    saved = json.loads(file.read_text())
    saved |= {"settings": Settings(**saved["settings"]), "scratch": Path(saved["scratch"])}
    return LocalCluster(**saved)


def _state_file(name: str) -> Path:
    from orchestrator.data.packages import cache_folder

    return cache_folder() / "clusters" / f"{name}.json"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it asks for the token
    except OSError:
        return False


def starts(process: psutil.Process) -> str:
    """What it is the first process of: head, worker, or nothing."""
    try:
        command = set(process.cmdline())
    except psutil.Error:
        return ""
    if not command >= {"start", "--block"}:
        return ""
    return "head" if "--head" in command else "worker"


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))
