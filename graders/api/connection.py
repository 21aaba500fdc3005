"""The way to a server: its address, whether it is this machine, and a client that never repeats a request.

Three rules hold everywhere: no POST is ever repeated by the client (its two default retries have no idempotency key,
and each could be paid for); a key goes over https or to this machine only; and what goes to this machine never goes by
a proxy, which would read it. Through the proxy of the environment https passes as a tunnel, and the offer names it.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from alpasift.graders import BackendError, BackendUnavailable
from alpasift.graders.api.keys import NO_KEY, api_key, clean
from alpasift.graders.offline.guard import check_server, why_not_reach

if TYPE_CHECKING:
    import openai

DEFAULT_BASE_URL = "https://api.openai.com/v1"


def is_openai(host: str) -> bool:
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def proxy_of(base_url: str) -> str | None:
    """The proxy of the environment (HTTPS_PROXY, ALL_PROXY, NO_PROXY) by which a server is reached, None for none.

    A server on this machine is reached by none.
    """
    host = host_of(base_url)
    found = getproxies()
    proxy = found.get(urlsplit(base_url).scheme) or found.get("all")
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def way_to(base_url: str, host: str) -> str:
    """What leaves this machine for a server, and the way it takes, for the person who is to agree to it."""
    if is_loopback(host_of(base_url)):
        return "nothing"
    proxy = proxy_of(base_url)
    return f"rows and rubric, to {host}" + (f", through the proxy {_shown(proxy)}" if proxy else "")


def _shown(proxy: str) -> str:
    """A proxy's address without the user and password that it may hold."""
    return proxy.partition("://")[2].rpartition("@")[2].partition("/")[0]


def host_of(base_url: str) -> str:
    return urlsplit(base_url).hostname or ""


def base_url_of(given: str | None) -> str:
    """The server's address: as given, else OPENAI_BASE_URL, else OpenAI's. Raises BackendError for one that is unsafe.

    Raises BackendUnavailable for another machine's under --offline, where this process means to send.
    """
    url = (given or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    write = "write https://HOST/v1 (--base-url, OPENAI_BASE_URL)"
    if not url.isprintable() or " " in url:
        raise BackendError(f"the server's address contains whitespace or control characters; {write}")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError as error:  # a port that is none, half a pair of brackets
        raise BackendError(f"the server's address cannot be read: {str(error)[:80]}; {write}") from error
    if parts.username or parts.password:
        raise BackendError("the server's address contains a user or a password; keys are read from OPENAI_API_KEY only")
    if "?" in url or "#" in url:  # it would be stored with every attempt
        raise BackendError(f"the server's address contains ? or #; keys are read from OPENAI_API_KEY only, {write}")
    if parts.scheme not in ("http", "https") or not host:
        raise BackendError(f"{url!r} is not the address of a server; {write}")
    if parts.scheme == "http" and not is_loopback(host):
        raise BackendError(
            f"{url} is not encrypted and is not on this machine: the key and the rows would be sent in clear "
            "text. Use https"
        )
    refused = check_server(host)
    if refused:
        raise BackendUnavailable(refused)
    return url


def missing_requirements() -> str | None:
    """What is missing here to ask OpenAI, None when nothing is."""
    refused = why_not_reach(host_of(os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL))
    if refused:
        return refused
    try:
        return None if api_key() else NO_KEY
    except BackendUnavailable as error:
        return str(error)


def missing_for(base_url: str) -> str | None:
    """What is missing to ask the server at an address, None when nothing is. One on this machine may want no key."""
    host = host_of(base_url)
    refused = why_not_reach(host)
    if refused or is_loopback(host):
        return refused
    try:
        return None if api_key() else NO_KEY
    except BackendUnavailable as error:
        return str(error)


def connect(base_url: str, *, timeout: float, on_date: Callable[[str], None] | None = None) -> openai.OpenAI:
    """A client that never repeats a request and follows no redirection.

    Raises BackendUnavailable without a key, and for a server on another machine under --offline.
    `on_date` gets the Date header of every answer: the server's clock. Idle connections are given up after three
    seconds, before the usual server gives them up: a request sent into a connection that closes is an unclear one.
    """
    refused = why_not_reach(host_of(base_url))
    if refused:
        raise BackendUnavailable(refused)
    key = api_key()
    if key is None:
        if not is_loopback(host_of(base_url)):
            raise BackendUnavailable(NO_KEY)
        key = "none"  # a server of one's own may want none
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BackendUnavailable("the key contains invalid characters; check OPENAI_API_KEY")
    import httpx2
    import openai

    def saw(response: Any) -> None:
        if on_date is not None and "date" in response.headers:
            on_date(response.headers["date"])

    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=512, keepalive_expiry=3.0)
    proxy = proxy_of(base_url)
    try:  # the environment is looked at here and not by the client, so that what was shown is what is done
        http = openai.DefaultHttpxClient(
            follow_redirects=False,
            event_hooks={"response": [saw]},
            limits=limits,
            trust_env=False,
            proxy=proxy,
            verify=_certificates(),
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise BackendUnavailable(
            f"the proxy {_shown(proxy or '')} of this environment cannot be used ({clean(str(error))}); check "
            f"HTTPS_PROXY and ALL_PROXY, or add {host_of(base_url)} to NO_PROXY"
        ) from error
    patience = httpx2.Timeout(timeout, connect=min(timeout, 10.0))
    return openai.OpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=patience, http_client=http)


def _certificates() -> ssl.SSLContext:
    """The certificates to trust: those that SSL_CERT_FILE or SSL_CERT_DIR name, as a firm's proxy needs, else usual."""
    file, folder = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    if file is None and folder is None:
        return _usual_certificates()
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise BackendUnavailable(
            f"the certificates at {file or folder} cannot be read ({error.strerror or error}); check SSL_CERT_FILE"
        ) from error


@cache
def _usual_certificates() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)
