"""Training processes reach each other through the interface that Ray's nodes do.

Left alone, gloo takes the interface that the host's name resolves to. Where that is the loopback (Debian's 127.0.1.1,
containers, network namespaces), processes on other hosts are never found.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def interface_of(address: str) -> str:
    """Name of the interface that has an IP address.

    Raises
    ------
    ValueError : none has; the message names those that there are
    """
    found = {name: [one.address for one in addresses] for name, addresses in psutil.net_if_addrs().items()}
    for name, addresses in found.items():
        if address in addresses:
            return name
    raise ValueError(f"no network interface has {address}; there are {found}")


class NodeInterface(TorchConfig):
    """torch's process group as Ray Train sets it up, through the node's own interface.

    GLOO_SOCKET_IFNAME in the nodes' environment has the last word.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_choose)
        super().on_start(worker_group, backend_config)


def _choose() -> None:
    # An address that a gateway maps to this node is none of its interfaces': then gloo chooses.
    with contextlib.suppress(ValueError):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(ray.util.get_node_ip_address()))
