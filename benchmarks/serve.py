"""Requests a second and waiting times of the zero-shot endpoint, beside its model alone and a plain server.

    python benchmarks/serve.py
    python benchmarks/serve.py --models demo --systems "ray serve, haproxy" --seconds 5 --repeats 1

A request is one JPEG of 30 to 60 KB to `POST /v1/classifiers/{name}/classify`, with a classifier of 1,000 classes that
is ready; the answer holds all scores, sorted. 1, 8 and 64 clients in one process of their own send one request after
another over loopback; they share the cores with the server. Two models of random weights: ViT-B-32, and one of the
demo's sizes, which costs little, so that what remains is the price of serving. Systems take turns, one at a time:

    forward alone        the image tower in a loop, pictures prepared before, the best of several batch sizes: the bound
    ray serve, haproxy   this application as the README starts it (RAY_SERVE_ENABLE_HA_PROXY=1 and
                         RAY_SERVE_THROUGHPUT_OPTIMIZED=1)
    ray serve, default   the same without the two: behind Ray Serve's own proxy
    plain fastapi        transformers in an `async def` endpoint, one process, one picture at a time; ViT only

Answers other than 200 are counted beside. `ms` is processor time a request by process, of the best count of clients.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from orchestrator import cli
from orchestrator.data.images import ImageTransform
from orchestrator.inference import export_model, save_model
from orchestrator.model.clip import CLIP
from orchestrator.model.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parent.parent
HAPROXY, DEFAULT, PLAIN, BOUND = "ray serve, haproxy", "ray serve, default", "plain fastapi", "forward alone"
SYSTEMS = {"vit-b-32": (BOUND, HAPROXY, PLAIN, DEFAULT), "demo": (BOUND, HAPROXY, DEFAULT)}
CLIENTS = (1, 8, 64)
WARM_UP_S = 3.0
COLORS = ("red", "orange", "yellow", "green", "blue", "violet", "brown", "black", "white", "grey")
KINDS = ("small", "large", "old", "new", "wooden", "metal", "striped", "spotted", "round", "broken")
THINGS = ("cat", "dog", "house", "boat", "tree", "car", "chair", "lamp", "clock", "bottle")
CLASSES = [" ".join(words) for words in itertools.product(KINDS, COLORS, THINGS)]


@dataclasses.dataclass
class Running:
    """A server that answers.

    Parameters
    ----------
    url : that pictures are posted to
    process : it and its children do the work
    """

    url: str
    process: psutil.Process


def _photographs(folder: Path, count: int = 16) -> list[str]:
    from photos import photo_shards

    with tarfile.open(photo_shards(500, os.cpu_count() or 1)[0]) as shard:
        members = [m for m in shard.getmembers() if m.name.endswith(".jpg") and 30_000 <= m.size <= 60_000][:count]
        shard.extractall(folder, members, filter="data")
    return [str(folder / member.name) for member in members]


def _save_model(recipe: str, folder: Path) -> None:
    """A model directory `ours` and, of a Vision Transformer, the same weights for transformers as `theirs`."""
    config = cli.parse(["--config", recipe], __doc__ or "").model
    length = config.text.context_length
    tokenizer = Tokenizer.clip(length) if recipe != "demo" else Tokenizer.train(CLASSES * 2, 1024, length)
    config.vocab_size = tokenizer.vocab_size
    torch.manual_seed(0)
    save_model(str(folder / "ours"), CLIP(config), tokenizer, ImageTransform(config.image_size), "random weights\n")
    if PLAIN in SYSTEMS[recipe]:
        export_model(str(folder / "ours"), str(folder / "theirs"), "hugging_face")


def _peer(name: str, **parameters: Any) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("serve_peer.py")), name, json.dumps(parameters)]


def _ask_peer(name: str, **parameters: Any) -> dict[str, Any]:
    done = subprocess.run(_peer(name, **parameters), stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.2)


def _get(url: str, **request: Any) -> Any:
    """The JSON that a URL answers with; None where nothing answers yet."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **request), timeout=60) as reply:
            return json.load(reply)
    except OSError:
        return None


def _end(process: subprocess.Popen, mark: str) -> None:
    """End a process, those below it, and those that left it but have `mark`, which is ours, on their command line."""
    root = psutil.Process(process.pid)
    started = [root, *root.children(recursive=True)]
    for other in psutil.process_iter(["cmdline"]):
        if mark in " ".join(other.info["cmdline"] or ()) and other.pid != os.getpid() and other not in started:
            started.append(other)
    for member in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(started, timeout=10)
    process.wait()


