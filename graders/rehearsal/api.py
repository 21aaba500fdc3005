"""The API: what each request does, and what it is answered.

Knows routes and the order in which faults strike; sockets are another's (`http`). Answers may be asked for from many
threads at once; what changes the server's state holds its lock.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import traceback
from collections.abc import Callable
from typing import Any

import orjson

from alpasift.graders.rehearsal.answers import completion_of
from alpasift.graders.rehearsal.batch import DAY, Batch
from alpasift.graders.rehearsal.batches import FILE_DAYS, Batches
from alpasift.graders.rehearsal.bill import cost_of, hostile
from alpasift.graders.rehearsal.faults import Fault
from alpasift.graders.rehearsal.files import File
from alpasift.graders.rehearsal.messages import (
    MAX_BODY_BYTES,
    Answer,
    Dropped,
    Refused,
    Request,
    byte_range,
    json_answer,
    missing,
    no_file,
    out_of_money,
    page_of,
    server_error,
    wrong_key,
)
from alpasift.graders.rehearsal.models import family_of

MAX_FILE_BYTES = 209_715_200


class Api:
    """The handlers of all routes. `stopped` ends what waits; `errors` takes tracebacks of what went wrong in them."""

    def __init__(
        self,
        batches: Batches,
        *,
        key: str,
        latency_seconds: float,
        lock: threading.RLock,
        stopped: threading.Event,
        errors: list[str],
    ) -> None:
        self.batches, self.files, self.models = batches, batches.files, batches.models
        self.fake, self.bill, self.faults = batches.fake, batches.bill, batches.faults
        self.now, self.ids = batches.now, batches.files.ids
        self.key, self.latency_seconds = key, latency_seconds
        self._lock, self._stopped, self._errors = lock, stopped, errors

    def answer(self, request: Request) -> Answer:
        """The answer to a request, an error included."""
        try:
            self._wait(self.latency_seconds)
            if (fault := self.faults.take_at(Fault.SLOW, request.route)) is not None:
                self._wait(fault["seconds"])
            if self.faults.take_at(Fault.HTML, request.route) is not None:
                return Answer(b"<!doctype html><title>Sign in</title><p>Welcome to this network.", type="text/html")
            self._admit(request)
            if self.faults.take_at(Fault.UNAUTHORIZED, request.route) is not None:
                raise wrong_key()
            if (fault := self.faults.take_at(Fault.RATE_LIMIT, request.route)) is not None:
                raise Refused(
                    429,
                    "Rate limit reached for requests. Please try again later.",
                    "rate_limit_exceeded",
                    None,
                    "requests",
                    {"retry-after": f"{fault['seconds']:g}"},
                )
            if self.faults.take(Fault.OUT_OF_MONEY, lambda d: d["http"] and d["where"] == "upload" == request.route):
                raise out_of_money()
            fault = self.faults.take_at(Fault.SERVER_ERROR, request.route)
            if fault is not None and not fault["executed"]:
                raise server_error(fault["status"])
            handler = self._handlers().get(request.route)
            if handler is None:
                raise Refused(404, f"Invalid URL ({request.method} {request.path})")
            answer = handler(request)
            if fault is not None:
                raise server_error(fault["status"])
            if self.faults.take_at(Fault.LOST_ANSWER, request.route) is not None:
                answer.lost = True
            return answer
        except Refused as refused:
            return Answer(orjson.dumps(refused.body), refused.status, headers=refused.headers)
        except Dropped:
            raise
        except Exception:  # noqa: BLE001  a fault of the server itself: answered as 500, and kept for who looks
            self._errors.append(traceback.format_exc())
            return Answer(orjson.dumps(server_error(500).body), 500)

    def _handlers(self) -> dict[str, Callable[[Request], Answer]]:
        return {
            "upload": self._upload,
            "files": self._list_files,
            "file": self._retrieve_file,
            "delete": self._delete_file,
            "content": self._content,
            "create": self._create,
            "list": self._list,
            "retrieve": self._retrieve,
            "cancel": self._cancel,
            "chat": self._chat,
            "models": self._list_models,
            "bill": self._send_bill,
        }

    def _admit(self, request: Request) -> None:
        """Only from this machine, only with the key."""
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
            raise Refused(403, "This server answers to the address 127.0.0.1 only.", "invalid_host")
        given = request.headers.get("authorization")
        if given is None:
            raise Refused(401, "You didn't provide an API key.", None)
        if not hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {self.key}".encode()):
            raise wrong_key()
        if request.route == "length":
            raise Refused(411, "A Content-Length is needed.")
        if request.route == "too_large":
            raise Refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._stopped.wait(seconds):
            raise Dropped

    # -- files ----------------------------------------------------------------------------------------------------

    def _upload(self, request: Request) -> Answer:
        purpose, name = request.fields.get("purpose"), request.filename
        if purpose is None:
            raise missing("purpose")
        if request.upload is None or name is None:
            raise missing("file")
        if purpose != "batch":
            raise Refused(400, f"'{purpose}' is not one of ['batch'] - 'purpose'", "invalid_value", "purpose")
        if not name.endswith(".jsonl"):
            raise Refused(400, "Invalid file format for Batch API. Must be .jsonl", None, "file")
        size = request.upload.stat().st_size
        if size > MAX_FILE_BYTES:
            raise Refused(413, f"The file is too large: {size} bytes. The most is {MAX_FILE_BYTES}.")
        keep = request.fields.get("expires_after[seconds]", str(FILE_DAYS * DAY))
        if not keep.isdigit() or not 3600 <= int(keep) <= FILE_DAYS * DAY:
            raise Refused(400, f"Invalid 'expires_after[seconds]': {keep}.", "invalid_value", "expires_after")
        with self._lock:
            file_id, now = self.ids.new("file-"), int(self.now())
            path = request.upload.rename(self.files.folder / f"{file_id}.jsonl")
            file = File(file_id, name, purpose, size, now, now + int(keep), path)
            self.files.add(file)
            request.upload = None
            fault = self.faults.take(Fault.UPLOAD_ANSWER_LOST)
        if fault is not None:
            return self._lost(fault["status"], file=file_id)
        return json_answer(file.view(), file=file_id)

    def _lost(self, status: int | None, **detail: Any) -> Answer:
        """It is done, and the answer is lost, or is an error."""
        if status is None:
            return Answer(lost=True, detail=detail)
        return json_answer(server_error(status).body, status, **detail)

    def _list_files(self, request: Request) -> Answer:
        limit, order, purpose = (
            request.limit(10_000, 10_000),
            request.query.get("order", "desc"),
            request.query.get("purpose"),
        )
        with self._lock:
            files = [f for f in self.files.all.values() if self.files.there(f.id) and purpose in (None, f.purpose)]
        if order != "asc":
            files.reverse()
        return page_of(files, request.query.get("after"), limit, File.view)

    def _retrieve_file(self, request: Request) -> Answer:
        with self._lock:
            return json_answer(self.files.known(request.name).view(), file=request.name)

    def _delete_file(self, request: Request) -> Answer:
        """The name is gone at once; the bytes stay for the batches that were created before."""
        with self._lock:
            self.batches.commit_due(self.now())
            self.files.known(request.name).deleted = True
        return json_answer({"id": request.name, "object": "file", "deleted": True}, file=request.name)

    def _content(self, request: Request) -> Answer:
        with self._lock:
            self.batches.tick()
            file = self.files.known(request.name)
            result = file.purpose == "batch_output"
            if result and (fault := self.faults.take(Fault.CONTENT_UNAVAILABLE)) is not None:
                raise server_error(fault["status"])
            batch = next((b for b in self.batches.all.values() if b.output is file), None)
            if batch is not None:
                gone = batch.has(Fault.OUTPUT_GONE) or self.faults.take(Fault.OUTPUT_GONE)
                if gone is not None:
                    file.deleted = True
                    batch.hides_usage = not gone["usage"]
                    raise Refused(404, f"No such File object: {request.name}", None, "id")
            cut = self.faults.take(Fault.CONTENT_CUT_OFF) if result and file.bytes else None
            path, size = file.path, file.bytes
        answer = Answer(type="application/octet-stream", file=path, length=size, detail={"file": request.name})
        answer.headers["content-disposition"] = f'attachment; filename="{file.filename}"'
        answer.headers["accept-ranges"] = "bytes"
        stretch = request.headers.get("range")
        if stretch is not None:
            answer.start, answer.length = byte_range(stretch, size)
            answer.status = 206
            answer.headers["content-range"] = f"bytes {answer.start}-{answer.start + answer.length - 1}/{size}"
        if cut is not None:
            part = int(answer.length * cut["at"])
            if cut["whole_lines"]:
                part = path.read_bytes()[answer.start : answer.start + part].rfind(b"\n") + 1
            if cut["clean"]:
                answer.length = part
            else:
                answer.send_only = part
        return answer

    # -- batches --------------------------------------------------------------------------------------------------

    def _create(self, request: Request) -> Answer:
        body = request.json()
        if (fault := self.faults.take(Fault.CREATE_NEVER_ARRIVES)) is not None:
            if fault["status"] is None:
                raise Dropped
            raise server_error(fault["status"])
        if self.faults.take(Fault.OUT_OF_MONEY, lambda d: d["http"] and d["where"] == "create"):
            raise out_of_money()
        if self.faults.take(Fault.FILE_VANISHED) is not None:
            raise no_file(body.get("input_file_id"))
        if (fault := self.faults.take(Fault.CREATE_HANGS)) is not None:
            if fault["after"] is not None or fault["lists"] is not None:
                with self._lock:
                    self.batches.create_later(body, fault["after"], fault["lists"])
                return Answer(lost=True)
            self._wait(fault["seconds"])
        with self._lock:
            batch = self.batches.create(body)
            detail: dict[str, Any] = {"batch": batch.id, "input_file": batch.input_file_id}
            if (fault := self.faults.take(Fault.CREATE_MAKES_TWO)) is not None:
                detail["twin"] = self.batches.create(body).id
                if fault["lost"]:
                    return self._lost(None, **detail)
            if self.faults.take(Fault.CREATE_ANSWER_LOST) is not None:
                return self._lost(None, **detail)
            if (fault := self.faults.take(Fault.CREATE_ANSWERS_ERROR)) is not None:
                return self._lost(fault["status"], **detail)
            return json_answer(batch.view(), **detail)

    def _retrieve(self, request: Request) -> Answer:
        with self._lock:
            self.batches.tick()
            batch = self.batches.known(request.name)
            if self.faults.take_at(Fault.BATCH_NOT_FOUND, "retrieve") is not None:
                raise Refused(404, f"No batch found with id '{request.name}'.", None, None)
            view = batch.view()
            for fault in (Fault.LATE_OUTPUT_ID, Fault.ODD_OBJECTS):
                detail = batch.has(fault)
                if detail is not None and (fault == Fault.ODD_OBJECTS or batch.status == "completed"):
                    detail["polls"] -= 1
            return json_answer(view, batch=batch.id, status_of_batch=view.get("status"))

    def _list(self, request: Request) -> Answer:
        limit = request.limit(20, 100)
        with self._lock:
            batches = self.batches.listed()
            if self.faults.take_at(Fault.BATCH_NOT_FOUND, "list") is not None:
                batches = []
            return page_of(batches, request.query.get("after"), limit, Batch.view)

    def _cancel(self, request: Request) -> Answer:
        with self._lock:
            batch = self.batches.known(request.name)
            self.batches.cancel(batch)
            return json_answer(batch.view(), batch=batch.id)

    # -- the rest -------------------------------------------------------------------------------------------------

    def _chat(self, request: Request) -> Answer:
        if self.faults.take(Fault.OUT_OF_MONEY, lambda d: d["http"] and d["where"] == "chat"):
            raise out_of_money()
        body = request.json()
        model = body.get("model")
        if not isinstance(model, str):
            raise missing("model")
        base = self.models.base(model)
        if base not in self.models.snapshots:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise Refused(404, message, "model_not_found", "model")
        family = family_of(base)
        with self._lock:
            answer, prompt, prefix = self.fake.ask(body, base, family)
            if isinstance(answer, Refused):
                raise answer
            cached, written = self.fake.cache(prefix, family)
            completion = answer.completion
            if (fault := self.faults.take(Fault.OVERCHARGE)) is not None:
                prompt, completion = prompt * fault["factor"], completion * fault["factor"]
            cost = cost_of(self.models.sync[base], prompt, cached, written, completion, answer.hidden, family)
            identity = self.ids.new("chatcmpl-")
            self.bill.write(self.bill.entry(None, hashlib.sha256(request.body).hexdigest(), identity, model, cost))
            snapshot = self.models.snapshot(model)
        fault = self.faults.take(Fault.HOSTILE_USAGE)
        usage = cost.usage if fault is None else hostile(cost.usage, fault["kind"])
        return json_answer(
            completion_of(identity, int(self.now()), snapshot, answer, usage), request_id=identity, model=model
        )

    def _list_models(self, request: Request) -> Answer:
        names = [
            {"id": name, "object": "model", "created": 0, "owned_by": "rehearsal"} for name in self.models.snapshots
        ]
        return json_answer({"object": "list", "data": names})

    def _send_bill(self, request: Request) -> Answer:
        with self._lock:
            self.batches.tick()
            size = self.bill.size
        return Answer(type="application/jsonl", file=self.bill.path, length=size)
