"""`python -m alpasift.graders.rehearsal` starts the server, and prints where it listens as a line of JSON."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from alpasift.graders.rehearsal.server import Rehearsal


def _fault(text: str) -> tuple[int | str, int | None, dict[str, Any]]:
    """A fault as the command line names it: 3, 10:times=2,limit=5000 or create_answer_lost or html:times=all."""
    name, _, rest = text.partition(":")
    detail: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        detail[key.strip()] = _plain(value.strip())
    times = detail.pop("times", 1)
    return int(name) if name.isdigit() else name, None if times == "all" else int(times), detail


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpasift.graders.rehearsal",
        description="The OpenAI API on this machine, for rehearsals. Ends with SIGTERM, or when its stdin closes.",
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="rehearsal", help="what clients have to send")
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="how long a batch takes")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that every answer takes")
    parser.add_argument("--enqueued-limit", type=int, help="prompt tokens in batches at once")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="FAULT[:KEY=VALUE,...]",
        help="a number or a name of the table in `faults`: 10:times=2,limit=5000",
    )
    parser.add_argument("--marker", help="a pattern with one group, which is the score")
    parser.add_argument("--prices", type=Path, help="JSON: model -> dollars per million tokens")
    parser.add_argument("--model", action="append", help="a model to know besides the built-in ones")
    parser.add_argument("--bill", type=Path, help="where to write the bill; a new file")
    parser.add_argument("--folder", type=Path, help="where to keep files; a temporary folder when not given")
    parser.add_argument("--detach", action="store_true", help="keep running when stdin closes")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM, or until stdin closes; prints one line of JSON: where it listens."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        server = Rehearsal(
            port=options.port,
            key=options.key,
            folder=options.folder,
            prices=orjson.loads(options.prices.read_bytes()) if options.prices else None,
            batch_seconds=options.batch_seconds,
            latency_seconds=options.latency,
            enqueued_limit=options.enqueued_limit,
            marker=options.marker,
            models=options.model,
            bill_path=options.bill,
        )
        for text in options.fault:
            fault, times, detail = _fault(text)
            server.misbehave(fault, times, **detail)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if not options.detach:

        def watch() -> None:
            with contextlib.suppress(OSError, ValueError):  # not by sys.stdin, whose lock would outlast the end
                while os.read(sys.stdin.fileno(), 65_536):
                    pass
            ended.set()

        threading.Thread(target=watch, daemon=True).start()
    with server:
        where = {"url": server.url, "pid": os.getpid(), "bill": str(server.bill_path)}
        sys.stdout.write(orjson.dumps(where).decode() + "\n")
        sys.stdout.flush()
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
