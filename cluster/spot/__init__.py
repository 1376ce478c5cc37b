"""Spot nodes where the cloud has them, else the same nodes on demand; for `provider.module` of a `ray up` file.

Ray 2.60 by itself asks for a spot node again and again: a launch that the cloud refuses does not lower the node type's
rank, and no other type is tried while it has not reached its max_workers.
"""

from __future__ import annotations

import abc
import logging
from typing import Any

logger = logging.getLogger(__name__)


class SpotFirst(abc.ABC):
    """Mixed into one of Ray's node providers: starts nodes one by one, so that each is either there or refused."""

    @abc.abstractmethod
    def on_demand(self, node_config: dict[str, Any]) -> dict[str, Any] | None:
        """The same node on demand; None: it is no spot node."""

    @abc.abstractmethod
    def is_full(self, error: Exception) -> bool:
        """Whether a launch failed because no spot node is to be had; the same node on demand may be."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start nodes.

        Parameters
        ----------
        node_config : of the node type
        tags : that Ray knows them by
        count : how many

        Returns
        -------
        by id, what the provider says of each

        Raises
        ------
        Exception : the provider's; those that have started by then stay
        """
        nodes: dict[str, Any] = {}
        for _ in range(count):
            try:
                nodes |= super().create_node(node_config, tags, 1)  # type: ignore[misc]
            except Exception as error:
                other = self.on_demand(node_config) if self.is_full(error) else None
                if other is None:
                    raise
                logger.warning("no spot node, starting one on demand: %s", error)
                node_config = other  # for the rest of these, too
                nodes |= super().create_node(node_config, tags, 1)  # type: ignore[misc]
        return nodes
