"""No name look-up and no connection but to this machine: what `alpasift --offline` and ALPASIFT_OFFLINE=1 mean.

Knows sockets, proxies and the switches of other packages; nothing of graders. Imports nothing of ours, so that a child
process can load this file by its path before anything else. What is held, and by what:

    this process            an audit hook (PEP 578), which nobody can take out again; and since CPython looks up the
                            name in connect(("example.org", 80)) before it calls the hook, a check before those methods
    its Python children     the same hook: `site/sitecustomize.py` stands first on their PYTHONPATH
    anything by a proxy     the variables that name proxies are taken away: one on this machine would lead out
    packages that phone     their own switches, so that they do not even try

What is not held: sockets opened in C, C++ or Rust and not through Python's (gRPC, uvloop, hf_xet), programs that are
not Python, and Python started with -I, -E or -S or an environment of its own. For a proof that covers all of these give
the process a network of its own that has no way out: `unshare -rn`, or `ip netns`. docs/airgap.md says more.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

VARIABLE = "ALPASIFT_OFFLINE"
SITE = Path(__file__).resolve().parent / "site"
"""The folder whose sitecustomize holds a Python child."""

SWITCHES = {
    "HF_HUB_OFFLINE": "1",  # huggingface_hub: files of its cache only; transformers and vLLM ask it too
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # else vLLM learns its address by a socket towards 8.8.8.8
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "offline",  # the trainers of transformers and trl report to it where it is installed
}
"""Switches of the packages that ours can bring, read in their sources."""

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "ws_proxy", "wss_proxy", "socks_proxy")
_ON = {"1", "true", "t", "yes", "y", "on"}
_PLUMBING = {
    "aiohttp",
    "anyio",
    "asyncio",
    "concurrent",
    "contextlib",
    "encodings",
    "h11",
    "http",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "requests",
    "socket",
    "socketserver",
    "ssl",
    "threading",
    "urllib",
    "urllib3",
}
_held = False
_sends = True


class Outside(OSError):
    """--offline: something wanted to look up a name, or to connect to another machine. Nothing was sent."""

    def __str__(self) -> str:
        return str(self.strerror)


def is_offline() -> bool:
    """Whether this process and its children are to stay on this machine."""
    return os.environ.get(VARIABLE, "").strip().lower() in _ON


def go_offline(*, sends: bool = True) -> None:
    """Keep this process, and the Python processes it starts, on this machine. There is no way back.

    To be called before packages that read their switches when imported. `sends` is False for a command that only plans,
    or carries files: it may name a grader outside, which it never reaches.
    """
    global _held, _sends
    _sends = sends
    os.environ[VARIABLE] = "1"
    os.environ.update(SWITCHES)
    for name in PROXIES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"  # also for the proxies of macOS's settings
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(SITE)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), *others])
    if not _held:
        _held = True
        sys.addaudithook(_watch)
        _guard_names()


def why_not_reach(host: str) -> str | None:
    """Why a server at that host cannot be asked by this process, None when it can."""
    return None if not is_offline() or is_here(host) else f"--offline: {host} is another machine"


def check_server(host: str) -> str | None:
    """`why_not_reach` and what to do instead; None also for a process that only plans or carries files."""
    refused = why_not_reach(host) if _sends else None
    if refused is None:
        return None
    return (
        f"{refused}. Take a grader on this one (`alpasift doctor --offline` names what each needs), or transfer the "
        "batches as files: alpasift batch export"
    )


def is_here(host: object) -> bool:
    """Whether a host, by name or address, is this machine, without asking anybody. An odd spelling is not."""
    if host is None or host in ("", b""):
        return True  # no host: any address of this machine
    if isinstance(host, bytes | bytearray):
        host = bytes(host).decode("ascii", "replace")
    if not isinstance(host, str):
        return False
    name = host.strip("[]").lower()
    if name in ("localhost", "localhost."):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    return address.is_loopback or address.is_unspecified


# -- the hook -------------------------------------------------------------------------------------------------------


def _connects(what: str, args: tuple[Any, ...]) -> None:
    sock, address = args[0], args[-1]
    family = getattr(sock, "family", None)
    if address is None or family in _LOCAL:
        return  # a socket that is connected already was looked at then
    host = address[0] if isinstance(address, tuple) and address else address
    if family not in (socket.AF_INET, socket.AF_INET6) or not is_here(host):
        port = f" port {address[1]}" if isinstance(address, tuple) and len(address) > 1 else ""
        raise _outside(what, f"{_shown(host)}{port}")


def _looks_up(what: str, args: tuple[Any, ...]) -> None:
    host = args[0][0] if isinstance(args[0], tuple) and args[0] else args[0]
    if not is_here(host):
        raise _outside(what, _shown(host))


_LOCAL = {getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK") if hasattr(socket, name)}
_CHECKS: dict[str, tuple[Callable[[str, tuple[Any, ...]], None], str]] = {
    "socket.connect": (_connects, "connect to"),
    "socket.sendto": (_connects, "send to"),
    "socket.sendmsg": (_connects, "send to"),
    "socket.getaddrinfo": (_looks_up, "look up"),
    "socket.gethostbyname": (_looks_up, "look up"),
    "socket.gethostbyaddr": (_looks_up, "look up"),
    "socket.getnameinfo": (_looks_up, "look up"),
}


def _watch(event: str, args: tuple[Any, ...]) -> None:
    found = _CHECKS.get(event)  # every event of the interpreter passes here: this must stay short
    if found is not None:
        found[0](found[1], args)


def _guard_names() -> None:
    for name, what, arguments in (
        ("connect", "connect to", 1),
        ("connect_ex", "connect to", 1),
        ("sendto", "send to", 2),
        ("sendmsg", "send to", 4),
    ):
        if hasattr(socket.socket, name):
            setattr(socket.socket, name, _guarded(getattr(socket.socket, name), what, arguments))
    socket.socket.bind = _guarded_bind(socket.socket.bind)  # type: ignore[method-assign]


def _guarded(method: Callable[..., Any], what: str, arguments: int) -> Callable[..., Any]:
    """The method, with a look at its address first: the last argument, where there are that many."""

    @wraps(method)
    def guarded(self: socket.socket, *args: Any) -> Any:
        if len(args) >= arguments and isinstance(args[-1], tuple):
            _connects(what, (self, args[-1]))
        return method(self, *args)

    return guarded


def _guarded_bind(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and address:
            try:
                ipaddress.ip_address(address[0])  # to listen on an address of one's own asks nobody
            except ValueError:
                _looks_up("look up", (address[0],))
        return method(self, address)

    return guarded


def _outside(what: str, where: str) -> Outside:
    return Outside(
        errno.ENETUNREACH,
        f"--offline: {_who()} tried to {what} {where}, which is not this machine; nothing was sent. "
        "`alpasift doctor --offline` lists what is missing here and how to get it",
    )


def _who() -> str:
    """The package that asked, seen past the ones that only carry: huggingface_hub rather than httpx."""
    frame = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in _PLUMBING and frame.f_globals is not globals():
            return name if name != "__main__" else "this program"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "something"


def _shown(host: object) -> str:
    text = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
