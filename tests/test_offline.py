"""--offline: nothing is looked up and nothing connected to but this machine, here, in children, and in a whole run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.offline.doctor import offline_doctor
from alpasift.graders.offline.guard import SITE, SWITCHES, is_here
from conftest import EXAMPLES, ROOT, SRC, Ran, cli_environment
from hostile_folder import imported, make_hostile_folder

Call = Callable[..., Ran]

TRY = """
import json, os, socket, sys

UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM

def v4(kind=TCP): return socket.socket(socket.AF_INET, kind)
def v6(kind=TCP): return socket.socket(socket.AF_INET6, kind)

OUTSIDE = {
    "connect": lambda: v4().connect(("192.0.2.1", 443)),
    "connect_ex": lambda: v4().connect_ex(("192.0.2.1", 443)),
    "connect by name": lambda: v4().connect(("example.org", 443)),
    "sendto by name": lambda: v4(UDP).sendto(b"x", 0, ("example.org", 53)),
    "bind by name": lambda: v4().bind(("example.org", 0)),
    "connect v6": lambda: v6().connect(("2001:db8::1", 443)),
    "connect mapped": lambda: v6().connect(("::ffff:192.0.2.1", 443)),
    "connect udp": lambda: v4(UDP).connect(("192.0.2.1", 53)),
    "sendto": lambda: v4(UDP).sendto(b"x", ("192.0.2.1", 53)),
    "sendmsg": lambda: v4(UDP).sendmsg([b"x"], [], 0, ("192.0.2.1", 53)),
    "private": lambda: v4().connect(("10.0.0.1", 80)),
    "number": lambda: v4().connect(("3221225985", 80)),
    "getaddrinfo": lambda: socket.getaddrinfo("example.org", 443),
    "getaddrinfo bytes": lambda: socket.getaddrinfo(b"example.org", 443),
    "gethostbyname": lambda: socket.gethostbyname("example.org"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("example.org"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("192.0.2.1"),
    "getnameinfo": lambda: socket.getnameinfo(("192.0.2.1", 80), 0),
    "like localhost": lambda: socket.getaddrinfo("localhost.example.org", 443),
    "urllib": lambda: __import__("urllib.request").request.urlopen("https://example.org", timeout=5),
}

def attempt(what):
    try:
        what()
    except OSError as error:
        inner = getattr(error, "reason", error)
        return f"{type(inner).__name__}: {inner}"
    return "went through"

def all_of_them():
    return {name: attempt(what) for name, what in OUTSIDE.items()}
"""


def python(code: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=cli_environment(env), capture_output=True, text=True, timeout=60)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the processes run: beside modules named like our folders, which none of them may import."""
    (tmp_path / "attempts.py").write_text(TRY)
    yield make_hostile_folder(tmp_path)
    assert imported(tmp_path) == []


def all_refused(found: dict[str, str]) -> None:
    assert len(found) == 20
    for name, said in found.items():
        assert said.startswith("Outside: --offline: "), (name, said)
        assert said.endswith("`alpasift doctor --offline` lists what is missing here and how to get it"), name


# -- the hook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "here"),
    [
        (None, True),
        ("", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        (b"127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("example.org", False),
        ("localhost.example.org", False),
        ("10.0.0.1", False),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("fe80::1", False),
        ("2001:db8::1", False),
        ("2130706433", False),
        ("127.1", False),
        (7, False),
        ("\xb9\xb2\xb7.0.0.1", False),
        (b"\xff", False),
    ],
)
def test_this_machine_is_known_without_asking_anybody(host: object, here: bool) -> None:
    assert is_here(host) is here


def test_every_way_out_is_refused_in_this_process_in_a_child_and_in_a_grandchild(folder: Path) -> None:
    code = """
import json, subprocess, sys, multiprocessing
from alpasift.graders.offline.guard import go_offline
go_offline()
sys.path.insert(0, "")
import attempts
child = "import sys; sys.path.insert(0, ''); import attempts, json; print(json.dumps(attempts.all_of_them()))"
grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
def out(code):
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
with multiprocessing.get_context("spawn").Pool(1) as pool:
    spawned = pool.apply(attempts.all_of_them)
print(json.dumps([attempts.all_of_them(), out(child), out(grandchild), spawned]))
"""
    ran = python(code, cwd=folder)
    assert ran.code == 0, ran.err
    assert len(ran.json) == 4
    for found in ran.json:
        all_refused(found)


def test_this_machine_answers_as_before(folder: Path) -> None:
    code = """
import asyncio, json, os, socket, tempfile
from alpasift.graders.offline.guard import go_offline
go_offline()
done = []
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "localhost"), (socket.AF_INET6, "::1")):
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        assert family == socket.AF_INET6  # a machine without IPv6
        continue
    client = socket.create_connection((host, server.getsockname()[1]))
    client.sendall(b"x")
    done.append(server.accept()[0].recv(1).decode())
path = os.path.join(tempfile.mkdtemp(), "s")
server = socket.socket(socket.AF_UNIX); server.bind(path); server.listen()
socket.socket(socket.AF_UNIX).connect(path)
a, b = socket.socketpair(); a.sendmsg((b"y", b"")); done.append(b.recv(1).decode())
socket.getaddrinfo(None, 80); socket.getaddrinfo("localhost", 80); socket.gethostbyname("localhost")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.connect(("127.0.0.1", 9)); udp.send(b"x")
async def talk():
    async def answer(reader, writer): writer.write(await reader.readline()); writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    writer.write(b"z\\n"); return (await reader.readline()).decode().strip()
done.append(asyncio.run(talk()))
print(json.dumps(sorted(set(done))))
"""
    ran = python(code, cwd=folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == ["x", "y", "z"]


def test_the_refusal_names_who_asked_and_is_an_os_error(folder: Path) -> None:
    (folder / "phones_home.py").write_text(
        "import urllib.request\ndef report(): urllib.request.urlopen('http://stats.example.org/x', timeout=5)\n"
    )
    code = """
import sys; sys.path.insert(0, "")
from alpasift.graders.offline.guard import Outside, go_offline
go_offline()
import phones_home
try: phones_home.report()
except OSError as error: print(error.reason); assert isinstance(error.reason, Outside) and error.reason.errno
"""
    ran = python(code, cwd=folder)
    assert ran.out == (
        "--offline: phones_home tried to look up stats.example.org, which is not this machine; nothing was sent. "
        "`alpasift doctor --offline` lists what is missing here and how to get it\n"
    ), ran.err


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy on this machine: its address, and the first lines that reached it."""
    server, seen = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            seen.append(client.recv(4096).splitlines()[0])
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
            client.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
    server.close()


def test_a_proxy_on_this_machine_is_no_way_out(folder: Path, proxy: tuple[str, list[bytes]]) -> None:
    address, seen = proxy
    ask = "import urllib.request; print(urllib.request.urlopen('http://example.org/', timeout=5).read())"
    env = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"), address)
    env |= {"no_proxy": "", "NO_PROXY": ""}
    assert python(ask, cwd=folder, env=env).out == "b'hi'\n"
    assert seen == [b"GET http://example.org/ HTTP/1.1"]
    held = python(f"from alpasift.graders.offline.guard import go_offline; go_offline()\n{ask}", cwd=folder, env=env)
    assert held.code == 1
    assert "tried to look up example.org" in held.err
    assert len(seen) == 1


def test_children_are_told_by_the_switches_of_their_packages(folder: Path) -> None:
    code = """
import os, subprocess, sys
from alpasift.graders.offline.guard import go_offline
go_offline(); go_offline()
subprocess.run([sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"])
"""
    found = python(code, cwd=folder, env={"HTTPS_PROXY": "http://proxy.example.org:3128"}).json
    assert {name: found[name] for name in SWITCHES} == SWITCHES
    assert (found["ALPASIFT_OFFLINE"], found["NO_PROXY"], found["no_proxy"]) == ("1", "*", "*")
    assert "HTTPS_PROXY" not in found
    assert found["PYTHONPATH"].split(os.pathsep) == [str(SITE), str(SRC)]


def test_a_sitecustomize_that_ours_hides_runs_all_the_same(folder: Path) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "sitecustomize.py").write_text("import builtins\nbuiltins.theirs_ran = __file__\n")
    child = (
        "import socket, sitecustomize; print(theirs_ran == sitecustomize.__file__); socket.gethostbyname('example.org')"
    )
    code = "import subprocess, sys; from alpasift.graders.offline.guard import go_offline; go_offline(); "
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    ran = python(code, cwd=folder, env={"PYTHONPATH": f"{folder / 'theirs'}{os.pathsep}{SRC}"})
    assert ran.out == "True\n"
    assert "alpasift.graders.offline.guard.Outside: --offline: this program tried to look up example.org" in ran.err


def test_a_python_that_cannot_be_held_does_not_start(folder: Path) -> None:
    shutil.copytree(SITE, folder / "site")  # and no offline.py beside it
    ran = python("print('started')", cwd=folder, env={"PYTHONPATH": str(folder / "site")})
    assert ran.code != 0
    assert ran.out == ""
    assert "alpasift: --offline: network access of this Python cannot be blocked" in ran.err


# -- the commands ---------------------------------------------------------------------------------------------------


def one_line(ran: Ran, code: int, *said: str) -> None:
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    for text in said:
        assert text in ran.err


@pytest.mark.parametrize(
    ("grader", "how"),
    [("openai_batch:gpt-4.1-nano", "--offline"), ("openai_chat:gpt-4.1-nano", "ALPASIFT_OFFLINE")],
)
def test_a_grader_on_another_machine_is_refused_before_anything_is_written(
    alpasift: Call, alpasift_process: Call, grader: str, how: str
) -> None:
    alpasift("import", EXAMPLES)
    env = {"OPENAI_API_KEY": "sk-test", **({} if how == "--offline" else {how: "1"})}
    options = ["--offline"] if how == "--offline" else []
    ran = alpasift_process(*options, "grade", "--grader", grader, "--budget", "5", "--yes", env=env)
    one_line(ran, 3, "--offline: api.openai.com is another machine", "alpasift doctor --offline", "batch export")
    count = "select (select count(*) from attempts) as attempts, (select count(*) from runs) as runs"
    assert alpasift("sql", count, "--json").json == [{"attempts": 0, "runs": 0}]


def test_a_server_on_this_machine_is_no_other_machine(alpasift: Call, alpasift_process: Call) -> None:
    alpasift("import", EXAMPLES)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody answers there after this block
    url = f"http://127.0.0.1:{port}/v1"
    ran = alpasift_process(
        "--offline",
        "grade",
        "--grader",
        "openai_chat:gpt-4.1-nano",
        "--base-url",
        url,
        "--budget",
        "5",
        "--yes",
        "--limit",
        "1",
    )
    assert ran.code == 3
    assert "127.0.0.1 cannot be reached" in ran.err
    assert "--offline" not in ran.err


def test_plan_prices_what_offline_forbids_and_auto_passes_over_it(alpasift: Call, alpasift_process: Call) -> None:
    alpasift("import", EXAMPLES)
    env = {"OPENAI_API_KEY": "sk-test"}
    plan = alpasift_process("--offline", "plan", "--grader", "openai_batch:gpt-4.1-nano", "--json", env=env)
    assert plan.code == 3
    offer = next(one for one in plan.json["offers"] if one["grader"] == "openai_batch:gpt-4.1-nano")
    assert offer["why_not"] == "--offline: api.openai.com is another machine"
    assert float(offer["usd"]) > 0
    assert plan.json["auto"]["grader"] is None
    auto = alpasift_process(
        "--offline",
        "grade",
        "--grader",
        "auto",
        "--budget",
        "5",
        "--yes",
        env={**env, "ALPASIFT_GRADERS": "openai_batch:gpt-4.1-nano"},
    )
    one_line(auto, 3, "no grader to choose from", "--offline: api.openai.com is another machine")


def test_batches_are_carried_by_hand_and_rehearsed_under_offline(
    alpasift: Call, alpasift_process: Call, tmp_path: Path
) -> None:
    alpasift("import", EXAMPLES)
    grader = ("--grader", "openai_batch:gpt-4.1-nano", "--budget", "5", "--limit", "3")
    rehearsed = alpasift_process("--offline", "grade", *grader, "--rehearse")
    assert rehearsed.code == 0, rehearsed.err
    assert "3 replies" in rehearsed.err
    exported = alpasift_process("--offline", "batch", "export", "out", *grader, "--yes")
    assert exported.code == 0, exported.err
    (file,) = (tmp_path / "out").glob("*.jsonl")
    results = tmp_path / "results.jsonl"
    with results.open("w") as out:
        for line in file.read_text().splitlines():
            body = {
                "model": "gpt-4.1-nano-2025-04-14",
                "usage": {"prompt_tokens": 300, "completion_tokens": 7},
                "choices": [{"message": {"content": '{"score": 4}'}, "finish_reason": "stop"}],
            }
            custom = json.loads(line)["custom_id"]
            out.write(
                json.dumps({"id": custom, "custom_id": custom, "response": {"status_code": 200, "body": body}}) + "\n"
            )
    brought = alpasift_process("--offline", "batch", "import", results)
    assert brought.code == 0, brought.err
    assert "3 replies, 3 scores" in brought.err


def test_an_offline_variable_that_is_neither_yes_nor_no_is_a_usage_error(alpasift_process: Call) -> None:
    ran = alpasift_process("status", env={"ALPASIFT_OFFLINE": "maybe"})
    assert ran.code == 2
    assert "ALPASIFT_OFFLINE" in ran.err
    assert alpasift_process("plan", EXAMPLES, env={"ALPASIFT_OFFLINE": "0"}).code == 0


# -- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([sys.executable, ROOT / "examples" / "tiny_gguf.py", path], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The beginning of a command that runs in a network of its own: a loopback device and nothing else."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is not installed")
    command = ["unshare", "-n" if os.geteuid() == 0 else "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"the kernel forbids network namespaces: {tried.stderr.strip()}")
    return command


def cli(before: list[str], *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    command = [*before, sys.executable, "-m", "alpasift.batcher.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=cli_environment(env), capture_output=True, text=True, timeout=120)
    return Ran(done.returncode, done.stdout, done.stderr)


def filtered(before: list[str], tiny: Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    """A whole run with a model, and its result."""
    rows = [json.loads(line) for line in EXAMPLES.read_text().splitlines()[:12]]
    (cwd / "rows.json").write_text(json.dumps(rows))
    grader = f"llama_cpp:{tiny}"
    ran = cli(
        before,
        "--offline",
        "filter",
        "rows.json",
        "-o",
        "kept.json",
        "--grader",
        grader,
        "--min-score",
        "0",
        cwd=cwd,
        env=env,
    )
    assert ran.code == 0, ran.err
    assert json.loads((cwd / "kept.json").read_text())


@pytest.mark.llama
def test_a_whole_run_succeeds_on_a_machine_that_has_no_network(tiny: Path, alone: list[str], tmp_path: Path) -> None:
    check = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    done = subprocess.run([*alone, sys.executable, "-c", check], capture_output=True, text=True)
    assert "Network is unreachable" in done.stderr  # the namespace is what it should be
    filtered(alone, tiny, tmp_path)


@pytest.mark.llama
def test_a_whole_run_does_not_even_try_to_reach_another_machine(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "recorder").mkdir()
    log = tmp_path / "events.txt"
    (tmp_path / "recorder" / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"file = os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "names = {'socket.connect', 'socket.sendto', 'socket.sendmsg', 'socket.getaddrinfo', 'socket.gethostbyname'}\n"
        "def hook(event, args):\n"
        "    if event in names: os.write(file, f'{event} {args[-1] if event[7] in \"cs\" else args[0]}\\n'.encode())\n"
        "sys.addaudithook(hook)\n"
        "os.write(file, b'recording\\n')\n"
    )
    env = {"PYTHONPATH": f"{tmp_path / 'recorder'}{os.pathsep}{SRC}"}
    python(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",
        cwd=tmp_path,
        env=env,
    )
    assert log.read_text() == "recording\nsocket.connect ('192.0.2.1', 9)\n"  # the recorder hears
    log.unlink()
    filtered([], tiny, tmp_path, env)
    assert set(log.read_text().splitlines()) == {"recording"}


@pytest.mark.llama
def test_neither_do_the_parts_written_in_c(tiny: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "calls.txt"
    trace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none", "-o", str(log)]
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    if subprocess.run([*trace, sys.executable, "-c", send], capture_output=True).returncode and not log.exists():
        pytest.skip("the kernel forbids strace")
    assert "192.0.2.1" in log.read_text()
    filtered(trace, tiny, tmp_path)
    assert [line for line in log.read_text().splitlines() if "AF_INET" in line] == []


def test_without_the_option_a_paid_grader_says_in_one_line_that_there_is_no_network(
    alone: list[str], tmp_path: Path
) -> None:
    assert cli([], "import", EXAMPLES, cwd=tmp_path).code == 0
    ran = cli(
        alone,
        "grade",
        "--grader",
        "openai_batch:gpt-4.1-nano",
        "--budget",
        "5",
        "--yes",
        "--limit",
        "2",
        cwd=tmp_path,
        env={"OPENAI_API_KEY": "sk-test", "http_proxy": "", "https_proxy": "", "HTTPS_PROXY": ""},
    )
    assert ran.code == 3, ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("alpasift: ")]
    assert len(errors) == 1
    assert "api.openai.com cannot be reached" in errors[0]
    assert "Traceback" not in ran.err
    money = cli([], "ledger", "--json", cwd=tmp_path).json
    assert "0.000000000000000" in json.dumps(money)


# -- doctor ---------------------------------------------------------------------------------------------------------


def found_by(ran: Ran) -> dict[str, Any]:
    return {row["what"]: row for row in ran.json}


def test_doctor_offline_says_what_each_grader_misses_and_how_to_bring_it(alpasift: Call) -> None:
    ran = alpasift("doctor", "--offline", "--json")
    assert ran.code == 0
    found = found_by(ran)
    assert found["grader rules"] == {
        "what": "grader rules",
        "ok": True,
        "message": "works without a network",
        "fix": "",
    }
    assert found["grader openai_batch"]["ok"] is False
    assert "batch export" in found["grader openai_batch"]["fix"]
    assert found["vocabulary o200k_base"]["ok"] is found["vocabulary cl100k_base"]["ok"] is True
    assert "genai-prices" in found["prices"]["message"]
    assert "accuracy" in found["rubrics"]["message"]
    here = alpasift("doctor", "--offline", "--json", env={"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"})
    assert found_by(here)["grader openai_chat"]["ok"] is True


def test_doctor_offline_ends_with_3_when_a_named_grader_could_not_work(
    alpasift: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.gguf").write_bytes(b"GGUF....")
    (tmp_path / "bad.gguf").write_bytes(b"<html>")
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(b"GGUF....")
    messages = {
        "llama_cpp:none.gguf": "file not found: none.gguf",
        "llama_cpp:bad.gguf": "bad.gguf is not a GGUF file",
        "llama_cpp:m-00001-of-00003.gguf": "missing m-00002-of-00003.gguf, m-00003-of-00003.gguf",
        "openai_chat:gpt-4.1": "cannot work without a network: api.openai.com is another machine",
        "nobody:x": "no grader named nobody",
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for spec, message in messages.items():
        found = offline_doctor([spec], "alpasift.duckdb")
        assert found.named_ok is False, spec
        check = next(check for check in found.checks if check.what == spec)
        assert (check.ok, message in check.message, bool(check.fix)) == (False, True, True), check
    assert alpasift("doctor", "--offline", env={"ALPASIFT_GRADERS": "llama_cpp:none.gguf"}).code == 3
    ran = alpasift("doctor", "--offline", "--grader", "rules", "--grader", "openai_chat:gpt-4.1")
    assert ran.code == 3
    assert "openai_batch:gpt-4.1, then alpasift batch import" in ran.err
    assert alpasift("doctor", "--grader", "rules").code == 2


@pytest.mark.llama
def test_doctor_offline_finds_nothing_missing_for_a_model_that_is_there(alpasift: Call, tiny: Path) -> None:
    ran = alpasift("doctor", "--offline", "--json", "--grader", f"llama_cpp:{tiny}")
    assert ran.code == 0
    assert found_by(ran)[f"llama_cpp:{tiny}"]["ok"] is True
