"""A grading by batch that dies at every step: at each request, at each write; then the same command resumes it.

After every death spent <= bill <= spent + reserved + unresolved, where the bill is the server's own. In the end each
row has the score that it asked for, no line of a batch was carried out twice, and the ledger is the bill.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.money.meter import batch_folder
from alpasift.batcher.store import Store
from alpasift.graders.rehearsal.server import Event
from batch_harness import MODEL, expected, marked_store, scores
from batch_lives import KEY, Forks, Life, forking, living, needs_points, nth, of_this_run, spread

ROWS = 40
BATCH_ROWS = 10
REQUEST_POINTS = 44
MORE_REQUEST_POINTS = 8
WRITE_POINTS = 50


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("points")) as made:
        yield made


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that holds the rows; nothing was graded or paid in it, so a copy of it may send."""
    return marked_store(tmp_path_factory.mktemp("rows"), ROWS).path


@pytest.fixture
def life(tmp_path: Path, forks: Forks, imported: Path) -> Iterator[Life]:
    with living(tmp_path, forks, imported) as made:
        yield made


# -- every point of a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: (number, moment, route) of its requests, (what, which file) of its writes."""

    requests: tuple[tuple[int, str, str], ...]
    writes: tuple[tuple[str, str], ...]


def undisturbed(folder: Path, forks: Forks, imported: Path, batch_rows: int) -> Reference:
    seen: list[tuple[int, str, str]] = []
    with living(folder, forks, imported) as life:
        life.batch_rows = batch_rows
        life.server.hook = lambda event: seen.append((event.number, event.moment, event.detail["route"]))
        code = life.run(POINTS_UNDER=str(life.store.path), POINTS_LOG=str(folder / "points.txt"))
        assert code == 0, life.said[-1]
        life.server.hook = None
        life.check_end(ROWS)
    writes = []
    for line in (folder / "points.txt").read_text().splitlines():
        _, _, what, path = line.split(" ", 3)
        writes.append((what, kind_of(path.removeprefix(str(life.store.path)))))
    return Reference(tuple(seen), tuple(writes))


@pytest.fixture(scope="session")
def four_batches(tmp_path_factory: pytest.TempPathFactory, forks: Forks, imported: Path) -> Reference:
    return undisturbed(tmp_path_factory.mktemp("four"), forks, imported, BATCH_ROWS)


@pytest.fixture(scope="session")
def two_batches(tmp_path_factory: pytest.TempPathFactory, forks: Forks, imported: Path) -> Reference:
    return undisturbed(tmp_path_factory.mktemp("two"), forks, imported, 2 * BATCH_ROWS)


def kind_of(rest: str) -> str:
    """What a file is, by what its path has after the database's."""
    name = rest.rpartition("/")[2]
    if rest.startswith(".batches/"):
        return name.partition("-")[0] if name.startswith(("draft-", "requests-")) else name.rpartition("-")[2]
    return rest.lstrip(".") or "database"


