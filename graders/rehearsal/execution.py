"""Carrying out the lines of a batch: the results that go to its files, and the bill of each execution."""

from __future__ import annotations

from typing import Any

import orjson

from alpasift.graders.rehearsal.answers import FakeModel, completion_of
from alpasift.graders.rehearsal.batch import Batch
from alpasift.graders.rehearsal.bill import Bill, Cost, cost_of, hostile
from alpasift.graders.rehearsal.faults import Fault
from alpasift.graders.rehearsal.files import Files
from alpasift.graders.rehearsal.messages import Refused, line_error
from alpasift.graders.rehearsal.models import Models, family_of


class Execution:
    """Some lines of one batch at work; results and bill wait in lists until `flush`."""

    def __init__(self, batch: Batch, files: Files, models: Models, fake: FakeModel, bill: Bill, now: int) -> None:
        assert batch.model is not None and batch.snapshot is not None and batch.questions is not None
        self.batch, self.files, self.fake, self.now, self.questions = batch, files, fake, now, batch.questions
        self.model, self.snapshot = batch.model, batch.snapshot
        base = models.base(batch.model)
        self.family, self.rates = family_of(base), models.batch[base]
        self.stem = batch.id[6:]
        self.as_text = (batch.has(Fault.ODD_OBJECTS) or {}).get("text_body", False)
        self.costs: dict[tuple[int, int, int, int, int], Cost] = {}
        self.used: dict[tuple[int, int, int, int, int], int] = {}
        self.output: list[bytes] = []
        self.error: list[bytes] = []
        self.billed: list[bytes] = []
        self.bill = bill

    def flush(self) -> None:
        for kind, lines in (("output", self.output), ("error", self.error)):
            if lines:
                with self.files.results_path(self.batch.id, kind).open("ab") as file:
                    file.write(b"".join(lines))
                lines.clear()
        self.bill.write(b"".join(self.billed))
        self.billed.clear()
        for (prompt, cached, _, completion, hidden), times in self.used.items():
            for k, tokens in enumerate((prompt, cached, completion, hidden)):
                self.batch.usage[k] += tokens * times
        self.used.clear()

    def plain(self, i: int) -> None:
        """A line that goes as it should."""
        custom_id = self.questions.custom_id(i)
        answer = self.execute(i, custom_id)
        if answer is not None:
            self.output.append(self.line(i, custom_id, 200, answer))
            self.batch.completed += 1

    def execute(
        self, i: int, custom_id: str, *, again: int = 0, more: int = 0, factor: int = 1, change: str = ""
    ) -> dict[str, Any] | None:
        """Carry out a request and bill it. None when the model does not take it; the error line is then written."""
        questions = self.questions
        answered = questions.answers[questions.answer[i]]
        if isinstance(answered, Refused):
            self.fail(i, custom_id, answered)
            return None
        number, cached, written = questions.prefix[i], 0, 0
        if number:
            cached, written = self.fake.cache(questions.prefixes[number], self.family)
        name = (questions.prompt[i] * factor + more, cached, written, answered.completion * factor, answered.hidden)
        cost = self.costs.get(name)
        if cost is None:
            if len(self.costs) > 10_000:
                self.costs.clear()
            cost = self.costs[name] = cost_of(self.rates, *name, self.family)
        self.used[name] = self.used.get(name, 0) + 1
        self.billed.append(self.bill.entry(self.batch.id, custom_id, self.request_id(i, again), self.model, cost))
        shown = hostile(cost.usage, change) if change else cost.usage
        return completion_of(f"chatcmpl-{self.stem}{i:08x}", self.now, self.snapshot, answered, shown)

    def request_id(self, i: int, again: int = 0) -> str:
        return f"{self.stem}{i:08x}{again or ''}"

    def line(self, i: int, custom_id: str, status: int, body: Any, *, again: int = 0) -> bytes:
        if self.as_text and body is not None:
            body = orjson.dumps(body).decode()
        row = {
            "id": f"batch_req_{self.stem}{i:08x}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": self.request_id(i, again), "body": body},
            "error": None,
        }
        return orjson.dumps(row) + b"\n"

    def fail(self, i: int, custom_id: str, refused: Refused) -> None:
        self.error.append(self.line(i, custom_id, refused.status, refused.body))
        self.batch.failed += 1

    def odd(self, i: int, fault: Fault, detail: dict[str, Any]) -> None:
        """A line that a fault strikes."""
        custom_id = self.questions.custom_id(i)
        if fault == Fault.ALL_LINES_FAIL:
            message = "Unsupported parameter: this model does not accept the request."
            return self.fail(i, custom_id, Refused(detail["status"], message, detail["code"]))
        if fault == Fault.SOME_LINES_FAIL:
            return self.fail(i, custom_id, line_error(detail["status"]))
        answer: dict[str, Any] | None = None
        if detail.get("executed", True):
            answer = self.execute(i, custom_id, factor=detail.get("factor", 1), change=self.change(fault, detail))
            if answer is None:
                return None
        if fault == Fault.MISSING_LINES:
            return None
        self.batch.completed += 1
        if fault == Fault.STATUS_ZERO:
            self.output.append(self.line(i, custom_id, detail["status"], None))
            return None
        if fault == Fault.EMPTY_BODY:
            kept = {k: v for k, v in (answer or {}).items() if k != "usage" and detail["kind"] != "empty"}
            self.output.append(self.line(i, custom_id, 200, kept))
            return None
        line = self.line(i, custom_id, 200, answer)
        if fault == Fault.UNREADABLE_LINES and detail["kind"] == "json":
            line = line[: len(line) * 2 // 3] + b"\n"
        elif fault == Fault.UNREADABLE_LINES:
            line = line.replace(b'"content":"', b'"content":"\xff\xfe', 1)
        self.output.append(line)
        if fault == Fault.REPEATED_LINES:
            self.output.append(self.twin(i, custom_id, line, detail))
        elif fault == Fault.STRAY_LINES:
            stray = f"stray-{self.stem}-{i}"
            self.output.append(self.line(i, stray, 200, self.execute(i, stray, again=1), again=1))
        return None

    def change(self, fault: Fault, detail: dict[str, Any]) -> str:
        return str(detail["kind"]) if fault == Fault.HOSTILE_USAGE else ""

    def twin(self, i: int, custom_id: str, line: bytes, detail: dict[str, Any]) -> bytes:
        """The second line of a question: the same one, or that of a second execution."""
        if detail["same_id"] and detail["same_usage"]:
            return line
        again, more = 0 if detail["same_id"] else 1, 0 if detail["same_usage"] else 1
        return self.line(i, custom_id, 200, self.execute(i, custom_id, again=again, more=more), again=again)
