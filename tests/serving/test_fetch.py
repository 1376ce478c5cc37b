"""Fetching over real TLS from a local server, and every way in which a stranger's URL could reach what it must not."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trustme

from orchestrator import storage
from serving import fetch as fetch_module
from serving.errors import RequestError
from serving.fetch import Network, fetch, is_public
from serving.settings import Fetching, Limits

PUBLIC = "93.184.215.14"
HOST = "pictures.example"
BODY = bytes(range(256)) * 40
OPEN = Fetching(https=True, seconds=10)


class Server:
    """An https server on this machine, and the names that lead to it as if it were a public host.

    Parameters
    ----------
    answers : path -> the raw answer, or a coroutine function that writes it
    names : host -> its addresses, for each look-up in turn; the last one stays
    """

    def __init__(self, answers: dict[str, Any], names: dict[str, list[list[str]]] | None = None, trusted: bool = True):
        self.answers = answers
        self.names = {HOST: [[PUBLIC]], **(names or {})}
        self.requests: list[str] = []
        self.connected: list[str] = []
        self.server_names: list[str] = []
        self.lookups: list[str] = []
        self.sent = 0
        authority = trustme.CA()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(HOST, "other.example").configure_cert(self.context)
        self.context.sni_callback = lambda _, name, __: self.server_names.append(name)
        client = ssl.create_default_context()
        if trusted:
            authority.configure_trust(client)
        self.network = Network(self.look_up, self.route, client)

    async def look_up(self, host: str) -> list[str]:
        self.lookups.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        turns = self.names[host]
        return turns.pop(0) if len(turns) > 1 else turns[0]

    def route(self, address: str) -> tuple[str, int]:
        self.connected.append(address)
        return "127.0.0.1", self.port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(request)
            answer = self.answers[request.split(" ")[1]]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(self, writer)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass

    def fetch(self, uri: str, fetching: Fetching = OPEN, limits: Limits | None = None) -> bytes:
        async def run() -> bytes:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
            self.port = server.sockets[0].getsockname()[1]
            try:
                return await fetch(uri, "uri[2]", fetching, limits or Limits(), self.network)
            finally:
                server.close()

        return asyncio.run(run())

    def refusal(self, uri: str, fetching: Fetching = OPEN, limits: Limits | None = None) -> RequestError:
        with pytest.raises(RequestError) as raised:
            self.fetch(uri, fetching, limits)
        assert raised.value.field == "uri[2]"
        return raised.value


def ok(body: bytes = BODY, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def moved(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def test_a_picture_of_a_public_host(monkeypatch):
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    server = Server({"/a/cat.png?size=2": ok()})
    assert server.fetch(f"HTTPS://{HOST}/a/cat.png?size=2#part") == BODY
    assert (server.lookups, server.connected, server.server_names) == ([HOST], [PUBLIC], [HOST])
    (request,) = server.requests
    assert f"\r\nHost: {HOST}\r\n" in request and "\r\nAccept-Encoding: identity\r\n" in request
    assert "authorization" not in request.lower() and "cookie" not in request.lower()


def test_the_connection_goes_to_the_address_that_was_checked():
    """The second answer of the name server leads inside; nobody asks for it."""
    server = Server({"/": ok()}, {HOST: [[PUBLIC, "2606:4700::1111"], ["127.0.0.1"]]})
    assert server.fetch(f"https://{HOST}/") == BODY
    assert server.lookups == [HOST]
    assert server.connected == [PUBLIC, "2606:4700::1111"]
    # And where a redirect leads back to the same name, its new address is checked again.
    server = Server({"/": moved("/again"), "/again": ok()}, {HOST: [[PUBLIC], ["127.0.0.1"]]})
    assert server.refusal(f"https://{HOST}/").status == 403
    assert server.lookups == [HOST, HOST] and len(server.requests) == 1


def test_the_system_s_own_resolver_and_literal_addresses(monkeypatch):
    """No fake: what leads to this machine or its network is refused before anything is connected to."""

    def connect(*_):
        raise AssertionError("connected")

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", connect)
    inside = ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1", "0x7f.1", "0177.0.0.1",
              "0", "169.254.169.254", "[fd00:ec2::254]")  # fmt: skip
    # Resolvers differ in whether they know these at all.
    for host in (*inside, "localhost.", "[fe80::1%25lo]"):
        with pytest.raises(RequestError) as raised:
            asyncio.run(fetch(f"https://{host}/", "uri", OPEN, Limits()))
        assert raised.value.status == 403 or host not in inside, host
    with pytest.raises(AssertionError, match="connected"):
        asyncio.run(fetch("https://8.8.8.8/", "uri", OPEN, Limits()))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True),
        ("0.0.0.0", False), ("10.0.0.1", False), ("100.64.0.1", False), ("100.100.100.200", False),
        ("127.0.0.1", False), ("169.254.169.254", False), ("172.16.0.1", False), ("192.0.0.192", False),
        ("192.168.1.1", False), ("198.18.0.1", False), ("203.0.113.1", False), ("224.0.0.1", False),
        ("240.0.0.1", False), ("255.255.255.255", False), ("168.63.129.16", False),
        ("::", False), ("::1", False), ("::127.0.0.1", False), ("::ffff:127.0.0.1", False), ("::ffff:a00:1", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b:1::1", False), ("100::1", False), ("2001:db8::1", False),
        ("2001::1", False), ("2002:7f00:1::1", False), ("fc00::1", False), ("fe80::1", False), ("fe80::1%lo", False),
        ("fec0::1", False), ("ff02::1", False), ("ff0e::1", False), ("", False), ("localhost", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) == public
    if not public:
        # One of them among public ones is enough.
        server = Server({"/": ok()}, {HOST: [[PUBLIC, address]]})
        error = server.refusal(f"https://{HOST}/")
        assert error.status == 403
        assert not server.connected and not server.requests
        assert not address or address not in error.message  # whatever is inside is told to nobody


def test_redirects_are_followed_as_far_as_is_permitted():
    answers = {f"/{n}": moved(f"/{n + 1}", status) for n, status in enumerate((301, 302, 303))}
    answers["/3"] = moved("https://other.example/4?a=b", 307)
    answers["/4?a=b"] = ok()
    server = Server(answers, {"other.example": [["8.8.8.8"]]})
    four = Fetching(https=True, redirects=4)
    assert server.fetch(f"https://{HOST}/0", four) == BODY
    assert server.connected == [PUBLIC] * 4 + ["8.8.8.8"]
    assert server.server_names[-2:] == [HOST, "other.example"]
    server.requests.clear()
    error = server.refusal(f"https://{HOST}/0", Fetching(https=True, redirects=3))
    assert error.status == 422 and "more than 3 times" in error.message
    assert len(server.requests) == 4
    assert server.refusal(f"https://{HOST}/0", Fetching(https=True, redirects=0)).status == 422


@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("http://pictures.example/b", 422),
        ("http://pictures.example:443/b", 422),
        ("wss://pictures.example/b", 422),
        ("//127.0.0.1/b", 403),
        ("https://inside.example/b", 403),
        ("https://localhost:8265/", 422),
        ("https://user@pictures.example/b", 422),
        ("file:///etc/passwd", 422),
        ("s3://bucket/key", 422),
        ("https://", 422),
        ("https://[::1/", 422),
        ("https://unknown.example/b", 422),
        ("/loop", 422),
    ],
)
def test_a_redirect_to_where_it_may_not_go(location, status):
    names = {"inside.example": [["10.0.0.1"]], "127.0.0.1": [["127.0.0.1"]]}
    server = Server({"/": moved(location), "/loop": moved("/loop"), "/b": ok()}, names)
    assert server.refusal(f"https://{HOST}/").status == status
    assert not any(request.startswith("GET /b") for request in server.requests)


@pytest.mark.parametrize(
    "uri",
    [
        "http://pictures.example/", "ftp://pictures.example/", "file:///etc/passwd", "data:image/png;base64,AAAA",
        "gopher://x/", "cat.png", "", "//pictures.example/", "https:/pictures.example", "https://", "https:///x",
        "https://user:password@pictures.example/", "https://user@pictures.example/", "https://:x@pictures.example/",
        "https://pictures.example:80/", "https://pictures.example:8443/", "https://pictures.example:x/",
        "https://pictures.example:99999/", "https://[::1/", "https://a..b/", "https://\ud800/", "https://x\0y/",
        "https://pictures.example\\@127.0.0.1/", "https://127.0.0.1\r\nHost: x/", "https://unknown.example/",
        "https://pictures.example/" + "a" * 9000,
    ],
)  # fmt: skip
def test_a_uri_that_is_not_fetched(uri):
    server = Server({"/": ok()})
    error = server.refusal(uri)
    assert error.status == 422
    assert "password" not in error.message or "without a user or password" in error.message
    assert not server.requests and not server.connected


def test_nothing_is_fetched_unless_it_is_permitted():
    server = Server({"/": ok()})
    error = server.refusal(f"https://{HOST}/", Fetching())
    assert error.status == 403 and "fetching.https" in error.message
    for uri in ("s3://bucket/cat.png", "gs://bucket/cat.png"):
        error = server.refusal(uri)
        assert error.status == 403 and "fetching.prefixes" in error.message
    assert not server.lookups


async def endless(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(bytes(10_000))
        await writer.drain()
        server.sent += 10_000


async def dripping(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def silent(server: Server, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def headless(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: and more\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


def test_an_endless_body_is_left_off():
    server = Server({"/": endless})
    error = server.refusal(f"https://{HOST}/", limits=Limits(image_bytes=200_000))
    assert error.status == 413 and "200000 bytes" in error.message
    assert server.sent < 20_000_000


def test_a_body_that_says_it_is_too_large_is_not_read():
    server = Server({"/": ok(BODY)})
    assert server.fetch(f"https://{HOST}/", limits=Limits(image_bytes=len(BODY))) == BODY
    assert server.refusal(f"https://{HOST}/", limits=Limits(image_bytes=len(BODY) - 1)).status == 413
    server = Server({"/": dripping})  # who waits for its bytes runs out of time
    error = server.refusal(f"https://{HOST}/", Fetching(https=True, seconds=2), Limits(image_bytes=99_999))
    assert error.status == 413


@pytest.mark.parametrize("answer", [silent, dripping])
def test_a_slow_server_is_given_up(answer: Callable[..., Coroutine]):
    error = Server({"/": answer}).refusal(f"https://{HOST}/", Fetching(https=True, seconds=0.5))
    assert error.status == 504 and "0.5 s" in error.message


def test_endless_headers_are_given_up():
    server = Server({"/": headless})
    assert server.refusal(f"https://{HOST}/", Fetching(https=True, seconds=2)).status in (422, 504)


def test_the_time_is_for_all_redirects_together_and_for_the_name_server():
    async def slow(server: Server, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(moved("/"))
        await writer.drain()

    server = Server({"/": slow})
    error = server.refusal(f"https://{HOST}/", Fetching(https=True, seconds=0.9, redirects=50))
    assert error.status == 504

    async def asleep(host: str) -> list[str]:
        await asyncio.sleep(60)
        return [PUBLIC]

    server.network = Network(asleep)
    assert server.refusal(f"https://{HOST}/", Fetching(https=True, seconds=0.1)).status == 504


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "206 Partial", "302 To", "203 Other"])
def test_another_status_is_told_without_the_body(status):
    server = Server({"/": f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + b"SECRET"})
    error = server.refusal(f"https://{HOST}/")
    assert error.status == 422 and status[:3] in error.message
    assert "SECRET" not in error.message and status[4:] not in error.message


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", ok()[:-100], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
               b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000],
    ids=["nothing", "no HTTP", "cut", "chunks", "length", "header"],
)  # fmt: skip
def test_an_answer_that_breaks_off(answer):
    error = Server({"/": answer}).refusal(f"https://{HOST}/")
    assert error.status == 422 and "broke off" in error.message


def test_a_compressed_body_is_not_expanded():
    import gzip

    body = gzip.compress(bytes(10_000_000))
    server = Server({"/": ok(body, "Content-Encoding: gzip")})
    assert server.fetch(f"https://{HOST}/", limits=Limits(image_bytes=100_000)) == body


def test_certificates_are_verified():
    error = Server({"/": ok()}, trusted=False).refusal(f"https://{HOST}/")
    assert error.status == 422 and "certificate" in error.message
    # A trusted certificate, of other names.
    server = Server({"/": ok()}, {"third.example": [[PUBLIC]]})
    error = server.refusal("https://third.example/")
    assert error.status == 422 and "certificate" in error.message
    assert not server.requests


def test_nobody_listens():
    server = Server({})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = closed.getsockname()
    server.network = Network(server.look_up, lambda _: place, server.network.tls)
    assert "could not be reached" in server.refusal(f"https://{HOST}/").message


def from_storage(uri: str, prefixes: list[str], **limits: int) -> bytes:
    return asyncio.run(fetch(uri, "uri", Fetching(prefixes=prefixes), Limits(**limits)))


def test_object_storage_below_a_permitted_folder(s3):
    pub = s3.uri("pub")
    for name in ("pub/cat.png", "pub/deep/er/cat.png", "public-not/cat.png", "secret.png"):
        storage.write_bytes(s3.uri(name), BODY)
    for prefix in (pub, pub + "/"):
        for uri in (f"{pub}/cat.png", f"{pub}/deep/er/cat.png", f"S3{pub[2:]}/cat.png"):
            assert from_storage(uri, ["gs://other", prefix]) == BODY
        for uri in (s3.uri("public-not/cat.png"), s3.uri("secret.png"), pub, s3.uri(), "s3://", "gs://pub/cat.png"):
            with pytest.raises(RequestError, match=r"fetching\.prefixes") as raised:
                from_storage(uri, [prefix])
            assert raised.value.status == 403
        for path in ("../secret.png", "x/../../secret.png", "./cat.png", "/cat.png", "", "deep/", ".."):
            with pytest.raises(RequestError, match="may not hold") as raised:
                from_storage(f"{pub}/{path}", [prefix])
            assert raised.value.status == 422
    assert from_storage(f"{pub}/cat.png", [pub], image_bytes=len(BODY)) == BODY
    with pytest.raises(RequestError) as raised:
        from_storage(f"{pub}/cat.png", [pub], image_bytes=len(BODY) - 1)
    assert raised.value.status == 413


def test_what_object_storage_does_not_give(s3, refusing_s3_server, monkeypatch):
    for uri, prefix in ((s3.uri("pub/no.png"), s3.uri("pub")), ("s3://no-bucket/pub/no.png", "s3://no-bucket/pub"),
                        (s3.uri("pub/\ud800"), s3.uri("pub"))):  # fmt: skip
        with pytest.raises(RequestError, match=r"no such object|could not be read") as raised:
            from_storage(uri, [prefix])
        assert (raised.value.status, raised.value.field) == (422, "uri")
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_s3_server)
    with pytest.raises(RequestError, match="may not read") as raised:
        from_storage("s3://bucket/pub/cat.png", ["s3://bucket/pub"])
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)


def test_slow_object_storage_is_given_up(monkeypatch):
    go_on = threading.Event()

    def hang(uri):
        go_on.wait(60)
        raise storage.MissingObject(uri)

    monkeypatch.setattr(fetch_module.storage, "open_input", hang)
    fetching = Fetching(prefixes=["s3://bucket"], seconds=0.1)
    with pytest.raises(RequestError) as raised:
        asyncio.run(fetch("s3://bucket/cat.png", "uri", fetching, Limits()))
    assert raised.value.status == 504
    go_on.set()
