"""Whatever the server does, whenever the process dies and however the budget is turned: nothing is paid beyond the cap.

The bill is the server's own. What it carried out though nobody asked for it (a second batch for one create, a second
execution of a line, results of questions that were never put, usage beyond all reason) is the only thing that may pass
the cap; it is booked, and an alarm stops all sending until a person has looked.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from alpasift.batcher.money import ledger
from alpasift.graders.rehearsal.server import Event
from batch_harness import expected, marked_store, scores
from batch_lives import KEY, Forks, Life, forking, living, needs_points, nth

ROWS = 6
EXAMPLES = int(os.environ.get("CAP_EXAMPLES", "12"))
FACTOR = 1000
"""How far beyond reason an overcharge goes: a line that cost this much was not worth a thousandth of it."""


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("points")) as made:
        yield made


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marked_store(tmp_path_factory.mktemp("rows"), ROWS).path


# -- what may happen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault of the server's and how often it befalls."""

    name: int | str
    times: int
    detail: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Step:
    """One run: what the server does, the budget in parts of the whole's worst case, and where the process dies."""

    faults: tuple[Fault, ...]
    budget: str
    batch_rows: int
    limit: bool
    enqueued: int | None
    death: tuple[str, str, int] | None


def fault(name: int | str, **details: list[Any]) -> st.SearchStrategy[Fault]:
    """The fault with each keyword at one of these values."""
    detail = st.tuples(*(st.tuples(st.just(k), st.sampled_from(values)) for k, values in details.items()))
    return st.builds(Fault, st.just(name), st.integers(1, 2), detail)


BOTH = [True, False]
FAULTS = st.one_of(
    fault(2, status=[None, 503]),
    fault(3),
    fault(4, lists=[0, 1, 2, 5]),
    fault(5, status=[500, 503]),
    fault(6, status=[None, 503]),
    fault(7, lost=BOTH),
    fault(10, limit=[500, 90_000]),
    fault(11),
    fault(11, http=[True], where=["create", "chat", "upload"]),
    fault(14),
    fault(16, polls=[1, 3]),
    fault(17, share=[0.3, 1.0], status=[400, 500]),
    fault(18, lines=[1, 3], executed=BOTH),
    fault(19, lines=[1, 2], same_id=BOTH, same_usage=BOTH),
    fault(20, executed=BOTH),
    fault(21, kind=["empty", "no_usage"], executed=BOTH),
    fault(22, lines=[1, 2], kind=["json", "utf8"]),
    fault(23, lines=[1, 2]),
    fault(25, status=[500, 502]),
    fault(26, at=[0.0, 0.5], clean=BOTH, whole_lines=BOTH),
    fault(28, usage=BOTH),
    fault(29, share=[0.0, 0.5], unlisted=[0, 1]),
    fault(30, share=[0.0, 0.5], unlisted=[0, 1], unasked=[True]),
    fault("server_error", where=["chat"], status=[500, 503], executed=BOTH),
    fault("server_error", where=["create", "upload", "polls", "content"], status=[500, 503], executed=BOTH),
    fault("lost_answer", where=["chat", "create", "upload"]),
    fault("html", where=["chat", "create", "upload", "retrieve", "list"]),
    fault("rate_limit", where=["chat", "create", "upload", "polls"], seconds=[0]),
    fault("overcharge", factor=[FACTOR]),
    fault("hostile_usage", kind=["negative", "bool", "cached", "text"]),
    fault("file_vanished"),
)
HIDES = (28, "server_error", "lost_answer", "html", "hostile_usage")
"""Faults by which something that was carried out may never be seen."""

DEATHS = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from(["chat", "upload", "create", "list", "retrieve", "content"]),
        st.sampled_from(["arrived", "done", "answered"]),
        st.integers(1, 3),
    ),
)
STEPS = st.lists(
    st.builds(
        Step,
        faults=st.lists(FAULTS, min_size=1, max_size=4).map(tuple),
        budget=st.sampled_from(["plenty", "plenty", "plenty", "plenty", "whole", "half", "line", "0"]),
        batch_rows=st.sampled_from([2, 3, ROWS]),
        limit=st.booleans(),
        enqueued=st.sampled_from([None, None, 100, 500]),
        death=DEATHS,
    ),
    min_size=1,
    max_size=3,
)


# -- what must hold -------------------------------------------------------------------------------------------------


def unasked(life: Life) -> Decimal:
    """What the server carried out and nobody had asked for, in dollars."""
    files = {batch["id"]: batch["input_file_id"] for batch in life.server.batches()}
    seen, usd = set[tuple[str, str]](), Decimal(0)
    for line in life.server.bill():
        honest = line.usd
        if line.usage["prompt_tokens"] > 100 * FACTOR:
            honest = line.usd / FACTOR
            usd += line.usd - honest
        if line.batch is None:
            continue
        which = (files[line.batch], line.custom_id)
        if which in seen or line.custom_id.startswith("stray-"):
            usd += honest
        seen.add(which)
    return usd


