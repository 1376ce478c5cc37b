"""On Compute Engine: `provider: {type: external, module: cluster.spot.gcp.Provider, ...}`, with all other keys of Ray's
`gcp`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

from cluster.spot import SpotFirst

# Compute Engine's codes, of the zone and of the project; Ray raises what the operation or the request answered.
FULL = ("ZONE_RESOURCE_POOL_EXHAUSTED", "QUOTA_EXCEEDED", "quotaExceeded")
SPOT = ("provisioningModel", "instanceTerminationAction", "preemptible")


class Provider(SpotFirst, GCPNodeProvider):
    """Spot: node types with `scheduling: {provisioningModel: SPOT}`."""

    def on_demand(self, node_config: dict[str, Any]) -> dict[str, Any] | None:
        scheduling = node_config.get("scheduling", {})
        if scheduling.get("provisioningModel") != "SPOT":
            return None
        return {**node_config, "scheduling": {key: value for key, value in scheduling.items() if key not in SPOT}}

    def is_full(self, error: Exception) -> bool:
        return any(code in str(error) for code in FULL)
