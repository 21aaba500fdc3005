"""Grade on this machine with llama.cpp: `llama_cpp:models/llama-3.1-8b-q4.gguf`. Nothing leaves it, nothing is paid.

    LlamaCpp.answer -> blocks -> a worker thread -> llama_model (tokens) -> llama_decoder (many rows) -> llama_rows

Knows nothing of rubrics, datasets or files of results. The files of `graders/local` named llama_* say how it works.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from alpasift.graders import (
    BackendError,
    BackendKind,
    BackendUnavailable,
    Estimate,
    Meter,
    ModelSize,
    Replies,
    Request,
    only_by,
)
from alpasift.graders.local.blocks import BLOCK, Answer, answer_in_blocks
from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.gguf_files import check_gguf, gguf_parts
from alpasift.graders.local.llama_decoder import Decoder, Group
from alpasift.graders.local.llama_library import library
from alpasift.graders.local.llama_model import LlamaModel, Prompt
from alpasift.graders.local.model_folders import ModelFilesError, NoModel
from alpasift.graders.local.packaged_models import PACKAGED, gguf_path
from alpasift.graders.local.processor import cpu_name
from alpasift.graders.local.work import free_estimate


def open(argument: str | None) -> LlamaCpp:
    """Open the GGUF file at the path `argument`, or the packaged model of that name: smollm2-135m.

    Raises BackendUnavailable when the package or the file is missing, BackendError when the file cannot be used.
    """
    if not argument:
        raise BackendError("llama_cpp needs a model: llama_cpp:PATH.gguf, or llama_cpp:smollm2-135m")
    try:
        path = gguf_path(argument)
        check_gguf(path)
    except NoModel as error:
        raise BackendUnavailable(str(error)) from error
    except ModelFilesError as error:
        raise BackendError(str(error)) from error
    return LlamaCpp(path, packaged=argument if argument in PACKAGED else None)


def missing_requirements() -> str | None:
    """What this machine lacks, None when only a model has to be named."""
    try:
        library()
    except BackendUnavailable as error:
        return str(error)
    return None


def problem_with_model(argument: str | None) -> str | None:
    """Why the GGUF file that an argument names cannot be opened, None when it can. Looks at files only."""
    if not argument:
        return "has no model; write llama_cpp:PATH.gguf"
    try:
        check_gguf(gguf_path(argument))
    except ModelFilesError as error:
        return str(error)
    return None


class LlamaCpp:
    """One model, opened. `path` is a GGUF file that has been looked at; `packaged` its name where a package has it."""

    paid = False
    leaves_machine = "nothing"

    def __init__(self, path: Path, packaged: str | None = None) -> None:
        self.model = LlamaModel(path)
        try:
            self.decoder = Decoder(self.model)
        except BaseException:
            self.model.close()
            raise
        template = self.model.template
        self.name = f"llama_cpp:{packaged or path.name}"
        self.fingerprint: Mapping[str, str] = {
            "file": sha256_of(gguf_parts(path)),
            "n_ctx": str(self.model.context),
            "flash_attn": "on" if self.decoder.flash_attention else "off",
            "kv": "f16",
            "template": hashlib.sha256(template.encode()).hexdigest() if template else "plain",
            "ends": "newlines",
        }
        self.facts: Mapping[str, str] = {
            "llama-cpp-python": version("llama-cpp-python"),
            "threads": str(self.decoder.threads),
            "machine": f"{cpu_name()}, {self.decoder.threads} threads",
            "spec": f"llama_cpp:{packaged or path.absolute()}",
            **({} if self.model.amx_works else {"amx": "not used: it crashes in this build of llama.cpp"}),
        }
        self.size = ModelSize(
            self.model.parameters, self.fingerprint["file"], self.facts["machine"], self.decoder.threads
        )
        plain = f"{path.name} has no chat template: messages are sent as plain text"
        self.remarks: tuple[str, ...] = () if template else (plain,)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llama_cpp")

    def cannot(self, request: Request) -> str | None:
        return only_by(request) if request.judged_from_row else None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Tokens by counting characters; no seconds, `size` tells what they depend on."""
        return free_estimate(requests, self.remarks)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        yield from answer_in_blocks(requests, meter, _Engine(self.model, self.decoder, self._worker), self.facts)

    def close(self) -> None:
        self.decoder.stopping = True
        self._worker.shutdown()
        self.decoder.close()
        self.model.close()


class _Engine:
    """The decoder as `blocks.Engine`: one block at a time, group after group, in a thread of its own."""

    def __init__(self, model: LlamaModel, decoder: Decoder, worker: ThreadPoolExecutor) -> None:
        self.model = model.path.name
        self._opened, self._decoder, self._worker = model, decoder, worker
        self._ids: dict[str, str] = {}  # request ids by key, of what has no answer yet
        self._rejected: list[tuple[str, Answer]] = []
        self._groups: deque[Group] = deque()
        self._task: Future[list[Answer]] | None = None

    @property
    def room(self) -> int:
        return 0 if self._groups or self._rejected else BLOCK

    def start(self, request: Request) -> Iterator[None]:
        """Raise BackendError when not even the fixed text of requests like this one fits the context."""
        self._decoder.stopping = False
        *fixed, (role, _) = request.messages
        found = self._opened.prompt(replace(request, messages=(*fixed, (role, ""))))
        if isinstance(found, str) and found.startswith("too_long"):
            raise BackendError(
                f"the rubric's text and an answer do not fit {self.model} ({found.partition(': ')[2]}); "
                "choose a model with a longer context, or shorten the rubric"
            )
        yield from ()

    def submit(self, requests: Sequence[tuple[str, Request]]) -> None:
        prompts: list[Prompt] = []
        for request_id, request in requests:
            prompt = self._opened.prompt(request)
            if isinstance(prompt, str):
                self._rejected.append((request_id, Answer(error=prompt)))
            else:
                self._ids[request.key] = request_id
                prompts.append(prompt)
        self._groups.extend(self._decoder.groups(prompts))

    def collect(self, seconds: float, wanted: int) -> list[tuple[str, Answer]]:
        if self._rejected:
            rejected, self._rejected = self._rejected, []
            return rejected
        if self._task is None:
            self._task = self._worker.submit(self._decoder.answer, self._groups[0])
        try:
            answers = self._task.result(timeout=seconds)
        except NotYet:
            return []
        self._task = None
        group = self._groups.popleft()
        return [
            (self._ids.pop(prompt.request.key), answer) for prompt, answer in zip(group.prompts, answers, strict=True)
        ]

    def stop(self) -> None:
        """End the decode under way, so that nobody waits for it."""
        self._decoder.stopping = True
        if self._task is not None and not self._task.done():
            self._task.exception()


KIND = BackendKind(open=open, missing_requirements=missing_requirements, problem_with_model=problem_with_model)
