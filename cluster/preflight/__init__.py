"""What is looked at before money is spent, each kind of check in a file of its own, and tested without Ray.

`ray_up` and `room` judge files and resources, `storage`, `node` and `reduce` look and measure, `on_nodes` is the thin
edge that has them done on each node of a running cluster.
"""