def write_points(reference: Reference) -> list[int]:
    """The writes at which a run is killed, from 1: one of each kind from its middle, the rest evenly spread."""
    of_kind: dict[tuple[str, str], list[int]] = {}
    for number, kind in enumerate(reference.writes, 1):
        of_kind.setdefault(kind, []).append(number)
    chosen = {numbers[len(numbers) // 2] for numbers in of_kind.values()}
    rest = spread(len(reference.writes) - 10, WRITE_POINTS)  # the last few may not come: DuckDB writes in threads
    random.Random(1).shuffle(rest)
    for i in rest:
        if len(chosen) < WRITE_POINTS:
            chosen.add(i + 1)
    return sorted(chosen)


@needs_points
@pytest.mark.slow
@pytest.mark.parametrize("i", range(REQUEST_POINTS + MORE_REQUEST_POINTS))
def test_a_run_that_dies_at_a_request_goes_on_and_pays_nothing_twice(
    life: Life, two_batches: Reference, four_batches: Reference, i: int
) -> None:
    if i < REQUEST_POINTS:  # every moment of every request
        assert len(two_batches.requests) == REQUEST_POINTS
        number, moment, route = two_batches.requests[i]
        life.batch_rows = 2 * BATCH_ROWS
    else:  # and some with more batches around
        later = four_batches.requests[len(four_batches.requests) // 3 :]
        number, moment, route = later[spread(len(later), MORE_REQUEST_POINTS)[i - REQUEST_POINTS]]
    code = life.is_hit(lambda event: (event.number, event.moment) == (number, moment))
    print(f"died at request {number} ({route}), {moment}")
    assert code == -signal.SIGKILL, life.said
    life.check_law()
    life.goes_on()
    life.check_end(ROWS)


@needs_points
@pytest.mark.slow
@pytest.mark.parametrize("i", range(WRITE_POINTS))
def test_a_run_that_dies_at_a_write_goes_on_and_pays_nothing_twice(life: Life, two_batches: Reference, i: int) -> None:
    number = write_points(two_batches)[i]
    life.batch_rows = 2 * BATCH_ROWS
    code = life.is_hit_at_write(number, torn=True)
    print(f"died at write {number} of {len(two_batches.writes)}, usually: {two_batches.writes[number - 1]}")
    assert code == -signal.SIGKILL, life.said
    life.check_law()
    life.goes_on()
    life.check_end(ROWS)


# -- again and again, and in other commands -----------------------------------------------------------------------


@needs_points
@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("create", "arrived", 2), (3, "done")),
        (("create", "arrived", 2), (4, "arrived")),
        (("create", "arrived", 2), 45),
        (("create", "done", 1), (3, "done")),
        (("upload", "done", 2), (3, "done")),
        (("content", "half", 1), (3, "half")),
        (("chat", "done", 1), (2, "done")),
    ],
)
def test_the_run_after_a_death_may_die_too(
    life: Life, first: tuple[str, str, int], second: tuple[int, str] | int
) -> None:
    life.batch_rows = 2 * BATCH_ROWS
    assert life.is_hit(nth(*first)) == -signal.SIGKILL, life.said
    life.check_law()
    code = life.is_hit_at_write(second) if isinstance(second, int) else life.is_hit(of_this_run(*second))
    assert code == -signal.SIGKILL, life.said
    life.check_law()
    life.goes_on()
    if first[0] == "chat":  # the row of the first call was sent twice, and both times the process died
        assert "1 row was sent twice" in life.said[-1]
        life.goes_on(life.grade_command("--retry"))
    life.check_end(ROWS)


def send_and_leave(life: Life) -> None:
    """Two batches are out, neither of them done."""
    life.server.batch_seconds, life.batch_rows = 1000.0, 2 * BATCH_ROWS
    assert life.run(life.grade_command("--no-wait")) == 4, life.said
    assert [batch["status"] for batch in life.server.batches()] == ["validating"] * 2
    life.check_law()


def looking(life: Life, command: str, *more: str) -> list[str]:
    return life.command(command, *more, "--wait", "--poll-seconds", "0.05", "--grace-seconds", "0")


@needs_points
@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        ("retrieve", "done", 1),
        ("content", "half", 2),
        ("list", "done", 3),
        45,
    ],
)
def test_a_collect_that_dies_is_run_again(life: Life, point: tuple[str, str, int] | int) -> None:
    send_and_leave(life)
    life.server.advance(2000)
    collect = looking(life, "collect")
    code = life.is_hit_at_write(point, collect) if isinstance(point, int) else life.is_hit(nth(*point), collect)
    assert code == -signal.SIGKILL, life.said
    life.check_law()
    life.goes_on(collect)
    life.check_law()
    life.goes_on()
    life.check_end(ROWS)


