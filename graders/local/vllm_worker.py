"""The process that runs vLLM's engine, from inside: `serve` is all that it does. Started by `vllm_process`.

    inbox   check (number, request), ask [(request id, request)], stop, quit
    outbox  ready or failed, checked (number, problem), answers [(request id, answer)], died

Requests wait here and fill the engine between its steps; an answer goes out as soon as it is finished.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import deque
from importlib import import_module
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread, Timer
from typing import TYPE_CHECKING, Any

from alpasift.graders import Request
from alpasift.graders.local.blocks import Answer
from alpasift.graders.local.model_folders import chat_template
from alpasift.graders.local.transformers_prompts import Prompts
from alpasift.graders.local.vllm_jobs import Job, Jobs
from alpasift.graders.local.vllm_process import last_error

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Message = tuple[str, Any]


def serve(handle: int) -> None:
    """Run an engine and answer the messages that come over the socket `handle`, until it is closed."""
    from multiprocessing.connection import Connection

    line = Connection(handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: SimpleQueue[Message] = SimpleQueue()
    outbox: SimpleQueue[Message] = SimpleQueue()
    closing = Event()
    settings, adapter = line.recv()
    Thread(target=_read, args=(line, inbox), daemon=True).start()
    writer = Thread(target=_write, args=(line, outbox), daemon=True)
    writer.start()
    engine = None
    try:
        engine = Engine(settings, adapter)
        Thread(target=_watch_children, args=(outbox, writer, closing), daemon=True).start()
        outbox.put(("ready", None))
        _work(engine, inbox, outbox)
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent gets it in one line
        outbox.put(("died" if engine else "failed", one_line(error)))
    outbox.put(("quit", None))
    writer.join(5)
    closing.set()
    if engine:
        engine.close()
    sys.stdout.flush()
    os._exit(0)


def _work(engine: Engine, inbox: SimpleQueue[Message], outbox: SimpleQueue[Message]) -> None:
    """Do what the messages say, and a step of the engine where none waits, until "quit"."""
    while True:
        try:
            what, content = inbox.get(block=not engine.busy)
        except Empty:
            what, content = "", None
        if what == "quit":
            return
        if what == "check":
            outbox.put(("checked", (content[0], engine.prompts.problem_with_fixed_text(content[1]))))
        elif what == "ask":
            engine.waiting.extend(content)
        elif what == "stop":
            engine.stop()
        elif answers := engine.step():
            outbox.put(("answers", answers))


def _read(line: Connection, inbox: SimpleQueue[Message]) -> None:
    while True:
        try:
            inbox.put(line.recv())
        except (EOFError, OSError):  # our parent has closed the line, or is dead
            last_resort = Timer(8, os.killpg, (os.getpgid(0), signal.SIGKILL))
            last_resort.daemon = True
            last_resort.start()
            inbox.put(("quit", None))
            return


def _write(line: Connection, outbox: SimpleQueue[Message]) -> None:
    while (message := outbox.get())[0] != "quit":
        try:
            line.send(message)
        except OSError:
            return


def _watch_children(outbox: SimpleQueue[Message], writer: Thread, closing: Event) -> None:
    """End this process when one of vLLM's own does: `step` may wait for it for ever."""
    from multiprocessing import active_children
    from multiprocessing.connection import wait

    below = active_children()
    if not below:
        return
    wait([child.sentinel for child in below])
    if closing.is_set():
        return
    time.sleep(1)  # where vLLM itself reports what happened, that is the better reason
    ended = next((child for child in below if child.exitcode is not None), below[0])
    outbox.put(("died", f"its process {ended.name} ended with code {ended.exitcode}"))
    outbox.put(("quit", None))
    writer.join(5)
    os._exit(1)


