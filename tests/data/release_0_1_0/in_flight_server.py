"""The batches that were in flight when the database of release 0.1.0 was kept, answered again.

Two ways, with the same answers; `state` is in_flight.json as a dict:

    with serve(state) as url: ...        # a server of its own, of what was kept; standard library only
    with Rehearsal() as server:          # graders.rehearsal: batches run again, can be cancelled and misbehave
        into_rehearsal(server, state)

The key is state["key"]. A look at a batch finds it completed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serve(state: Mapping[str, Any]) -> Iterator[str]:
    """The base URL of a server that knows the batches, each completed, and their files."""
    batches = {one["completed"]["id"]: one["completed"] for one in state["batches"]}
    files = {name: (one["object"], one["content"].encode()) for name, one in state["files"].items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].removeprefix("/v1/").split("/")
            match parts:
                case ["batches"]:
                    self.send(self.page(list(batches.values())))
                case ["batches", name] if name in batches:
                    self.send(batches[name])
                case ["files"]:
                    self.send(self.page([view for view, _ in files.values()]))
                case ["files", name] if name in files:
                    self.send(files[name][0])
                case ["files", name, "content"] if name in files:
                    self.send(files[name][1])
                case _:
                    self.send({"error": {"message": f"No such thing: {self.path}", "code": None}}, 404)

        def do_DELETE(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            self.send({"id": name, "object": "file", "deleted": True}, 200 if files.pop(name, None) else 404)

        def page(self, rows: list[Any]) -> dict[str, Any]:
            ids = [row["id"] for row in rows] or [None]
            return {"object": "list", "data": rows, "first_id": ids[0], "last_id": ids[-1], "has_more": False}

        def send(self, answer: Any, status: int = 200) -> None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/octet-stream" if data is answer else "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def into_rehearsal(server: Any, state: Mapping[str, Any], *, seconds: float = 0.0) -> None:
    """Make a `graders.rehearsal.Rehearsal` know the batches, as though it had created them; they take `seconds`.

    The server must have been made with marker=state["marker"], so that its answers are those that were kept.
    """
    from graders import rehearsal

    now = server.now()
    for one in state["batches"]:
        made = one["submitted"]
        kept = state["files"][made["input_file_id"]]
        view = kept["object"]
        path = server.folder / f"{view['id']}.jsonl"
        path.write_bytes(kept["content"].encode())
        server._files[view["id"]] = rehearsal._File(
            view["id"], view["filename"], "batch", view["bytes"], int(now), int(now) + 86_400, path
        )
        batch = rehearsal._Batch(
            made["id"], len(server._batches), view["id"], path, made["metadata"], now, seconds, rehearsal.FILE_DAYS
        )
        server._batches[batch.id] = batch
        server._live.append(batch)