@dataclass
class Cap:
    """What has been allowed so far, and what an alarm forbids."""

    life: Life
    highest: Decimal = Decimal(0)

    def check(self) -> dict[str, Decimal]:
        """At any time: the balance adds up, and beyond the cap there is nothing but what nobody asked for."""
        extra, bill = unasked(self.life), self.life.server.billed_usd()
        found = self.life.store.query("ledger")[0]
        if found["budget_usd"] is None:
            assert (found["spent_usd"], found["reserved_usd"], found["unresolved_usd"], bill) == (0, 0, 0, 0)
            return found
        committed = found["spent_usd"] + found["reserved_usd"] + found["unresolved_usd"]
        assert committed + found["free_usd"] == found["budget_usd"]
        assert min(found["spent_usd"], found["reserved_usd"], found["unresolved_usd"]) >= 0
        assert found["spent_usd"] <= bill, "more was booked than the server billed"
        assert bill - extra <= committed, "the server billed what is on no account"
        assert bill - extra <= self.highest, "more was paid for than any budget allowed"
        assert committed - extra <= self.highest, "more was committed than any budget allowed"
        return found

    def alarms(self) -> int:
        return len(self.life.store.query("alarms"))

    def run(self, step: Step, usd: Decimal) -> int:
        """One run; what must not happen in it."""
        life, stands = self.life, self.alarms()
        before = life.store.query("ledger")[0]
        committed = before["spent_usd"] + before["reserved_usd"] + before["unresolved_usd"]
        posts = self.posts()
        self.highest = max(self.highest, usd)
        life.batch_rows = step.batch_rows
        more = ["--limit", str(ROWS)] if step.limit else []
        more += ["--enqueued-tokens", str(step.enqueued)] if step.enqueued else []
        arguments = life.grade_command(*more, budget=format(usd, "f"))
        code = life.is_hit(nth(*step.death), arguments) if step.death else life.run(arguments)
        note(f"exit {code}: {life.said[-1]}")
        assert code in (0, 1, 3, 4, -9), life.said[-1]
        if stands:
            assert code in (1, -9), life.said[-1]
            assert self.posts() == posts, "something was sent while an alarm stood"
        if committed >= usd:
            assert self.calls() == 0 or self.posts()["chat"] == posts["chat"], "a call was made beyond the cap"
        assert self.opened_after_an_alarm() == 0
        return code

    def posts(self) -> dict[str, int]:
        made = [logged for logged in self.life.server.requests_log if logged.method == "POST"]
        return {
            "chat": sum(logged.path.endswith("/chat/completions") for logged in made),
            "create": sum(logged.path.endswith("/batches") for logged in made),
            "upload": sum(logged.path.endswith("/files") for logged in made),
        }

    def calls(self) -> int:
        return sum(line.batch is None for line in self.life.server.bill())

    def opened_after_an_alarm(self) -> int:
        text = """
            select count(*) from attempts, (select min(recorded_at) as since from open_alarms)
            where ceiling_usd > 0 and opened_at > since
        """
        return int(self.life.store.locked_query(text).rows[0][0])


@pytest.fixture(scope="session")
def dollars(tmp_path_factory: pytest.TempPathFactory, forks: Forks, imported: Path) -> dict[str, Decimal]:
    """Budgets: nothing, the worst case of one call, half of it all, all of it, plenty."""
    with living(tmp_path_factory.mktemp("whole"), forks, imported) as life:
        assert life.run() == 0, life.said
        text = "select max(ceiling_usd) filter (where lines = 1), sum(ceiling_usd) from attempts"
        line, whole = life.store.locked_query(text).rows[0]
    return {"0": Decimal(0), "line": line, "half": whole / 2, "whole": whole, "plenty": Decimal(5)}


