"""On EC2: `provider: {type: external, module: cluster.spot.aws.Provider, ...}`, with all other keys of Ray's `aws`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

from cluster.spot import SpotFirst

# EC2's codes. Others, such as a missing right to use spot at all, are for a person to see.
FULL = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}


class Provider(SpotFirst, AWSNodeProvider):
    """Spot: node types with `InstanceMarketOptions`. A refusal is one of every subnet, and so of every zone."""

    def on_demand(self, node_config: dict[str, Any]) -> dict[str, Any] | None:
        if "InstanceMarketOptions" not in node_config:
            return None
        return {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}

    def is_full(self, error: Exception) -> bool:
        return isinstance(error, NodeLaunchException) and error.category in FULL
