"""A proxy in the environment: never on the way to this machine, never with the key in clear, and named before use."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from alpasift.graders import BackendUnavailable, open_backend
from alpasift.graders.api.connection import connect, proxy_of, way_to
from batch_harness import MODEL
from test_openai_chat import GOOD, Plain, plain_run

KEY = "sk-lab-Qw7rTz0pLm93vXcB"
VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class Proxy(socketserver.ThreadingTCPServer):
    """Keeps what it is sent, and refuses."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self) -> None:
        self.received = b""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.received += self.request.recv(65536)
                self.request.sendall(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy() as running:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in VARIABLES:
            monkeypatch.setenv(name, f"http://user:pass@{running.address}")
        yield running
        running.shutdown()


def test_what_goes_to_this_machine_goes_by_no_proxy(proxy: Proxy, tmp_path: Path) -> None:
    with Plain((404, b"{}"), [(200, {}, GOOD)]) as plain:
        _, run = plain_run(tmp_path, plain, 2)
        assert run.backend.leaves_machine == "nothing"
        with run:
            assert run.go().replied == 2
        for name in ("localhost", "127.0.0.1"):
            assert proxy_of(plain.url.replace("127.0.0.1", name)) is None
        plain.server_close()
    assert proxy.received == b""


def test_a_proxy_that_cannot_be_used_does_not_matter_on_the_way_to_this_machine(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with Plain((404, b"{}"), [(200, {}, GOOD)]) as plain:
        _, run = plain_run(tmp_path, plain, 1)
        with run:
            assert run.go().replied == 1
        plain.server_close()


def test_another_machine_is_reached_through_a_tunnel_that_never_sees_the_key(proxy: Proxy) -> None:
    client = connect("https://api.openai.com/v1", timeout=5.0)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    assert proxy.received.startswith(b"CONNECT api.openai.com:443")
    assert KEY.encode() not in proxy.received


def test_the_offer_names_the_proxy_without_its_password(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("openai_chat", "openai_batch"):
        shown = open_backend(f"{kind}:{MODEL}", {}).leaves_machine
        assert shown == f"rows and rubric, to api.openai.com, through the proxy {proxy.address}"
    monkeypatch.setenv("NO_PROXY", "api.openai.com")
    monkeypatch.setenv("no_proxy", "api.openai.com")
    assert way_to("https://api.openai.com/v1", "api.openai.com") == "rows and rubric, to api.openai.com"


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_named_with_what_to_change(
    proxy: Proxy, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, address)
    with pytest.raises(BackendUnavailable, match=r"proxy .* cannot be used .*HTTPS_PROXY.* NO_PROXY"):
        connect("https://api.openai.com/v1", timeout=5.0)