@needs_points
@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        ("cancel", "arrived", 1),
        ("cancel", "done", 2),
        ("retrieve", "done", 2),
        30,
    ],
)
def test_a_cancel_that_dies_is_run_again(life: Life, point: tuple[str, str, int] | int) -> None:
    send_and_leave(life)
    life.server.advance(450)

    def watch(event: Event) -> None:  # a batch needs a while to stop
        if event.detail["route"] == "cancel" and event.moment == "done":
            life.server.advance(60)

    life.watch = watch
    life.server.hook = watch
    cancel = looking(life, "cancel", "--all")
    code = life.is_hit_at_write(point, cancel) if isinstance(point, int) else life.is_hit(nth(*point), cancel)
    assert code == -signal.SIGKILL, life.said
    life.check_law()
    life.goes_on(cancel)
    found = life.check_law()
    assert found["reserved_usd"] == 0
    assert {batch["status"] for batch in life.server.batches()} == {"cancelled"}
    life.server.batch_seconds = 0.0
    life.goes_on()
    life.check_end(ROWS)


# -- interrupts, two at once, copies, caps, full disks ---------------------------------------------------------------


@needs_points
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_waiting_leaves_the_batches_and_the_next_run_collects_them(
    life: Life, number: signal.Signals
) -> None:
    life.server.batch_seconds = 1000.0
    life.batch_rows = 2 * BATCH_ROWS
    assert life.is_hit(nth("retrieve", "answered", 6), signal_=number) == 128 + number, life.said
    assert "committed results are kept" in life.said[-1]
    assert [batch["status"] for batch in life.server.batches()] == ["validating"] * 2
    found = life.check_law()
    assert found["reserved_usd"] > 0
    life.server.advance(2000)
    assert life.run() == 0, life.said
    assert len(life.server.batches()) == 2
    life.check_end(ROWS)


@needs_points
def test_a_second_process_is_refused_and_told_which_one_is_at_work(life: Life) -> None:
    there, go_on = threading.Event(), threading.Event()

    def hook(event: Event) -> None:
        if event.detail["route"] == "create" and event.moment == "arrived":
            there.set()
            go_on.wait(60)

    life.server.hook = hook
    pid = life.start()
    try:
        assert there.wait(60)
        before = len(life.server.requests_log)
        for arguments in (life.grade_command(), looking(life, "collect"), looking(life, "cancel", "--all")):
            second = subprocess.run(
                [sys.executable, "-m", "alpasift.batcher.cli", *arguments],
                env=life.environment(),
                cwd=life.folder,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (second.returncode, f"process {pid} is already working" in second.stderr) == (1, True), second.stderr
        assert len(life.server.requests_log) == before, "the second process sent something"
    finally:
        go_on.set()
    assert life.ended() == 0, life.said
    life.check_end(ROWS)


@needs_points
def test_a_copied_database_sends_nothing_and_the_original_goes_on(life: Life) -> None:
    send_and_leave(life)
    copy = life.folder / "copy.duckdb"
    shutil.copy2(life.store.path, copy)
    shutil.copytree(batch_folder(life.store.path), batch_folder(copy))
    before, bill = len(life.server.requests_log), life.server.billed_usd()
    for arguments in (life.grade_command(), looking(life, "collect"), looking(life, "cancel", "--all")):
        assert life.run(["--db", str(copy), *arguments[2:]]) == 1
        assert "is a copy of the database" in life.said[-1]
    assert len(life.server.requests_log) == before, "the copy sent something"
    assert life.server.billed_usd() == bill
    life.server.advance(2000)
    assert life.run() == 0, life.said
    shutil.rmtree(batch_folder(copy))
    life.check_end(ROWS)


@needs_points
def test_a_budget_lowered_while_a_batch_is_out_sends_nothing_more_and_the_batch_is_collected(life: Life) -> None:
    life.server.batch_seconds = 1000.0
    assert life.run(life.grade_command("--no-wait", "--limit", "15")) == 4, life.said
    out = len(life.server.batches())
    lowered = life.run(life.grade_command("--no-wait", "--limit", "5", budget="0.0001"))
    assert lowered == 4, life.said
    found = life.check_law()
    assert found["budget_usd"] == Decimal("0.0001")
    assert found["free_usd"] < 0
    assert len(life.server.batches()) == out, "a batch was sent beyond the cap"
    assert sum(line.batch is None for line in life.server.bill()) == 1, "a call was made beyond the cap"
    life.server.advance(2000)
    assert life.run(looking(life, "collect")) == 0, life.said
    found = life.check_law()
    assert (found["reserved_usd"], found["unresolved_usd"]) == (0, 0)
    assert found["spent_usd"] == life.server.billed_usd() > found["budget_usd"] > 0
    assert {p for p, score in scores(life.store).items() if score is not None} == set(range(15))
    life.server.batch_seconds = 0.0
    life.goes_on()
    life.check_end(ROWS)


def carried_out(life: Life, requests: Path) -> Path:
    """What a person does who carries a request file: upload it, have it run, and save what comes."""
    import openai

    client = openai.OpenAI(base_url=life.server.url, api_key=KEY, max_retries=0)
    file = client.files.create(file=(requests.name, requests.read_bytes()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    results = life.folder / f"results-{file.id}.jsonl"
    results.write_bytes(client.files.content(batch.output_file_id).content)
    return results


def rows_of_everything(store: Store) -> dict[str, int]:
    tables = ("replies", "readings", "ledger", "attempts", "alarms")
    return {name: store.locked_query(f"select count(*) from {name}").rows[0][0] for name in tables}


@needs_points
def test_results_that_a_person_imports_twice_are_booked_once(life: Life) -> None:
    folder = life.folder / "carry"
    export = life.command(
        "batch",
        "export",
        str(folder),
        "--grader",
        f"openai_batch:{MODEL}",
        "--budget",
        "5",
        "--yes",
        "--batch-rows",
        "20",
        "--prices",
        str(life.folder / "prices.toml"),
    )
    assert life.run(export) == 0, life.said
    files = sorted(folder.iterdir())
    assert len(files) == 2
    whole, second = (carried_out(life, path) for path in files)
    part = life.folder / "part.jsonl"
    part.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:7]))
    for path, code in ((part, 4), (part, 4), (whole, 0), (whole, 0), (part, 0), (second, 0), (second, 0)):
        before = rows_of_everything(life.store)
        again = path in [p for p in (part, whole, second) if str(p) in "".join(life.said)]
        assert life.run(life.command("batch", "import", str(path))) == code, life.said
        life.said.append(str(path))
        found = life.check_law()
        if again:
            assert rows_of_everything(life.store) == before
    assert found["spent_usd"] == life.server.billed_usd() > 0
    assert scores(life.store) == expected(ROWS)


