"""A URI becomes a filesystem and a path; nothing else in the project knows s3 from a disk.

`s3://bucket/key`, `gs://bucket/key`, `file:///path` and plain paths; to read, `hf://datasets/owner/name[@revision]/path`
on the Hugging Face hub. S3 takes the standard AWS chain (environment,
profile, instance role) and AWS_ENDPOINT_URL, so that other S3 servers work. Credentials appear in no error.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import itertools
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from orchestrator.errors import UserError

READ_BUFFER_BYTES = 1 << 20
# Between one try and the next where storage cannot be reached.
RETRY_S = 2.0

Result = TypeVar("Result")


class StorageError(UserError, OSError):
    """Storage cannot be used; the message names the URI and the cure."""


class MissingBucket(StorageError):
    """The bucket does not exist."""


class MissingObject(StorageError):
    """The bucket or disk is there, the object is not."""


class AccessDenied(StorageError):
    """It is there, but not for these credentials."""


class NothingMatches(StorageError):
    """A pattern that matches no object."""


# Trying again would not help.
LASTING = (MissingBucket, MissingObject, AccessDenied, NothingMatches)


def patiently(action: Callable[[], Result], patience_s: float) -> Result:
    """Do it, and again for as long as storage cannot be reached or is full.

    Parameters
    ----------
    action : what to do; it must be safe to repeat
    patience_s : seconds

    Returns
    -------
    what it returns

    Raises
    ------
    StorageError : at once where trying again would not help (missing, denied), else when the time is over
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return action()
        except StorageError as error:
            if isinstance(error, LASTING) or time.monotonic() + RETRY_S > deadline:
                raise
        time.sleep(RETRY_S)


def split(uri: str) -> tuple[str, str]:
    """Scheme (s3, gs, hf or file) and path (bucket/key, datasets/owner/name/path, or a path on disk) of a URI."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)", uri, re.DOTALL)
    if match is None:
        return "file", os.path.abspath(os.path.expanduser(uri))
    scheme, rest = match.group(1).lower(), match.group(2)
    if scheme == "file":
        return "file", os.path.abspath(unquote(urlsplit(uri).path))
    if scheme == "hf":
        if not re.match(r"datasets/[^/]+/[^/]+", rest):
            raise StorageError(f"{uri}: of the hub, data sets are read from here: write hf://datasets/owner/name/path")
        return scheme, rest.rstrip("/")
    if scheme not in ("s3", "gs"):
        raise StorageError(f"{uri}: unknown scheme {scheme!r}; use s3://, gs://, hf://, file:// or a plain path")
    if not rest.split("/", 1)[0]:
        raise StorageError(f"{uri}: no bucket; write {scheme}://bucket/key")
    return scheme, rest.rstrip("/")


def open_location(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path in it."""
    scheme, path = split(uri)
    return _filesystem(scheme, _environment_key()), path


def absolute(uri: str) -> str:
    """A URI that means the same in every process.

    A relative path is taken from the working directory; in a submitted job, whose working directory Ray throws away,
    from the home directory.
    """
    if "://" in uri:
        return uri
    here = Path.cwd()
    base = Path.home() if "/runtime_resources/" in str(here) else here
    return os.path.abspath(base / Path(uri).expanduser())


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether there is an object or folder of that name."""
    with translated(uri):
        filesystem, path = open_location(uri)
        return filesystem.get_file_info(path).type != fs.FileType.NotFound
    raise AssertionError("unreachable")


class Input:
    """A stream of an object's bytes; what goes wrong while it is read is a StorageError too.

    Parameters
    ----------
    uri : the object
    stream : pyarrow's
    """

    def __init__(self, uri: str, stream: pa.NativeFile):
        self._uri, self._stream = uri, stream

    def read(self, size: int | None = None) -> bytes:
        with translated(self._uri):
            return self._stream.read(size)
        raise AssertionError("unreachable")

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()


def open_input(uri: str) -> Input:
    """A stream of the object's bytes, to be closed by the caller.

    Raises
    ------
    StorageError : here and while it is read
    """
    with translated(uri):
        filesystem, path = open_location(uri)
        # Whoever reads in small pieces should not ask object storage for each of them.
        return Input(uri, filesystem.open_input_stream(path, compression=None, buffer_size=READ_BUFFER_BYTES))
    raise AssertionError("unreachable")


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    with open_input(uri) as stream:
        return stream.read()


@contextlib.contextmanager
def open_output(uri: str) -> Iterator[Any]:
    """A stream to write an object with; the object appears under its name only when the block ends without an error.

    It is written under a temporary name beside it (`<name>.<hex>.tmp`) and renamed at the end; in object storage the
    server copies it, at most 5 GB in S3. pyarrow alone would not do: it publishes what an interrupted upload has sent
    as soon as the stream is collected.
    """
    if uri.startswith("hf://"):
        raise StorageError(f"{uri}: the hub is not written to; name a folder on a disk or in object storage")
    with translated(uri):
        filesystem, path = open_location(uri)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        local = isinstance(filesystem, fs.LocalFileSystem)
        if local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            # A disk's stream is Python's own, for its fsync: a rename may reach the disk before what was written.
            with open(temporary, "wb") if local else filesystem.open_output_stream(temporary) as stream:
                yield stream
                if local:
                    stream.flush()
                    os.fsync(stream.fileno())
            filesystem.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                filesystem.delete_file(temporary)
            raise


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole or not at all."""
    with open_output(uri) as stream:
        stream.write(data)


