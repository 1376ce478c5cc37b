"""Who may call: bearer keys of named clients; and which names a stored classifier may have."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping

from serving.errors import RequestError

MIN_KEY_CHARACTERS = 16


class Keys:
    """The clients' keys, read from the environment once; only their digests are kept.

    Parameters
    ----------
    variables : name of a client -> the environment variable that holds its key; empty: everybody may call
    environment : what to read them from

    Raises
    ------
    ValueError : a variable is not set, or its key is short, cannot stand in a header or is another client's too; the
        variable is named, its value never
    """

    def __init__(self, variables: Mapping[str, str], environment: Mapping[str, str] = os.environ):
        self._digests: dict[str, bytes] = {}
        for client, variable in variables.items():
            # Secrets that are mounted from files often end in a line break.
            key = environment.get(variable, "").strip()
            if not key:
                raise ValueError(f"keys.{client}: the environment variable {variable} is not set; put the key in it")
            if len(key) < MIN_KEY_CHARACTERS:
                raise ValueError(f"keys.{client}: the key in {variable} has fewer than {MIN_KEY_CHARACTERS} characters")
            if not re.fullmatch(r"[!-~]+", key):
                raise ValueError(f"keys.{client}: the key in {variable} may hold only ASCII characters, and no spaces")
            digest = _digest(key)
            if digest in self._digests.values():
                raise ValueError(f"keys.{client}: the key in {variable} is another client's too; give each its own")
            self._digests[client] = digest

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._digests)})"

    def check(self, authorization_header: str | None) -> str:
        """Which client calls.

        Parameters
        ----------
        authorization_header : the request's `Authorization`; None: it has none

        Returns
        -------
        name of the client, "" where no keys are configured

        Raises
        ------
        RequestError : 401 no key, or not as `Bearer <key>`; 403 a key of nobody
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization_header or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise RequestError(401, "Authorization", "a key is needed; send the header Authorization: Bearer <key>")
        given, caller = _digest(key), None
        # The time tells nothing: digests have one length, and no key ends the search.
        for client, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                caller = client
        if caller is None:
            raise RequestError(403, "Authorization", "this key is not known here; ask the operator for one")
        return caller


def safe_name(name: str, field: str) -> str:
    """A classifier's name, which becomes part of a path in storage.

    Parameters
    ----------
    name : 1 to 64 letters, digits, dots, underscores and hyphens of ASCII; first a letter or digit, last no dot
    field : of the request that it came in, for the refusal

    Returns
    -------
    name

    Raises
    ------
    RequestError : 422, it is another
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name.endswith("."):
        form = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit, the last no dot"
        raise RequestError(422, field, f"this name cannot be used; take {form}")
    return name


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