@contextlib.contextmanager
def ray_serve(folder: Path, haproxy: bool) -> Iterator[Running]:
    """A cluster of its own with the application on it, deployed by a config file as users do."""
    port, dashboard, http = _free_port(), _free_port(), _free_port()
    home = Path(f"/tmp/clip-bench-{port}")  # the paths of sockets must stay short
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    for name in ("RAY_ADDRESS", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"):
        environment.pop(name, None)
    if haproxy:
        environment |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{home}/haproxy/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{home}/haproxy/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{home}/haproxy",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{home}/haproxy/server-state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={_free_port()}",
        f"--ray-client-server-port={_free_port()}", f"--metrics-export-port={_free_port()}",
        f"--temp-dir={home}", "--object-store-memory=500000000",
    ]  # fmt: skip
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": http},
        "applications": [{
            "name": "clip", "route_prefix": "/", "import_path": "serving.app:build",
            "args": {"model": str(folder / "ours"), "storage": str(folder / "classifiers")},
        }],
    }  # fmt: skip
    file, log = folder / "serve.yaml", folder / "head.log"
    file.write_text(yaml.safe_dump(config))
    with log.open("wb") as out:
        head = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    api, classifier = f"http://127.0.0.1:{dashboard}/api", f"http://127.0.0.1:{http}/v1/classifiers/bench"
    try:
        _wait_until(lambda: isinstance(_get(f"{api}/jobs/"), list), f"the start of a Ray head ({log})")
        serve = [str(Path(sys.executable).with_name("serve")), "deploy", str(file)]
        environment["RAY_DASHBOARD_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        subprocess.run(serve, env=environment, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)

        def running() -> bool:
            state = (_get(f"{api}/serve/applications/") or {"applications": {}})["applications"].get("clip", {})
            if state.get("status") == "DEPLOY_FAILED":
                raise RuntimeError(state["message"])
            return state.get("status") == "RUNNING"

        _wait_until(running, "the deployment")
        body = json.dumps({"classes": CLASSES, "templates": "name"}).encode()
        put = {"data": body, "method": "PUT", "headers": {"content-type": "application/json"}}
        _wait_until(lambda: _get(classifier, **put) is not None, "the first answer")
        _wait_until(lambda: (_get(classifier) or {}).get("state") == "ready", "the classifier")
        yield Running(f"{classifier}/classify", psutil.Process(head.pid))
    finally:
        _end(head, str(home))
        subprocess.run(["rm", "-rf", str(home)], check=False)


@contextlib.contextmanager
def plain_fastapi(folder: Path) -> Iterator[Running]:
    """transformers in one uvicorn process."""
    port = _free_port()
    server = subprocess.Popen(_peer("plain_server", model=str(folder / "theirs"), classes=CLASSES, port=port))
    try:
        _wait_until(lambda: _get(f"http://127.0.0.1:{port}/openapi.json") is not None, "the plain server's start")
        yield Running(f"http://127.0.0.1:{port}/classify", psutil.Process(server.pid))
    finally:
        _end(server, str(folder / "theirs"))


def _cpu_seconds(root: psutil.Process) -> Counter[str]:
    """Processor seconds so far of a process and those below it, by what they do."""
    seconds: Counter[str] = Counter()
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            name = (process.cmdline() or [""])[0].rpartition("/")[2].rpartition(":")[2]
            if name.startswith("python") and "serve_peer" in " ".join(process.cmdline()):
                name = "server"
            elif not name.startswith(("Ingress", "ImageEncoder", "haproxy", "ProxyActor")):
                name = "rest"
            times = process.cpu_times()
            seconds[name.partition("-")[0]] += times.user + times.system
    return seconds


def measure(running: Running, photographs: list[str], clients: int, seconds: float) -> dict[str, Any]:
    before = _cpu_seconds(running.process)
    load = _ask_peer(
        "load", url=running.url, photographs=photographs, clients=clients, warm_up_s=WARM_UP_S, seconds=seconds
    )
    spent = _cpu_seconds(running.process)
    spent.subtract(before)
    spent["clients"] += load["cpu_s"]
    latencies = load["latencies"]
    if len(latencies) < 2 or load["labels"] != len(CLASSES):
        raise RuntimeError(f"{running.url}: {load['statuses']}, {load['labels']} labels in an answer")
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "requests_per_s": len(latencies) / seconds,
        "p50_ms": 1e3 * cuts[49],
        "p99_ms": 1e3 * cuts[98],
        "refused": sum(count for status, count in load["statuses"].items() if status != "200"),
        "cpu_ms": {name: 1e3 * value / load["answered"] for name, value in spent.items() if value},
    }