def list_dir(uri: str) -> list[str]:
    """URIs of the files directly in a folder, sorted."""
    with translated(uri):
        filesystem, path = open_location(uri)
        found = filesystem.get_file_info(fs.FileSelector(path))
        return sorted(join(uri, info.base_name) for info in found if info.type == fs.FileType.File)
    raise AssertionError("unreachable")


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; none where there is no such folder."""
    with translated(uri):
        filesystem, path = open_location(uri)
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)
    raise AssertionError("unreachable")


def delete_file(uri: str) -> None:
    """Delete an object."""
    with translated(uri):
        filesystem, path = open_location(uri)
        filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and what is in it."""
    with translated(uri):
        filesystem, path = open_location(uri)
        filesystem.delete_dir(path)


def expand(patterns: str | list[str]) -> list[str]:
    """Expand braces ({00000..00099}, {a,b}) and then globs (*, ?, [...]) of the file name.

    Returns
    -------
    URIs, in the order of the patterns, sorted within a glob, each once

    Raises
    ------
    NothingMatches : a glob matches nothing. A name without a glob is not looked up
    """
    return _expand(patterns, _expand_glob, "object")


def expand_folders(patterns: list[str]) -> list[str]:
    """Expand braces and globs (*, ?, [...]) of folders' names.

    Returns
    -------
    URIs, in the order of the patterns, sorted within a glob, each once

    Raises
    ------
    NothingMatches : a glob matches no folder. A name without a glob is not looked up
    """
    return _expand([pattern.rstrip("/") for pattern in patterns], _folders, "folder")


