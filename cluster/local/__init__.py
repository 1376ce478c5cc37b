"""A Ray cluster of several nodes on this machine, which Ray's own autoscaler adds and removes as jobs ask for them.

nodes        the nodes, to Ray's autoscaler
cluster      start it, find it again, stop it
timeline     what it looked like over time
demo         a run that grows over nodes which come, fail and leave
"""

from cluster.local.cluster import ClusterError, LocalCluster, Settings

__all__ = ["ClusterError", "LocalCluster", "Settings"]