@needs_points
@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    derandomize=EXAMPLES < 20,
)
@given(steps=STEPS)
def test_nothing_passes_the_cap_but_what_nobody_asked_for(
    forks: Forks, imported: Path, dollars: dict[str, Decimal], steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as folder, living(Path(folder), forks, imported) as life:
        cap = Cap(life)
        for step in steps:
            life.server.behave()
            for one in step.faults:
                life.server.misbehave(one.name, one.times, **dict(one.detail))
            cap.run(step, dollars[step.budget])
            cap.check()
        life.server.behave()
        finish(cap, hidden=any(s.death or any(f.name in HIDES for f in s.faults) for s in steps))


def finish(cap: Cap, *, hidden: bool) -> None:
    """The faults are over: a person looks at the alarms and raises the budget, and the same command does the rest."""
    life, runs = cap.life, 0
    alarmed = cap.alarms() > 0
    calm = Step((), "plenty", ROWS, False, 2_000_000, None)
    cap.highest = Decimal(5)
    while True:
        if cap.alarms():
            alarmed = True
            assert life.run(life.command("ledger", "acknowledge", "--reason", "looked at it")) == 0
        life.batch_rows = calm.batch_rows
        code = life.run(life.grade_command("--retry", "--enqueued-tokens", "2000000"))
        note(f"exit {code}: {life.said[-1]}")
        found, runs = cap.check(), runs + 1
        if code == 0:
            break
        assert code in (1, 4), life.said[-1]
        assert runs < 6, f"it was not done after {runs} runs: {life.said[-1]}"
    event(f"{runs} runs to the end")
    event(f"{'an' if alarmed else 'no'} alarm; {'some' if found['unresolved_usd'] else 'nothing'} unresolved")
    assert scores(life.store) == expected(ROWS)
    assert found["reserved_usd"] == 0
    bill, extra = life.server.billed_usd(), unasked(life)
    if not hidden:
        assert bill <= found["spent_usd"] + found["unresolved_usd"], "what nobody asked for is not booked"
        assert alarmed == (extra > 0)
    assert life.server.errors == []


# -- what an alarm stops, and what it must not stop -------------------------------------------------------------------


@pytest.fixture
def life(tmp_path: Path, forks: Forks, imported: Path) -> Iterator[Life]:
    with living(tmp_path, forks, imported) as made:
        made.batch_rows = 3
        yield made


def looking(life: Life, command: str, *more: str) -> list[str]:
    return life.command(command, *more, "--wait", "--poll-seconds", "0.05", "--grace-seconds", "0")


def raise_alarm(life: Life) -> None:
    with life.store.transaction() as con:
        ledger.alarm(con, "unasked_work", "somebody else's work was charged")


@needs_points
def test_an_alarm_stops_sending_and_what_is_out_is_still_collected(life: Life) -> None:
    life.server.batch_seconds = 1000.0
    assert life.run(life.grade_command("--no-wait")) == 4, life.said
    raise_alarm(life)
    before = len(life.server.requests_log)
    assert life.run(life.grade_command("--no-wait")) == 1, life.said
    assert "somebody else's work was charged" in life.said[-1]
    assert not [logged for logged in life.server.requests_log[before:] if logged.method == "POST"]
    polls = iter(range(10**6))
    life.watch = lambda event: life.server.advance(300 * (next(polls) % 10 == 9))
    life.server.hook = life.watch
    assert life.run(looking(life, "collect")) == 1, life.said
    assert "alarm: somebody else's work was charged" in life.said[-1]
    assert scores(life.store) == expected(ROWS)
    assert life.check_law()["reserved_usd"] == 0


@needs_points
def test_an_alarm_stops_nobody_from_cancelling(life: Life) -> None:
    life.server.batch_seconds = 1000.0
    assert life.run(life.grade_command("--no-wait")) == 4, life.said
    raise_alarm(life)

    def watch(event: Event) -> None:
        if event.detail["route"] == "cancel" and event.moment == "done":
            life.server.advance(60)

    life.server.hook = life.watch = watch
    assert life.run(looking(life, "cancel", "--all")) == 1, life.said
    assert "alarm: somebody else's work was charged" in life.said[-1]
    assert {batch["status"] for batch in life.server.batches()} == {"cancelled"}
    assert life.check_law()["reserved_usd"] == 0


@needs_points
def test_two_batches_of_one_create_that_both_failed_cost_nothing(life: Life) -> None:
    life.server.misbehave(7)
    life.server.misbehave(10, times=2)
    codes = [life.run() for _ in range(3)]
    assert codes[-1] == 0, life.said
    found = life.check_law()
    assert (found["spent_usd"], found["reserved_usd"], found["unresolved_usd"]) == (life.server.billed_usd(), 0, 0)
    assert scores(life.store) == expected(ROWS)


@needs_points
@pytest.mark.parametrize("fault", [(10, {}), (28, {"usage": True}), (11, {})])
def test_the_twin_of_a_batch_that_ended_badly_is_found_and_booked(
    life: Life, fault: tuple[int, dict[str, Any]]
) -> None:
    life.server.misbehave(7)
    life.server.misbehave(fault[0], **fault[1])
    life.run()
    life.run()
    bill, found = life.server.billed_usd(), life.store.query("ledger")[0]
    assert unasked(life) > 0 or fault[0] in (10, 11)
    assert found["spent_usd"] <= bill <= found["spent_usd"] + found["reserved_usd"] + found["unresolved_usd"]
    assert life.run(life.command("ledger", "acknowledge", "--reason", "looked at it")) == 0
    life.goes_on(life.grade_command("--retry"))
    found = life.check_law()
    assert found["reserved_usd"] == 0
    assert scores(life.store) == expected(ROWS)


@needs_points
def test_answers_are_kept_when_only_the_file_of_errors_is_gone(life: Life) -> None:
    life.server.misbehave(17, share=0.3)
    life.batch_rows = ROWS

    def watch(event: Event) -> None:
        if (event.detail["route"], event.moment) == ("retrieve", "answered"):
            for batch in life.server.batches():
                if batch["error_file_id"]:
                    connect(life).files.delete(batch["error_file_id"])
                    life.server.hook = None

    life.server.hook = watch
    assert life.run() in (0, 4), life.said
    found = life.check_law()
    assert (found["spent_usd"], found["reserved_usd"]) == (life.server.billed_usd(), 0)
    assert found["unresolved_usd"] > 0, "what the lost file said of its lines was taken for granted"
    assert sum(score is not None for score in scores(life.store).values()) == ROWS - 1


def connect(life: Life) -> Any:
    import openai

    return openai.OpenAI(base_url=life.server.url, api_key=KEY, max_retries=0)