def run(system: str, folder: Path, photographs: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each count of clients; of the bound a single one."""
    if system == BOUND:
        found = _ask_peer("bound", model=str(folder / "ours"), seconds=seconds / 2, threads=os.cpu_count())
        batch, speed = max(found["images_per_s"].items(), key=lambda one: one[1])
        yield {"clients": f"batch {batch}", "requests_per_s": speed}
        return
    with plain_fastapi(folder) if system == PLAIN else ray_serve(folder, system == HAPROXY) as running:
        for clients in CLIENTS:
            yield {"clients": clients, **measure(running, photographs, clients, seconds)}


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    row = dict(rows[-1])
    for key in ("requests_per_s", "p50_ms", "p99_ms"):
        if key in row:
            row[key] = round(statistics.median(one[key] for one in rows), 2)
    if "cpu_ms" in row:
        row["refused"] = sum(one["refused"] for one in rows)
        row["cpu_ms"] = {
            name: round(statistics.median(one["cpu_ms"].get(name, 0.0) for one in rows), 2) for name in row["cpu_ms"]
        }
    return row


def goals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    of = {(row["model"], row["system"], row["clients"]): row for row in rows}

    def best(model: str, system: str) -> float:
        return max((row["requests_per_s"] for key, row in of.items() if key[:2] == (model, system)), default=0)

    def add(name: str, above: float, below: float, goal: float, at_most: bool = False) -> None:
        if above and below:
            value = round(above / below, 3)
            found[name] = {"value": value, "goal": goal, "met": value <= goal if at_most else value >= goal}

    ours, at_8 = best("vit-b-32", HAPROXY), of.get(("vit-b-32", HAPROXY, 8), {})
    add("vs_model_bound", ours, best("vit-b-32", BOUND), 0.85)
    add("vs_plain_fastapi", ours, best("vit-b-32", PLAIN), 1.5)
    add("p99_over_p50_at_8", at_8.get("p99_ms", 0), at_8.get("p50_ms", 0), 3, at_most=True)
    quick, slow = (of.get(("demo", system, 64), {}).get("requests_per_s", 0) for system in (HAPROXY, DEFAULT))
    add("vs_default_proxy", quick, slow, 5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS["vit-b-32"], default=SYSTEMS["vit-b-32"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each count of clients, after a warm-up")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    measured: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        photographs = _photographs(scratch)
        sizes = [Path(photograph).stat().st_size / 1e3 for photograph in photographs]
        for recipe in arguments.models:
            _save_model(recipe, scratch / recipe)
        for repeat in range(arguments.repeats):
            for recipe in arguments.models:
                for system in (one for one in SYSTEMS[recipe] if one in arguments.systems):
                    for place, row in enumerate(run(system, scratch / recipe, photographs, arguments.seconds)):
                        row = {"model": recipe, "system": system, **row}
                        measured.setdefault((recipe, system, place), []).append(row)
                        print(f"  {repeat + 1}: {json.dumps(row)}", file=sys.stderr, flush=True)
    rows = [_median(several) for several in measured.values()]
    hardware = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"\n{hardware}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, load average {load:.1f} at the start")
    print(f"{len(photographs)} JPEGs of {min(sizes):.0f} to {max(sizes):.0f} KB, {len(CLASSES):,} classes; "
          f"{arguments.seconds:g} s a row after {WARM_UP_S:g} s, medians of {arguments.repeats}\n")  # fmt: skip
    print("| model | system | clients | requests/s | p50 ms | p99 ms | not 200 | processor ms a request |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        line = f"| {row['model']} | {row['system']} | {row['clients']} | {row['requests_per_s']:.1f} |"
        if "cpu_ms" in row:
            spent = ", ".join(f"{name} {ms:.1f}" for name, ms in sorted(row["cpu_ms"].items(), key=lambda one: -one[1]))
            line += f" {row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {row['refused']} | {spent} |"
        else:
            line += " | | | |"
        print(line)
    machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "load": round(load, 2)}
    print()
    print(json.dumps({"benchmark": "serve", "machine": machine, "rows": rows, "goals": goals(rows)}))


if __name__ == "__main__":
    main()