@needs_points
@pytest.mark.slow
def test_an_import_that_dies_is_run_again(life: Life) -> None:
    folder = life.folder / "carry"
    export = life.command(
        "batch",
        "export",
        str(folder),
        "--grader",
        f"openai_batch:{MODEL}",
        "--budget",
        "5",
        "--yes",
        "--prices",
        str(life.folder / "prices.toml"),
    )
    assert life.run(export) == 0, life.said
    bring = life.command("batch", "import", str(carried_out(life, next(folder.iterdir()))))
    assert life.is_hit_at_write(20, bring) == -signal.SIGKILL, life.said
    life.check_law()
    assert life.run(bring) == 0, life.said
    found = life.check_law()
    assert (found["spent_usd"], found["reserved_usd"]) == (life.server.billed_usd(), 0)
    assert scores(life.store) == expected(ROWS)


@needs_points
@pytest.mark.slow
@pytest.mark.parametrize("i", range(4))
def test_a_full_disk_stops_a_run_with_one_line_and_loses_nothing(life: Life, two_batches: Reference, i: int) -> None:
    number = spread(len(two_batches.writes), 6)[i + 1]
    life.batch_rows = 2 * BATCH_ROWS
    life.deaths = 1  # an answer that can be written nowhere is lost as though by a death
    code = life.run(POINTS_UNDER=str(life.store.path), POINTS_FAIL_AT=str(number))
    print(f"full from write {number}, usually: {two_batches.writes[number - 1]}")
    assert code == 1, life.said
    assert "No space left" in life.said[-1] or "is full" in life.said[-1], life.said
    life.check_law()
    life.goes_on()
    life.check_end(ROWS)
