"""Calls from one deployment to another."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serving.errors import RequestError

T = TypeVar("T")


def through_the_store(handle: Any) -> Any:
    """A handle whose arguments and results may be of any size: where Serve is set up to use gRPC, 4 MB is the most."""
    return handle.options(_by_reference=True)


async def ask(response: Awaitable[T]) -> T:
    """What a deployment answers.

    Raises
    ------
    RequestError : its own; 503 where it has too much to do, or was lost
    """
    try:
        return await response
    except (BackPressureError, DeploymentUnavailableError):
        raise RequestError(503, "", "the server has as much to do as it can; try again", 1) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RequestError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError:
        raise RequestError(503, "", "a part of the server was lost and starts anew; try again", 1) from None
