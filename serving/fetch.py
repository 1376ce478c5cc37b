"""A picture that is named by where it lies: public https hosts and permitted folders of object storage, nothing else.

A server that fetches what strangers name must not become their way into its own network. So every host's addresses are
looked up once, all of them are checked, and the connection goes to just those; of a redirect likewise.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from orchestrator import storage
from serving.errors import RequestError
from serving.pictures import too_large
from serving.settings import Fetching, Limits

MAX_URI_CHARACTERS = 8192

# Some hosts refuse a client that does not say its name; bytes are wanted as they are, not compressed once more.
HEADERS = {"User-Agent": "clip-on-ray", "Accept": "image/*", "Accept-Encoding": "identity"}

# Name servers and storage may hang; then they hold up other fetches, but no other work that the process has in threads.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="fetch")

# 6to4 and NAT64 carry an IPv4 address inside. The last two are where clouds put services for their machines alone.
_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_OF_CLOUDS = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))


async def _look_up(host: str) -> list[str]:
    arguments = (host, 443, socket.AF_UNSPEC, socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_THREADS, socket.getaddrinfo, *arguments)
    return [str(place[0]) for *_, place in found]


@dataclass(frozen=True)
class Network:
    """How hosts are found and reached; a test puts its own server here.

    Parameters
    ----------
    look_up : a host's name -> its addresses; OSError: there is no such host
    route : an address that was checked -> the address and port to connect to
    tls : None: certificates are verified against the system's authorities
    """

    look_up: Callable[[str], Awaitable[list[str]]] = _look_up
    route: Callable[[str], tuple[str, int]] = lambda address: (address, 443)
    tls: ssl.SSLContext | None = None


async def fetch(
    uri: str,
    field: str,
    fetching: Fetching,
    limits: Limits,
    network: Network = Network(),
) -> bytes:
    """The bytes that lie at a URI.

    Parameters
    ----------
    uri : https://, s3:// or gs://
    field : of the request that it came in, for the refusal
    fetching : what is permitted, and for how long (seconds, over all)
    limits : image_bytes, at most so many are read
    network : how hosts are found and reached

    Raises
    ------
    RequestError : 403 not permitted, or no public address; 413 too large; 422 what is named is not there, or is no URI
        of those kinds; 504 too slow
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if scheme not in ("https", "s3", "gs") or len(uri) > MAX_URI_CHARACTERS:
        kinds = f"an https://, s3:// or gs:// URI of at most {MAX_URI_CHARACTERS} characters"
        raise RequestError(422, field, f"only {kinds} is fetched; send the picture itself, in base64")
    try:
        async with asyncio.timeout(fetching.seconds):
            if scheme == "https":
                return await _over_https(uri, field, fetching, limits, network)
            return await _from_storage(f"{scheme}://{rest}", field, fetching, limits)
    except TimeoutError:
        raise RequestError(504, field, f"the picture could not be fetched in {fetching.seconds:g} s") from None


async def _over_https(uri: str, field: str, fetching: Fetching, limits: Limits, network: Network) -> bytes:
    if not fetching.https:
        raise RequestError(403, field, "URLs are not fetched here: fetching.https is off; send the picture in base64")
    url = _checked_url(URL(), uri, field)
    for _ in range(fetching.redirects + 1):
        answer = await _get(url, field, limits, network)
        if isinstance(answer, bytes):
            return answer
        url = _checked_url(url, answer, field)
    raise RequestError(422, field, f"the URL redirects more than {fetching.redirects} times")


def _checked_url(base: URL, text: str, field: str) -> URL:
    try:
        url = base.join(URL(text))
        plain = url.user is None and url.password is None and url.port == 443
        if url.scheme == "https" and url.raw_host and plain:
            return url
    except ValueError:
        pass
    what = "the URL redirects to another that" if base else "the URL"
    raise RequestError(422, field, f"{what} is not https://<host>/<path>, of port 443, without a user or password")


async def _get(url: URL, field: str, limits: Limits, network: Network) -> bytes | str:
    """The body, or where else to look."""
    pinned = _Pinned([network.route(address) for address in await _public_addresses(url, field, network)])
    connector = aiohttp.TCPConnector(resolver=pinned, use_dns_cache=False, ssl=network.tls or True)
    # The time is kept by the caller. Neither proxies nor passwords are taken from the environment.
    session = aiohttp.ClientSession(
        connector=connector, trust_env=False, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None), headers=HEADERS,
    )  # fmt: skip
    try:
        async with session, session.get(url, allow_redirects=False) as response:
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                return location
            if response.status != 200:
                raise RequestError(422, field, f"{url.host} answered with status {response.status}")
            if (response.content_length or 0) > limits.image_bytes:
                raise too_large(field, limits)
            pieces, size = [], 0
            async for piece in response.content.iter_any():
                size += len(piece)
                if size > limits.image_bytes:
                    raise too_large(field, limits)
                pieces.append(piece)
            return b"".join(pieces)
    except aiohttp.ClientConnectorCertificateError:
        raise RequestError(422, field, f"the certificate of {url.host} could not be verified") from None
    except (aiohttp.ClientError, OSError, ValueError):
        raise RequestError(422, field, f"{url.host} could not be reached, or broke off its answer") from None


async def _public_addresses(url: URL, field: str, network: Network) -> list[str]:
    try:
        addresses = await network.look_up(url.raw_host or "")
    except (OSError, ValueError):
        addresses = []
    if not addresses:
        raise RequestError(422, field, f"there is no host {url.host}; check the name")
    if not all(is_public(address) for address in addresses):
        raise RequestError(403, field, f"{url.host} is not at a public address; only public hosts are asked")
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the internet, and to nothing nearer."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is None:
            return ip.is_global and ip in _IPV6_UNICAST and ip.sixtofour is None
        ip = inner
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in _OF_CLOUDS))


class _Pinned(AbstractResolver):
    """Answers with the places that were checked, whatever name servers would say now."""

    def __init__(self, places: list[tuple[str, int]]):
        self._places = places

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            {"hostname": host, "host": address, "port": number, "proto": 0, "flags": socket.AI_NUMERICHOST,
             "family": socket.AF_INET6 if ":" in address else socket.AF_INET}
            for address, number in self._places
        ]  # fmt: skip

    async def close(self) -> None:
        pass


async def _from_storage(uri: str, field: str, fetching: Fetching, limits: Limits) -> bytes:
    # The slash keeps s3://bucket/pub from admitting s3://bucket/public-not.
    if not any(uri.startswith(prefix.rstrip("/") + "/") for prefix in fetching.prefixes):
        cure = "the operator names permitted folders in fetching.prefixes"
        raise RequestError(403, field, f"nothing is fetched from there; {cure}")
    if not {"", ".", ".."}.isdisjoint(uri.split("/")[2:]):
        raise RequestError(422, field, "the URI's path may not hold empty parts, '.' or '..'")

    def read() -> bytes:
        with storage.open_input(uri) as stream:
            return stream.read(limits.image_bytes + 1)

    try:
        data = await asyncio.get_running_loop().run_in_executor(_THREADS, read)
    except (storage.MissingObject, storage.MissingBucket):
        raise RequestError(422, field, "there is no such object; check the URI") from None
    except storage.AccessDenied:
        raise RequestError(422, field, "the server may not read this object; ask the operator") from None
    except (OSError, ValueError):
        raise RequestError(422, field, "the object could not be read") from None
    if len(data) > limits.image_bytes:
        raise too_large(field, limits)
    return data