def _expand(patterns: str | list[str], matching: Callable[[str], list[str]], what: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for uri in _expand_braces(pattern):
            matches = matching(uri) if re.search(r"[*?\[]", uri) else [uri]
            if not matches:
                raise NothingMatches(f"{pattern}: matches no {what}; look at the spelling and at what the folder holds")
            found.update(dict.fromkeys(matches))
    return list(found)


def _folders(uri: str) -> list[str]:
    if not re.search(r"[*?\[]", uri):
        return [uri]
    parent, _, name = uri.rpartition("/")
    found = []
    for folder in _folders(parent) if parent else [""]:
        names = list_folders(folder or ("/" if uri.startswith("/") else "."))
        found += [join(folder, one) if folder else one for one in names if fnmatch.fnmatchcase(one, name)]
    return found


def s3_client() -> Any:
    """A boto3 client, for what pyarrow cannot tell: ETags, and which thing is missing."""
    import boto3

    return boto3.client("s3", **_s3_location())


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn errors of the disk or the object store into this module's, in one line that names the URI."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise _missing(uri) from None
    except PermissionError as error:
        raise AccessDenied(f"{uri}: permission denied ({error.strerror or 'by the file system'})") from None
    except OSError as error:
        raise _diagnose(uri, error) from None
    except Exception as error:
        # The hub's client raises its own errors and those of its HTTP library.
        if not uri.startswith("hf://"):
            raise
        raise _diagnose(uri, error) from None


def _missing(uri: str) -> StorageError:
    scheme, path = split(uri)
    bucket = path.split("/", 1)[0]
    if scheme == "s3" and not _bucket_exists(bucket):
        return MissingBucket(
            f"{uri}: there is no bucket {bucket!r} here; create it, or check the name and AWS_ENDPOINT_URL"
        )
    return MissingObject(f"{uri}: no such object; check the name")


def _bucket_exists(bucket: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3_client().head_bucket(Bucket=bucket)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] != 404
    except BotoCoreError:
        return True  # Unknown; the object is what was asked for.
    return True


def _diagnose(uri: str, error: Exception) -> StorageError:
    text = " ".join(str(error).split()) or type(error).__name__
    if uri.startswith("hf://"):
        return StorageError(f"{uri}: cannot be had from the Hugging Face hub ({text}); check the network and HF_TOKEN")
    if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist", text):
        bucket = split(uri)[1].split("/", 1)[0]
        return MissingBucket(
            f"{uri}: there is no bucket {bucket!r} here; create it, or check the name and AWS_ENDPOINT_URL"
        )
    if re.search(_DENIED, text.replace("_", ""), re.IGNORECASE):
        return AccessDenied(f"{uri}: access denied; check the credentials of the AWS chain and the bucket's policy")
    if isinstance(error, OSError) and error.errno == 28:
        return StorageError(f"{uri}: no space left on the disk")
    return StorageError(f"{uri}: {_without_secrets(text)}")


# As S3 words them, and as pyarrow does (ACCESS_DENIED ...).
_DENIED = (
    "AccessDenied|HTTP response code 403|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|"
    "InvalidClientTokenId|InvalidSignature"
)


def _without_secrets(text: str) -> str:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        value = os.environ.get(name)
        if value:
            text = text.replace(value, "***")
    return text


def _environment_key() -> tuple[str | None, ...]:
    """What a filesystem depends on, so that one is made anew when the environment changes."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION",
             "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")  # fmt: skip
    return tuple(os.environ.get(name) for name in names)


@functools.lru_cache(maxsize=16)
def _filesystem(scheme: str, environment: tuple[str | None, ...]) -> fs.FileSystem:
    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem()
    if scheme == "hf":
        import huggingface_hub

        return fs.PyFileSystem(fs.FSSpecHandler(huggingface_hub.HfFileSystem()))
    location = _s3_location()
    options: dict[str, Any] = {"retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=5)}
    if "region_name" in location:
        options["region"] = location["region_name"]
    if "endpoint_url" in location:
        endpoint = urlsplit(location["endpoint_url"])
        options.update(endpoint_override=endpoint.netloc, scheme=endpoint.scheme)
    if os.environ.get("AWS_PROFILE"):
        # A profile may need the AWS command line's own steps (single sign-on, a role); boto3 knows them all.
        import boto3

        credentials = boto3.Session().get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            options.update(access_key=frozen.access_key, secret_key=frozen.secret_key, session_token=frozen.token)
    return fs.S3FileSystem(**options)


def _s3_location() -> dict[str, str]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    found = {"endpoint_url": endpoint} if endpoint else {}
    if region or endpoint:
        # An S3 server of one's own has no regions, but its clients must name one.
        found["region_name"] = region or "us-east-1"
    return found


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    body = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = numbers.groups()
        if int(last) < int(first):
            raise NothingMatches(f"{pattern}: the range {{{body}}} runs backwards")
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        choices = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return list(itertools.chain.from_iterable(_expand_braces(head + choice + tail) for choice in choices))


def _expand_glob(uri: str) -> list[str]:
    scheme, path = split(uri)
    if scheme == "file":
        return sorted(glob.glob(path, recursive=True))
    folder = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
    pattern = re.compile(_glob_to_regex(path))
    with translated(f"{scheme}://{folder}"):
        filesystem, _ = open_location(uri)
        listed = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
        return sorted(
            f"{scheme}://{i.path}" for i in listed if i.type == fs.FileType.File and pattern.fullmatch(i.path)
        )
    raise AssertionError("unreachable")


def _glob_to_regex(pattern: str) -> str:
    """`*` and `?` do not cross a slash, `**` does."""
    tokens = re.split(r"(\*\*/?|\*|\?|\[[^\]]*\])", pattern)
    regex = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(regex.get(t) or (t if t.startswith("[") and t.endswith("]") else re.escape(t)) for t in tokens)
