"""Graders that measure a row by the probabilities that a model on this machine gives to its output.

    Likelihood.answer -> blocks -> a worker thread -> passages (tokens) -> a Scorer (log-probabilities) -> measures

The model is a GGUF file, read through llama.cpp, or a model folder, read through transformers; both give the same
numbers for the same weights. `ifd`, `s_ifd` and `fit` in `graders/` are these graders: call `likelihood_kind`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from decimal import Decimal
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from alpasift.graders import (
    BackendError,
    BackendKind,
    BackendUnavailable,
    Estimate,
    Example,
    Meter,
    Replies,
    Request,
    only_by,
)
from alpasift.graders.local.blocks import BLOCK, Answer, answer_in_blocks
from alpasift.graders.local.gguf_files import check_gguf
from alpasift.graders.local.measures import VERSION, MeasureName, measured
from alpasift.graders.local.model_folders import ModelFilesError, NoModel, read_model_folder
from alpasift.graders.local.packaged_models import PACKAGED, gguf_path
from alpasift.graders.local.passages import Passage, Scorer, passages_of

AT_ONCE = 16
"""Rows measured between two looks at whether anybody still waits."""
TRIED = 8
"""Rows that an estimate reads, for about a second."""


class Likelihood:
    """One measure by one model, opened. `packaged` is the model's name where a package has it."""

    paid = False
    leaves_machine = "nothing"

    def __init__(self, measure: MeasureName, scorer: Scorer, packaged: str | None = None) -> None:
        self.measure, self.scorer = measure, scorer
        self.name = f"{measure}:{packaged or scorer.path.name}"
        plain = {} if measure == "fit" else {"template": "plain"}
        self.fingerprint: Mapping[str, str] = {
            **scorer.fingerprint,
            **plain,
            "measure": VERSION,
            "begins": "with BOS" if scorer.begin else "without BOS",
        }
        self.facts: Mapping[str, str] = {**scorer.facts, "spec": f"{measure}:{packaged or scorer.path.absolute()}"}
        self.remarks: tuple[str, ...] = ()
        if measure == "fit" and not scorer.template:
            self.remarks = (f"{scorer.path.name} has no chat template: messages are sent as plain text",)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=measure)

    def cannot(self, request: Request) -> str | None:
        if not request.judged_from_row:
            return (
                f"{self.measure} measures and answers no question; grade with --rubric {self.measure}, or use a model"
            )
        if request.judged_by != self.measure:
            return only_by(request)
        if request.want_logprobs or request.json_schema is not None:
            return f"{self.measure} gives one figure a row; omit --answer-format"
        return None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Seconds from reading some of the first rows for about a second; tokens from their tokens a character."""
        free, rows = Decimal(0), iter(requests)
        sample = [request.example for request in islice(rows, TRIED) if request.example is not None]
        characters = [_characters(example) for example in sample]
        total, count = sum(characters), len(sample)
        for request in rows:
            count += 1
            total += _characters(request.example) if request.example is not None else 0
        tokens, seconds = self._worker.submit(self._try, sample).result() if sample else (0, 0.0)
        tried = sum(characters)
        scale = total / tried if tried else 0.0
        expected = seconds * scale if seconds else None
        return Estimate(count, free, free, free, free, expected, round(tokens * scale), 0, notes=self.remarks)

    def _try(self, sample: Sequence[Example]) -> tuple[int, float]:
        """Tokens that measuring these rows takes, and seconds, from as many of them as a second allows."""
        found = [passages_of(self.scorer, self.measure, example) for example in sample]
        passages = [passage for one in found if not isinstance(one, str) for passage in one]
        tokens = sum(len(passage.tokens) for passage in passages)
        done, begun = 0, time.perf_counter()
        for passage in passages:
            self.scorer.logprobs([passage])
            done += len(passage.tokens)
            if time.perf_counter() - begun > 1.0:
                break
        return tokens, (time.perf_counter() - begun) * tokens / done if done else 0.0

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        yield from answer_in_blocks(requests, meter, _Engine(self.measure, self.scorer, self._worker), self.facts)

    def close(self) -> None:
        self.scorer.stop()
        self._worker.shutdown()
        self.scorer.close()


def _characters(example: Example) -> int:
    turns = sum(len(turn.content) for turn in example.turns)
    return turns + len(example.system) + len(example.instruction) + len(example.input) + 2 * len(example.output)


class _Engine:
    """A scorer as `blocks.Engine`: some rows at a time, in a thread of its own."""

    def __init__(self, measure: MeasureName, scorer: Scorer, worker: ThreadPoolExecutor) -> None:
        self.model = scorer.path.name
        self._measure, self._scorer, self._worker = measure, scorer, worker
        self._waiting: deque[tuple[str, Request]] = deque()
        self._task: Future[list[tuple[str, Answer]]] | None = None

    @property
    def room(self) -> int:
        return max(0, BLOCK - len(self._waiting))

    def start(self, request: Request) -> Iterator[None]:
        yield from ()

    def submit(self, requests: Sequence[tuple[str, Request]]) -> None:
        self._waiting.extend(requests)

    def collect(self, seconds: float, wanted: int) -> list[tuple[str, Answer]]:
        if self._task is None:
            if not self._waiting:
                return []
            rows = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            self._task = self._worker.submit(self._measured, rows)
        try:
            answers = self._task.result(timeout=seconds)
        except NotYet:
            return []
        self._task = None
        return answers

    def stop(self) -> None:
        """End the decode under way, so that nobody waits for it."""
        self._waiting.clear()
        self._scorer.stop()
        if self._task is not None and not self._task.done():
            self._task.exception()

    def _measured(self, rows: Sequence[tuple[str, Request]]) -> list[tuple[str, Answer]]:
        found = [
            passages_of(self._scorer, self._measure, request.example)
            if request.example is not None
            else "backend_error: there is no row to measure"
            for _, request in rows
        ]
        logprobs = iter(
            self._scorer.logprobs([passage for one in found if not isinstance(one, str) for passage in one])
        )
        return [
            (
                request_id,
                Answer(error=one) if isinstance(one, str) else self._answer(one, [next(logprobs) for _ in one]),
            )
            for (request_id, _), one in zip(rows, found, strict=True)
        ]

    def _answer(self, passages: Sequence[Passage], logprobs: Sequence[list[float] | str]) -> Answer:
        tokens = sum(len(passage.tokens) for passage in passages)
        read: list[list[float]] = []
        for one in logprobs:
            if isinstance(one, str):
                return Answer(tokens, error=one)
            read.append(one)
        figure = measured(self._measure, *read)
        if figure is None:
            return Answer(tokens, error=f"not_finite: {self.model} gives a token of the output no probability at all")
        return Answer(tokens, text=f"{figure.value!r}\n{figure.detail}")


# -- opening ------------------------------------------------------------------------------------------------------


def likelihood_kind(measure: MeasureName) -> BackendKind:
    """The `KIND` of the grader that measures this."""

    def open(argument: str | None) -> Likelihood:
        """Open the model at the path `argument`, a GGUF file or a model folder, or the packaged one of that name.

        Raises BackendUnavailable when the package or the model is missing, BackendError when it cannot be used.
        """
        if not argument:
            raise BackendError(
                f"{measure} needs a model: {measure}:MODEL.gguf, {measure}:FOLDER or {measure}:smollm2-135m"
            )
        try:
            return Likelihood(measure, _scorer(_looked_at(argument)), argument if argument in PACKAGED else None)
        except NoModel as error:
            raise BackendUnavailable(str(error)) from error
        except ModelFilesError as error:
            raise BackendError(str(error)) from error

    def problem_with_model(argument: str | None) -> str | None:
        """Why the model that an argument names cannot be opened, None when it can. Looks at files only."""
        if not argument:
            return f"has no model; write {measure}:MODEL.gguf, or {measure}:FOLDER"
        try:
            folder = _looked_at(argument).is_dir()
        except ModelFilesError as error:
            return str(error)
        extra, package = ("train", "transformers") if folder else ("llama", "llama_cpp")
        return None if find_spec(package) else f"needs a package: pip install 'alpasift[{extra}]'"

    return BackendKind(
        open=open, missing_requirements=missing_requirements, problem_with_model=problem_with_model, rubric=measure
    )


def missing_requirements() -> str | None:
    """What this machine lacks, None when only a model has to be named."""
    if find_spec("llama_cpp") or (find_spec("torch") and find_spec("transformers")):
        return None
    return "needs a package: pip install 'alpasift[llama]' for a GGUF file, 'alpasift[train]' for a model folder"


def _looked_at(argument: str) -> Path:
    """The model at a path, or the packaged one, whole as far as its files show. Raises ModelFilesError."""
    path = gguf_path(argument)
    if path.is_dir():
        read_model_folder(path)
    else:
        check_gguf(path)
    return path


def _scorer(path: Path) -> Scorer:
    if path.is_dir():
        from alpasift.graders.local.torch_likelihood import TorchScorer

        return TorchScorer(path)
    from alpasift.graders.local.llama_likelihood import LlamaScorer

    return LlamaScorer(path)
