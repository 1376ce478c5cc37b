"""What a client did wrong, or what the server cannot do now, with the field and the cure."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """An answer other than 2xx.

    Parameters
    ----------
    status : of HTTP
    field : of the request that it is about, such as image or labels[2]; empty: the whole
    message : what is wrong and the cure, for a person to read
    retry_after_s : seconds after which trying again makes sense; None: it does not
    """

    def __init__(self, status: int, field: str, message: str, retry_after_s: int | None = None):
        super().__init__(status, field, message, retry_after_s)
        self.status, self.field, self.message, self.retry_after_s = status, field, message, retry_after_s

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        return {"status": self.status, "field": self.field, "message": self.message}
