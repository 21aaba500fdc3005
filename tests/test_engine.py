"""The engine: what is asked, what is not asked again, and what is kept when things go wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.questions import pending
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.summary import Summary
from alpasift.batcher.money import charges, ledger, reservations
from alpasift.batcher.money.ledger import LedgerAlarm, NoBudget
from alpasift.batcher.store import Store, StoreBusy, lock
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import (
    Backend,
    BackendError,
    BackendUnavailable,
    BudgetExceeded,
    Estimate,
    Meter,
    Reply,
    Request,
    open_backend,
)
from alpasift.graders.api.prices import per_million
from alpasift.graders.prompts.rubric import load_rubric
from conftest import some_rows, write_rows

PAID = 'usd_per_million_input = "0.15"\nusd_per_million_output = "0.60"\n'


class Recording:
    """A real backend that remembers the keys it was asked."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.asked = inner, list[str]()
        self.name, self.fingerprint, self.facts = inner.name, inner.fingerprint, inner.facts
        self.paid, self.leaves_machine, self.remarks = inner.paid, inner.leaves_machine, inner.remarks

    def cannot(self, request: Request) -> str | None:
        return self.inner.cannot(request)

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        return self.inner.estimate(requests)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        def watched() -> Iterator[Request]:
            for request in requests:
                self.asked.append(request.key)
                yield request

        return self.inner.answer(watched(), meter)

    def close(self) -> None:
        self.inner.close()


class Dying(Recording):
    """A backend whose process-side engine breaks after some replies."""

    def __init__(self, inner: Backend, after: int, error: BaseException) -> None:
        super().__init__(inner)
        self.after, self.error = after, error

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        for i, replies in enumerate(super().answer(requests, meter)):
            yield replies
            if i + 1 == self.after:
                raise self.error


def script(tmp_path: Path, text: str, name: str = "script.toml") -> Backend:
    path = tmp_path / name
    path.write_text(text)
    return open_backend(f"fake:{path}")


def dataset(store: Store, tmp_path: Path, rows: Sequence[dict[str, Any]] | int = 20, name: str = "rows") -> str:
    rows = some_rows(rows) if isinstance(rows, int) else rows
    return import_file(store, write_rows(tmp_path / f"{name}.jsonl", rows)).version_id


def grade(store: Store, version_id: str, backend: Backend, **options: Any) -> Summary:
    rubric = options.pop("rubric", "accuracy")
    with Run(store, Grade(load_rubric(rubric)), backend, version_id, **options) as run:
        return run.go()


def column(store: Store, text: str) -> list[Any]:
    return [row[0] for row in store.locked_query(text).rows]


