"""The process that runs vLLM's engine, seen from the grader: started by the first message, ended with all it started.

Messages are (what, content) pairs, pickled, over a socket of its own; what vLLM prints goes to a file that nobody
sees, and is searched for a reason when the process ends. Nothing that vLLM writes reaches the user's terminal, and
Ctrl-C reaches it as a request to stop. Knows nothing of requests; `vllm_worker` is the other end.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alpasift
from alpasift.graders.interface.errors import BackendError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class EngineDied(Exception):
    """The engine's process ended, or its engine did. The message is the reason, one line."""


class EngineProcess:
    """A process that runs the engine. It is started by the first message sent, also after a crash.

    `crashes` counts those since the last answer; whoever sees an answer sets it back to 0.
    """

    def __init__(self, settings: dict[str, Any], adapter: str | None, device: str) -> None:
        self.settings = settings
        self._adapter = adapter
        self._device = device
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._log: Any = None
        self.ready = False
        self.crashes = 0

    @property
    def running(self) -> bool:
        return self._line is not None

    def send(self, what: str, content: Any = None) -> None:
        """Send a message, starting the process where there is none."""
        if self._line is None:
            self._launch()
        assert self._line is not None
        with contextlib.suppress(OSError):  # it is dead, which the next `receive` reports
            self._line.send((what, content))

    def receive(self, seconds: float) -> tuple[str, Any] | None:
        """The next message, None when none comes in that time.

        Raises EngineDied when the process ended, and BackendError when it had never been ready.
        """
        if self._line is None:
            raise EngineDied("the engine process has ended")
        try:
            if not self._line.poll(seconds):
                return None
            message: tuple[str, Any] = self._line.recv()
        except (EOFError, OSError):
            reason, was_ready = self._exit_reason(), self.ready
            self._end()
            if not was_ready:
                raise BackendError(f"vLLM did not start: {reason}") from None
            raise EngineDied(reason) from None
        if message[0] == "ready":
            self.ready = True
            return None
        if message[0] == "failed":
            self._end()
            raise BackendError(f"vLLM did not start: {message[1]}")
        if message[0] == "died":
            self._end()
            raise EngineDied(message[1])
        return message

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None and self.ready:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is busy with a step
                self._process.wait(10)
        self._end()

    def _launch(self) -> None:
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        # -P: a train.py or sql.py in the user's folder is not imported in place of a package
        code = f"import sys; sys.path.insert(0, {_package_root()!r})\n"
        code += f"from alpasift.graders.local.vllm_worker import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=environment(self._device),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._line = Connection(ours.detach())
        self.ready = False
        self._line.send((self.settings, self._adapter))

    def _exit_reason(self) -> str:
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
        return last_error(written) or f"its process ended with code {code}"

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
        self.ready = False


def _package_root() -> str:
    """The folder from which `alpasift` is imported, here and so in the engine's process."""
    return str(Path(alpasift.__file__).absolute().parent.parent)


def environment(device: str) -> dict[str, str]:
    """The environment of the engine's process: no network, no statistics, few log lines, and how to use a CPU."""
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
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
    return {**defaults, **os.environ, **fixed}


def last_error(text: str) -> str:
    """The last line of a log that names an error, without vLLM's log prefix; "" when there is none."""
    found = ""
    for line in text.splitlines():
        match = re.search(r"\b((?:\w+\.)*\w*(?:Error|Exception|OutOfMemory)): (.+)", line)
        if match and "See root cause above" not in line and "EngineDeadError" not in line:
            found = f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    return found[:400]