def one_line(error: BaseException) -> str:
    """An exception in one line; the engine's own where this one only says that the engine had one."""
    import traceback

    traceback.print_exception(error)
    text = f"{type(error).__name__}: {error}"
    sys.stderr.flush()
    if "root cause above" in text or "EngineDeadError" in text or "stack trace (above)" in text:
        with Path("/proc/self/fd/2").open("rb") as log:
            return last_error(log.read().decode("utf-8", "replace")) or "the engine process ended"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic: "1 validation error for X", a place, then "  Value error, the reason [type=...]"
    value = next((line for line in lines if line.startswith("Value error, ")), lines[0] if lines else "no reason given")
    value = re.sub(r" \[type=.*", "", value.removeprefix("Value error, "))
    return f"{type(error).__name__}: {value}"[:400]


class Engine:
    """vLLM with one model and its tokenizer, and the requests that it works on."""

    def __init__(self, settings: dict[str, Any], adapter: str | None) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        self._dead = EngineDeadError
        transformers: Any = import_module("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(settings["model"], local_files_only=True)
        if adapter and (template := chat_template(Path(adapter))):  # what it was trained to answer
            tokenizer.chat_template = template
        self.llm: Any = LLM(**settings)
        self.engine: Any = self.llm.llm_engine
        self.adapter: Any = LoRARequest("adapter", 1, adapter) if adapter else None
        self.prompts = Prompts(tokenizer, Path(settings["model"]), settings["max_model_len"])
        self.jobs = Jobs(self.prompts)
        self.room = 2 * settings["max_num_seqs"]
        self.waiting: deque[tuple[str, Request]] = deque()
        self._open: dict[str, tuple[Job, list[Any], int]] = {}  # the job, its outputs, how many of them are missing
        self._in_flight: dict[str, tuple[str, int]] = {}  # what vLLM works on -> request id, place
        self._numbers = count()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self._open)

    def step(self) -> list[tuple[str, Answer]]:
        """Fill the engine, let it take one step, and return what is finished."""
        answers: list[tuple[str, Answer]] = []
        while self.waiting and len(self._in_flight) < self.room:
            request_id, request = self.waiting.popleft()
            self._advance(request_id, self.jobs.answer(request), None, answers)
        if self._in_flight:
            for output in self.engine.step():
                request_id, place = self._in_flight.pop(output.request_id)
                job, outputs, missing = self._open.pop(request_id)
                outputs[place] = output.outputs[0]
                if missing > 1:
                    self._open[request_id] = (job, outputs, missing - 1)
                else:
                    self._advance(request_id, job, outputs, answers)
        return answers

    def _advance(self, request_id: str, job: Job, outputs: list[Any] | None, answers: list[tuple[str, Answer]]) -> None:
        """Have the job continue with its outputs, and give vLLM what it wants next."""
        try:
            calls = next(job) if outputs is None else job.send(outputs)
        except StopIteration as end:
            answers.append((request_id, end.value))
            return
        except Exception as error:  # noqa: BLE001  what one row or its settings bring about ends that row only
            answers.append((request_id, Answer(error=f"backend_error: {one_line(error)}")))
            return
        sent: list[str] = []
        for place, call in enumerate(calls):
            name = str(next(self._numbers))
            try:
                self.engine.add_request(name, {"prompt_token_ids": call.tokens}, call.params, lora_request=self.adapter)
            except Exception as error:  # a schema that it cannot take, a request that it will not have
                if isinstance(error, self._dead):
                    raise
                self.engine.abort_request(sent)
                for other in sent:
                    del self._in_flight[other]
                answers.append((request_id, Answer(error=f"backend_error: {one_line(error)}")))
                return
            sent.append(name)
            self._in_flight[name] = (request_id, place)
        self._open[request_id] = (job, [None] * len(calls), len(calls))

    def stop(self) -> None:
        """Drop everything that is not finished."""
        self.waiting.clear()
        self.engine.abort_request(list(self._in_flight))
        self._in_flight.clear()
        self._open.clear()

    def close(self) -> None:
        self.engine.engine_core.shutdown()