def test_every_row_gets_one_score_and_nothing_is_asked_twice(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    first = grade(store, version, Recording(open_backend("fake")))
    assert (first.outcome, first.asked, first.usable, first.already) == ("done", 20, 20, 0)
    again = Recording(open_backend("fake"))
    second = grade(store, version, again)
    assert (second.asked, second.already, again.asked) == (0, 20, [])
    assert column(store, "select count(*) from graded_rows where score is not null") == [20]


def test_equal_rows_are_asked_once_and_all_of_them_have_the_score(store: Store, tmp_path: Path) -> None:
    rows = some_rows(3)
    version = dataset(store, tmp_path, [*rows, *rows, rows[0]])
    backend = Recording(open_backend("fake"))
    assert grade(store, version, backend).asked == 3
    assert len(set(backend.asked)) == 3
    assert column(store, "select count(*) from graded_rows") == [7]


def test_a_second_dataset_with_the_same_rows_costs_nothing(store: Store, tmp_path: Path) -> None:
    budget = Decimal(1)
    grade(store, dataset(store, tmp_path, 5, "one"), script(tmp_path, PAID), budget=budget)
    spent = store.query("ledger")[0]["spent_usd"]
    summary = grade(store, dataset(store, tmp_path, some_rows(6), "two"), script(tmp_path, PAID), budget=budget)
    assert (summary.asked, summary.already) == (1, 5)
    assert summary.usd == store.query("ledger")[0]["spent_usd"] - spent


def test_another_rubric_or_another_grader_is_another_question(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 4)
    grade(store, version, open_backend("fake"))
    assert grade(store, version, open_backend("fake"), rubric="helpfulness").asked == 4
    assert grade(store, version, script(tmp_path, "max_output_tokens = 9\n")).asked == 4
    assert column(store, "select count(*) from graded") == [12]


def test_a_changed_script_is_another_version_of_the_grader(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 2)
    grade(store, version, script(tmp_path, '[[reply]]\ntext = "4"\n'))
    grade(store, version, script(tmp_path, '[[reply]]\ntext = "5"\n'))
    found = store.locked_query("select distinct grader, score from graded order by grader").rows
    assert found == [("fake:script.toml", Decimal(4)), ("fake:script.toml@2", Decimal(5))]


def test_scores_land_on_the_rows_they_belong_to(store: Store, tmp_path: Path) -> None:
    rows = [{"instruction": f"marker {i % 11}.", "input": str(i), "output": "x"} for i in range(60)]
    rules = "".join(f'[[reply]]\nmatch = "marker {i}[.]"\ntext = "{i / 2}"\n' for i in range(11))
    version = dataset(store, tmp_path, rows)
    grade(store, version, script(tmp_path, rules))
    found = store.locked_query("select instruction, score from graded_rows").rows
    assert len(found) == 60
    assert all(score * 2 == int(text.removeprefix("marker ").rstrip(".")) for text, score in found)


def test_what_could_not_be_read_is_asked_once_more_and_then_given_up(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 5)
    backend = Recording(script(tmp_path, '[[reply]]\nmatch = "number 3 "\ntext = "good"\n'))
    summary = grade(store, version, backend)
    assert (summary.asked, summary.replied, summary.usable) == (6, 6, 4)
    assert backend.asked.count(backend.asked[-1]) == 2
    assert (
        grade(store, version, Recording(script(tmp_path, '[[reply]]\nmatch = "number 3 "\ntext = "good"\n'))).asked == 0
    )
    assert store.locked_query("select score, reason, replies from graded where score is null").rows == [
        (None, "unreadable", 2)
    ]
    assert grade(store, version, backend, retry=True).asked == 1


def test_a_second_answer_that_can_be_read_counts(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 3)
    summary = grade(
        store,
        version,
        script(tmp_path, '[[reply]]\nmatch = "number 1 "\ntext = "good"\ntimes = 1\n[[reply]]\ntext = "2"\n'),
    )
    assert (summary.asked, summary.usable) == (4, 3)
    assert column(store, "select count(*) from graded where score = 2") == [3]


def test_a_too_long_row_is_set_aside_with_its_reason_and_not_asked_again(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 3)
    text = '[[reply]]\nmatch = "number 1 "\noutcome = "rejected_free"\n'
    text += 'error = "too_long: 9000 tokens, the context holds 4096"\n'
    grade(store, version, script(tmp_path, text))
    assert store.locked_query("select reason, explanation from graded where score is null").rows == [
        ("too_long", "too_long: 9000 tokens, the context holds 4096")
    ]
    assert grade(store, version, script(tmp_path, text)).asked == 0


def test_a_limit_grades_a_part_and_the_next_run_the_rest(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    first = grade(store, version, open_backend("fake"), limit=8)
    assert (first.asked, first.message) == (8, "12 rows are not graded yet; run again without --limit 8")
    assert grade(store, version, open_backend("fake")).asked == 12


def test_a_paid_grader_without_a_budget_is_refused(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 2)
    with pytest.raises(NoBudget, match="--budget 5"):
        grade(store, version, script(tmp_path, PAID))
    assert column(store, "select count(*) from attempts") == [0]


def test_the_money_spent_never_passes_the_cap(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    questions = pending(store, Grade(load_rubric("accuracy")), script(tmp_path, PAID), version).questions
    estimate = script(tmp_path, PAID).estimate(questions)
    half = estimate.usd / 2
    stopped = grade(store, version, script(tmp_path, PAID), budget=half)
    assert stopped.outcome == "partial"
    assert "raise --budget" in (stopped.message or "")
    assert 0 < stopped.usable < 20
    money = store.query("ledger")[0]
    assert money["spent_usd"] + money["reserved_usd"] + money["unresolved_usd"] <= half
    done = grade(store, version, script(tmp_path, PAID), budget=Decimal(1))
    assert (done.outcome, done.usable + stopped.usable) == ("done", 20)


def test_a_run_that_should_cost_more_than_is_free_sends_nothing_and_says_what_fits(
    store: Store, tmp_path: Path
) -> None:
    version = dataset(store, tmp_path)
    with Run(store, Grade(load_rubric("accuracy")), script(tmp_path, PAID), version, budget=Decimal("0.0002")) as run:
        estimate = run.estimate()
        fits = int(Decimal("0.0002") / (estimate.usd / 20))
        with pytest.raises(BudgetExceeded, match=f"nothing was sent. --limit {fits} grades what fits"):
            run.check_affordable(estimate)
    with Run(
        store, Grade(load_rubric("accuracy")), script(tmp_path, PAID), version, limit=fits, budget=Decimal("0.0002")
    ) as run:
        run.check_affordable(run.estimate())


def test_a_backend_that_dies_leaves_what_it_answered(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    with pytest.raises(BackendError, match="the engine broke"):
        grade(store, version, Dying(open_backend("fake"), 7, BackendError("the engine broke")))
    assert column(store, "select count(*) from graded where score is not null") == [7]
    assert store.query("runs", row_limit=1)[0]["outcome"] == "failed"
    assert grade(store, version, open_backend("fake")).asked == 13


def test_an_interrupt_commits_what_is_in_hand_and_its_money(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        grade(
            store,
            version,
            Dying(script(tmp_path, PAID + "lines_per_attempt = 5\n"), 7, KeyboardInterrupt()),
            budget=Decimal(1),
        )
    assert column(store, "select count(*) from graded where score is not null") == [7]
    money = store.query("ledger")[0]
    assert (money["reserved_usd"], column(store, "select count(*) from ledger where kind = 'unresolved'")) == (0, [3])
    assert store.query("runs", row_limit=1)[0]["outcome"] == "interrupted"


def test_a_charge_above_its_ceiling_stops_the_run(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    text = PAID + '[[reply]]\nmatch = "number 4 "\nusage = { prompt_tokens = 9000000, completion_tokens = 2 }\n'
    with pytest.raises(LedgerAlarm, match="above its ceiling"):
        grade(store, version, script(tmp_path, text), budget=Decimal(1))
    assert store.query("ledger")[0]["spent_usd"] > 1
    with pytest.raises(LedgerAlarm):
        grade(store, version, script(tmp_path, text), budget=Decimal(5))
    ledger.acknowledge(store, "a test")
    assert grade(store, version, script(tmp_path, text), budget=Decimal(5)).outcome == "done"


def test_hostile_usage_is_unresolved_and_its_score_is_kept(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 3)
    text = PAID + '[[reply]]\nmatch = "number 1 "\ntext = "3"\nusage = { prompt_tokens = -1, completion_tokens = 2 }\n'
    grade(store, version, script(tmp_path, text), budget=Decimal(1))
    assert column(store, "select count(*) from graded where score is not null") == [3]
    assert store.query("ledger")[0]["unresolved_usd"] > 0


def test_two_runs_at_once_are_refused_by_name(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 2)
    with Run(store, Grade(load_rubric("accuracy")), open_backend("fake"), version):
        with pytest.raises(lock.AnotherRun, match=r"process .* is already working"):
            grade(store, version, open_backend("fake"))


def test_a_grader_is_not_asked_about_a_rubric_it_refuses(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="rules"):
        grade(store, dataset(store, tmp_path, 2), open_backend("fake"), rubric="rules")


def test_while_another_program_holds_the_database_finished_replies_are_spooled_and_none_is_lost(
    store: Store, tmp_path: Path
) -> None:
    version = dataset(store, tmp_path, 30)
    store.wait = 20
    code = f"import duckdb, time; con = duckdb.connect({str(store.path)!r}); print('held', flush=True); time.sleep(5)"
    import subprocess
    import sys

    slow = Recording(script(tmp_path, "delay_seconds = 0.15\n"))
    spooled = threading.Event()

    def watch() -> None:
        while not spooled.is_set():
            if store.path.with_name(store.path.name + ".spool").exists():
                spooled.set()
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    holder: list[subprocess.Popen[str]] = []

    def hold() -> None:
        time.sleep(1.5)
        for _ in range(200):
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert process.stdout is not None
            if process.stdout.readline().strip() == "held":
                holder.append(process)
                return
            process.wait()

    threading.Thread(target=hold, daemon=True).start()
    summary = grade(store, version, slow)
    for process in holder:
        process.wait()
    assert (summary.outcome, spooled.is_set()) == ("done", True)
    assert not store.path.with_name(store.path.name + ".spool").exists()
    assert column(store, "select count(*) from graded where score is not null") == [30]
    assert len(set(slow.asked)) == 30


def test_a_spool_left_by_a_killed_run_is_ingested_by_the_next(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 4)
    with pytest.raises(BackendError):
        grade(store, version, Dying(script(tmp_path, PAID), 1, BackendError("broke")), budget=Decimal(1))
    attempt, key = store.locked_query("select attempt_id, key from replies").rows[0]
    late = Reply(
        str(attempt), str(key), "late", "answered", "3", "stop", usage={"prompt_tokens": 0, "completion_tokens": 0}
    )
    from dataclasses import asdict

    store.path.with_name(store.path.name + ".spool").write_text(json.dumps(asdict(late)) + "\n" + '{"attempt": "cut')
    grade(store, version, script(tmp_path, PAID))
    assert column(store, "select count(*) from replies where request_id = 'late'") == [1]


def test_stored_replies_are_read_again_by_a_better_parser_and_nobody_is_asked(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 3)
    grade(store, version, open_backend("fake"))
    with store.transaction() as con:
        con.execute("create temp table old as select * from readings")
        con.execute("delete from readings")
        con.execute(
            "insert into readings (attempt_id, key, request_id, reader, reason, recorded_at) "
            "select attempt_id, key, request_id, '0', 'unreadable', recorded_at from old"
        )
    again = Recording(open_backend("fake"))
    assert grade(store, version, again).asked == 0
    assert column(store, "select count(*) from graded where score is not null") == [3]


class Shrinking(Recording):
    """A paid backend that opens one large attempt and, when that does not fit, small ones: as batch files are cut."""

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        block, usage = list(requests), {"prompt_tokens": 1, "completion_tokens": 1}
        try:
            meter.open([r.key for r in block], Decimal("0.01"), PRICE)
        except BudgetExceeded:
            for request in block:
                attempt = meter.open([request.key], Decimal("0.01"), PRICE)
                yield [Reply(attempt, request.key, "1", "answered", "4", usage=usage)]
                meter.close(attempt)


PRICE = per_million("0.15", "0.60").frozen()


def test_an_attempt_that_did_not_fit_comes_again_smaller_and_its_answers_are_about_the_right_rows(
    store: Store, tmp_path: Path
) -> None:
    version = dataset(store, tmp_path, 4)
    summary = grade(store, version, Shrinking(script(tmp_path, PAID)), budget=Decimal("0.015"))
    assert (summary.outcome, summary.usable) == ("done", 4)
    assert column(store, "select count(*) from graded_rows where score = 4") == [4]


def test_more_replies_than_a_chunk_are_all_written_before_their_attempt_is_closed(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 650)
    summary = grade(store, version, script(tmp_path, PAID + "lines_per_attempt = 650\n"), budget=Decimal(1))
    assert (summary.usable, store.query("ledger")[0]["unresolved_usd"]) == (650, 0)


@pytest.mark.parametrize(
    "text", ["4." + "0" * 40, "4.00000000000000000000000000001", "4\ud83d", "4\x00", "9" * 400, "\udcff"]
)
def test_no_text_of_a_reply_keeps_its_money_or_its_neighbours_from_being_booked(
    store: Store, tmp_path: Path, text: str
) -> None:
    version = dataset(store, tmp_path, 5)

    class Hostile(Recording):
        def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
            from dataclasses import replace

            for replies in self.inner.answer(requests, meter):
                yield [replace(reply, text=text, error=text, model=text, raw=text) for reply in replies]

    summary = grade(store, version, Hostile(script(tmp_path, PAID)), budget=Decimal(1))
    assert summary.outcome == "done"
    assert column(store, "select count(distinct key) from ledger where kind = 'charge'") == [5]
    assert store.query("ledger")[0]["unresolved_usd"] == 0


def test_rows_that_differ_only_in_what_the_rubric_does_not_show_are_questions_of_their_own(
    store: Store, tmp_path: Path
) -> None:
    from alpasift.graders.prompts.rubric import parse_rubric

    text = 'name = "o"\nlow = 0\nhigh = 1\nstep = 1\nthreshold = 1\nsystem = "s"\nquestion = "q"\n'
    text += 'row = "{{mark}} {{instruction}} {{output}}"\n'
    rows = [{"instruction": "a", "input": str(i), "output": "b"} for i in range(300)]
    version = dataset(store, tmp_path, rows)
    with Run(store, Grade(parse_rubric(text, "o")), open_backend("fake"), version) as run:
        assert run.go().usable == 300
    assert column(store, "select count(*) from graded where score is not null") == [300]


def test_a_run_whose_questions_stay_unanswered_is_not_done(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 4)
    text = '[[reply]]\nmatch = "number 1 "\noutcome = "rejected_free"\nerror = "backend_error: 500"\n'
    summary = grade(store, version, script(tmp_path, text))
    assert (summary.outcome, summary.message) == (
        "partial",
        "1 rows got no answer (`alpasift scores` shows why); run again to grade them",
    )


def test_what_may_have_been_executed_unseen_is_asked_again_once_and_then_given_up(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 2)
    text = PAID + '[[reply]]\nmatch = "number 1 "\noutcome = "unknown"\n'
    for asked in (2, 1, 0, 0):
        assert grade(store, version, script(tmp_path, text), budget=Decimal(1)).asked == asked
    ceiling = store.locked_query("select max(ceiling_usd) from attempt_lines").rows[0][0]
    assert store.query("ledger")[0]["unresolved_usd"] == 2 * ceiling


def test_a_refusal_is_not_asked_again(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 2)
    text = '[[reply]]\nmatch = "number 1 "\ntext = "I am sorry, but I cannot rate this."\n'
    assert grade(store, version, script(tmp_path, text)).asked == 2
    assert grade(store, version, script(tmp_path, text)).asked == 0


def test_a_score_that_was_read_stays_when_a_later_answer_cannot_be_read_and_both_are_paid(
    store: Store, tmp_path: Path
) -> None:
    version = dataset(store, tmp_path, 1)
    grade(store, version, script(tmp_path, PAID + '[[reply]]\ntext = "3"\ntimes = 1\n'), budget=Decimal(1))
    key = str(column(store, "select key from questions")[0])
    with store.transaction() as con:
        attempt = reservations.reserve(
            con,
            run_id=str(con.execute("select run_id from runs").fetchall()[0][0]),
            backend="x",
            grader_id=str(con.execute("select grader_id from graders").fetchall()[0][0]),
            keys=[key],
            ceilings=[Decimal(1) / 10],
            price=PRICE,
            facts={},
            run_budget=None,
        )
        late = Reply(attempt, key, "2", "answered", "perhaps", usage={"prompt_tokens": 1000, "completion_tokens": 0})
        charges.ingest(con, [late])
    score, usd, replies = store.locked_query("select score, usd, replies from graded").rows[0]
    assert (score, replies) == (3, 2)
    assert usd == store.query("ledger")[0]["spent_usd"] > Decimal("0.00015")


def test_a_run_budget_counts_when_a_run_is_refused_beforehand(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path)
    with Run(
        store,
        Grade(load_rubric("accuracy")),
        script(tmp_path, PAID),
        version,
        budget=Decimal(1),
        run_budget=Decimal("0.0001"),
    ) as run:
        with pytest.raises(BudgetExceeded, match=r"\$0.0001 is free"):
            run.check_affordable(run.estimate())


def test_steps_of_paid_calls_are_on_record(store: Store, tmp_path: Path) -> None:
    grade(store, dataset(store, tmp_path, 2), script(tmp_path, PAID), budget=Decimal(1))
    assert column(store, "select state from attempt_steps order by attempt_id, step") == ["sent", "closed"] * 2


def test_two_interrupts_in_a_row_still_end_a_run_cleanly(store: Store, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys

    from conftest import cli_environment

    dataset(store, tmp_path, 300)
    (tmp_path / "p.toml").write_text(PAID + "delay_seconds = 0.01\nlines_per_attempt = 7\n")
    arguments = ["--db", str(store.path), "grade", "--grader", f"fake:{tmp_path}/p.toml", "--budget", "1", "--yes"]
    for wait in (1.6, 1.9, 2.3):
        with subprocess.Popen(
            [sys.executable, "-m", "alpasift.batcher.cli", *arguments],
            cwd=tmp_path,
            env=cli_environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            time.sleep(wait)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
            _, err = process.communicate(timeout=30)
        assert "Traceback" not in err
        assert "fault in alpasift" not in err
    assert column(store, "select count(*) from open_attempts") == [0]
    assert column(store, "select count(*) from runs") == column(store, "select count(*) from run_ends")


def test_a_query_is_answered_while_a_run_is_writing(store: Store, tmp_path: Path) -> None:
    version = dataset(store, tmp_path, 40)
    seen: list[int] = []

    def look() -> None:
        import subprocess
        import sys

        from conftest import cli_environment

        for _ in range(6):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "alpasift.batcher.cli",
                    "--db",
                    str(store.path),
                    "sql",
                    "select count(*) as n from graded",
                    "--csv",
                ],
                capture_output=True,
                text=True,
                env=cli_environment(),
                cwd=tmp_path,
            )
            seen.append(int(done.stdout.split()[1]))

    reader = threading.Thread(target=look)
    reader.start()
    assert grade(store, version, script(tmp_path, "delay_seconds = 0.12\n")).usable == 40
    reader.join()
    assert len(seen) == 6
    assert seen == sorted(seen)
    assert any(0 < n < 40 for n in seen)


def test_a_busy_database_names_the_process_that_holds_it(store: Store) -> None:
    import subprocess
    import sys

    code = f"import duckdb; con = duckdb.connect({str(store.path)!r}); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreBusy, match=f"process {holder.pid}"):
            Store(store.path, wait=0.2).query("ledger")
        holder.kill()
