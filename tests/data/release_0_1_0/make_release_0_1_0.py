"""How release_0_1_0.duckdb.gz came to be: a small database made by release 0.1.0 itself, with some of everything in it.

    python make_release_0_1_0.py CHECKOUT FOLDER

CHECKOUT is a checkout of the release, whose code does all the work: Python needs what the release needs. Everything
that costs money goes to the rehearsal server of the release, on this machine, in play money. FOLDER gets:

    release_0_1_0.duckdb.gz   the database
    release_0_1_0.json        what the release's own views say of it, every value as DuckDB writes it as text, doubles
                              with 9 decimals; rows sorted
    in_flight.json            the batches in flight: as they were submitted and as they completed, with all files'
                              content
    exported/                 the request file that was exported by hand, and results.jsonl, what became of it
    after_collect.json        the views once the release has collected the batches and taken results.jsonl, in a copy

in_flight_server.py has to lie beside this script; it answers for the batches again. The ids that are hashes (examples,
dataset versions, graders, rubrics, setups, questions) come out the same each time; runs, attempts and times do not.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REAL = "https://api.openai.com/v1"
KEY = "rehearsal"
MARKER = r"\(mark ([^)]+)\)"
"""The rehearsal server gives a row the score that stands in it."""

FACTS = (
    "datasets",
    "grader_labels",
    "rubric_labels",
    "setups",
    "questions",
    "graded",
    "gradings",
    "balance",
    "money_by_run",
    "money_by_batch",
    "unresolved_attempts",
    "open_attempts",
    "open_alarms",
    "batches",
    "run_list",
    "selection_list",
    "training_list",
    "machine",
)
"""Views, and tables that no view shows as they are. Of examples and dataset rows only the ids."""
OTHERS = {
    "examples": "select example_id from examples",
    "dataset_rows": "select version_id, position, example_id, category from dataset_rows",
    "set_aside": "select version_id, position, line, reason from set_aside",
    "selection_rows": "select selection_id, position from selection_rows",
    "calibrations": "select * exclude (facts) from calibrations",
    "ledger_sums": "select kind, count(*) as entries, sum(reserved_usd) as reserved_usd, sum(spent_usd) as spent_usd, "
    "sum(unresolved_usd) as unresolved_usd from ledger group by kind",
}
AFTER = {
    "graded": "select * exclude (recorded_at) from graded",
    "balance": "select * from balance",
    "batches": "select attempt_id, batch_id, phase, closed, lines, reserved_usd, spent_usd, unresolved_usd "
    "from batches",
    "open_attempts": "select attempt_id from open_attempts",
}

# -- rows ---------------------------------------------------------------------------------------------------------

CAPITALS = (
    ("Norway", "Oslo", "5"),
    ("Italy", "Rome", "4.5"),
    ("Peru", "Lima", "5"),
    ("Egypt", "Cairo", "4.5"),
    ("Ecuador", "Quito", "5"),
    ("Kenya", "Nairobi", "4.5"),
    ("Finland", "Helsinki", "5"),
    ("Greece", "Athens", "4.5"),
    ("Japan", "Tokyo", "5"),
    ("Ghana", "Accra", "5"),
    ("Chile", "Santiago", "4.5"),
    ("Latvia", "Riga", "5"),
    ("France", "Lyon", "1"),
    ("Spain", "Seville", "1.5"),
    ("Turkey", "Istanbul", "2"),
    ("Canada", "Toronto", "1"),
    ("Brazil", "Rio de Janeiro", "2.5"),
    ("Morocco", "Casablanca", "0.5"),
    ("China", "Shanghai", "1"),
    ("India", "Mumbai", "2"),
    ("Vietnam", "Hue", "3"),
    ("Poland", "Cracow", "1.5"),
    ("Nigeria", "Lagos", "2"),
    ("Australia", "Sydney", "1"),
    ("Germany", "Munich", "0.5"),
    ("Pakistan", "Karachi", "2"),
    ("Ukraine", "Lviv", "1.5"),
    ("Sweden", "Malmo", "1"),
    ("Iran", "Isfahan", "2.5"),
)


def capitals() -> list[Any]:
    """29 rows, two of them once more, some special ones, and two lines that cannot be used."""
    rows: list[Any] = [
        {
            "instruction": f"What is the capital of {country}?",
            "input": "",
            "output": f"{city}. (mark {mark})",
            "category": "geography",
            "id": 100 + n,
        }
        for n, (country, city, mark) in enumerate(CAPITALS)
    ]
    rows[3]["system"] = "You answer in one word."
    rows.insert(7, dict(rows[1]))
    rows.append(dict(rows[12], id=900))
    rows.append('{"instruction": "A line that is cut off", "outp')
    rows.append({"instruction": "Say nothing.", "input": "", "output": "", "category": "other"})
    rows.append(
        {"instruction": "Translate.", "input": "naïve café — 東京 🗼", "output": "naive cafe, Tokyo (mark none)"}
    )
    rows.append({"instruction": "Name the list.", "input": "a\tb", "output": ["no", "text"]})
    rows.append(
        {"instruction": "Summarise.", "input": "No input", "output": "I'm sorry, but as an AI I cannot do that."}
    )
    return rows


def talks() -> list[Any]:
    """Conversations: with a system message, with earlier turns, and one without an answer."""

    def talk(*turns: tuple[str, str]) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    return [
        talk(("system", "You are a patient teacher."), ("user", "What is 7 times 8?"), ("assistant", "56. (mark 5)")),
        talk(
            ("user", "I have a cat."),
            ("assistant", "How nice! What is its name?"),
            ("user", "Guess."),
            ("assistant", "Is it Tom? (mark 3.5)"),
        ),
        talk(
            ("system", "Be brief."),
            ("user", "Red or blue?"),
            ("assistant", "Blue."),
            ("user", "Why?"),
            ("assistant", "It is calmer. (mark 4)"),
        ),
        talk(("user", "Write a line about rain."), ("assistant", "Rain counts the leaves,\none by one. (mark 4.5)")),
        talk(("user", "Hello?")),
        talk(("user", "2 + 2?"), ("assistant", "5 (mark 0)")),
        talk(("user", "Spell 'cat'."), ("assistant", "c-a-t (mark 5)")),
    ]


JUDGE = """
[[reply]]
match = "capital of (Norway|Italy|Peru|Ecuador|Kenya|Finland|Japan|Ghana|Chile|Latvia)"
text = "4.5\\nThe city is right."
logprobs = { "4" = -2.3026, "4.5" = -0.1054 }
[[reply]]
match = "capital of Poland"
text = "I would rather not give a number."
logprobs = { "4" = -9.0 }
[[reply]]
match = "capital of Nigeria"
text = "7"
[[reply]]
match = "capital of Vietnam"
text = "4"
finish_reason = "length"
[[reply]]
match = "Translate"
text = "I'm sorry, I cannot rate this."
[[reply]]
match = "capital of India"
outcome = "rejected_free"
error = "too_long: 9,000 tokens"
[[reply]]
match = "capital of (Spain|France)"
text = "4.5\\nIt sounds right."
logprobs = { "4.5" = -0.6931, "1" = -0.6931 }
[[reply]]
match = ""
text = "1.5\\nThe city is wrong."
logprobs = { "1.5" = -0.01 }
"""
DEAR = """
usd_per_million_input = "0.15"
usd_per_million_output = "0.60"
lines_per_attempt = 4
[[reply]]
match = "cat"
outcome = "unknown"
error = "no_answer: the line broke"
[[reply]]
match = "rain"
outcome = "rejected_free"
error = "backend_error: the server said 500"
"""
DYING = """
usd_per_million_input = "0.15"
usd_per_million_output = "0.60"
[[reply]]
match = "capital of Peru"
die = "sent"
"""


def note(what: str, said: object) -> None:
    """A line about how it goes."""
    sys.stdout.write(f"{what}: {said}\n")


# -- the release at work ------------------------------------------------------------------------------------------


class Lab:
    """The database and the commands of the release."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout, folder
        self.db = folder / "release.duckdb"

    def cli(self, *arguments: object, codes: Sequence[int] = (0,), db: Path | None = None) -> str:
        """One command in a process of its own."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ALPASIFT_", "OPENAI_"))}
        done = subprocess.run(
            [sys.executable, "-m", "batcher.cli", "--db", str((db or self.db).name), *map(str, arguments)],
            cwd=(db or self.db).parent,
            env={**kept, "PYTHONPATH": str(self.checkout), "OPENAI_API_KEY": KEY},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode not in codes:
            raise SystemExit(
                f"alpasift {' '.join(map(str, arguments))}: code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def write(self, name: str, rows: Sequence[Any]) -> str:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (self.folder / name).write_text("\n".join(lines) + "\n", "utf-8")
        return name

    def store(self, db: Path | None = None) -> Any:
        from batcher.store import Store

        return Store(db or self.db).existing()

    def paid(
        self,
        spec: str,
        server: Any,
        dataset: str,
        rubric: str,
        *,
        stops: bool = False,
        limit: int | None = None,
        run_budget: str | None = None,
        asking: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """`grade` as the command does it, at a server that stands for the real one. Returns how it ended."""
        from batcher.cli.grade import grade_dataset
        from batcher.datasets import resolve
        from batcher.tasks.grade import contract_for
        from graders import AlpaSiftError, open_backend
        from graders.rubric import load_rubric

        store = self.store()
        if spec.startswith("openai_batch"):
            options = {"poll_seconds": 0.02, "grace_seconds": 0.0, **options}
        backend = open_backend(spec, {"base_url": server.url, "stands_for": REAL, **options})
        try:
            task = contract_for(load_rubric(rubric), backend, **(asking or {}))
            summary = grade_dataset(
                store,
                resolve(store, dataset).version_id,
                backend,
                task,
                limit=limit,
                budget=Decimal(5),
                run_budget=Decimal(run_budget) if run_budget else None,
                yes=True,
                retry=False,
                quiet=True,
                command="grade",
            )
        except AlpaSiftError as error:
            if not stops:
                raise
            return f"{type(error).__name__}: {error}"
        finally:
            backend.close()
        return str(summary.outcome)


def fill(lab: Lab, server: Any) -> None:
    """All that is in the database, but for what is out at the end."""
    from batcher import accounts

    for name, text in (("judge.toml", JUDGE), ("dear.toml", DEAR), ("dying.toml", DYING)):
        (lab.folder / name).write_text(text, "utf-8")

    def grade(grader: str, *more: object, codes: Sequence[int] = (0,)) -> None:
        lab.cli("grade", "--grader", grader, *more, "--quiet", codes=codes)

    rows = capitals()
    lab.cli("import", lab.write("capitals.jsonl", rows), "--dataset", "capitals")
    lab.cli("import", lab.write("talks.jsonl", talks()), "--dataset", "talks")

    # the first version: local graders, labels, comparing and choosing
    first = ("--dataset", "capitals", "--rubric", "accuracy")
    grade("rules", "--dataset", "capitals")
    grade("fake:judge.toml", *first, "--contract", "explain", codes=(0, 4))
    grade("fake:judge.toml", *first, "--contract", "expected", "--limit", 12, codes=(0, 4))
    grade("fake", "--dataset", "capitals", "--rubric", "helpfulness", "--limit", 4)
    people = [{"index": n + (n >= 7), "label": float(mark)} for n, (_, _, mark) in enumerate(CAPITALS)]
    lab.cli("labels", lab.write("people.jsonl", people), "--as", "people", *first)
    lab.cli("agree", "fake:judge.toml", "labels:people", *first)
    lab.cli(
        "calibrate", "--cheap", "fake:judge.toml", "--reference", "labels:people", "--sample", 28, *first, "--quiet"
    )
    lab.cli("select", "--min-score", 4.5, "--name", "kept", "--grader", "fake:judge.toml", *first)
    lab.cli("select", "--random", "--match", "kept", "--name", "baseline", "--dataset", "capitals", "--seed", 7)
    lab.cli(
        "select",
        "--top",
        8,
        "--quota",
        "geography:5",
        "--nested",
        "2,4",
        "--name",
        "best",
        "--grader",
        "labels:people",
        *first,
    )
    train(lab)

    # the second version: one row changed, one more; whatever names the dataset now means this one
    rows[0] = dict(rows[0], output="Oslo, on the Oslofjord. (mark 5)")
    rows.append(
        {"instruction": "What is the capital of Cuba?", "input": "", "output": "Havana. (mark 5)", "category": "new"}
    )
    lab.cli("import", lab.write("capitals.jsonl", rows), "--dataset", "capitals")
    for dataset in ("capitals@2", "talks"):
        grade("rules", "--dataset", dataset)
    grade("fake", "--dataset", "talks", "--rubric", "accuracy", "--contract", "explain")
    grade("fake", "--dataset", "talks", "--rubric", "helpfulness", "--samples", 3)
    grade("fake", "--dataset", "talks", "--rubric", "additive", "--samples", 3, "--temperature", 1)
    lab.cli("probe", "--dataset", "capitals@2", "-n", 5, "--grader", "fake", "--rubric", "curation", "--quiet")
    lab.cli("select", "--min-score", 1, "--name", "kept", "--dataset", "capitals@2", "--grader", "rules")
    kept = [{"index": n, "good": n % 3 == 0} for n in range(6)]
    lab.cli("labels", lab.write("good.jsonl", kept), "--as", "good", "--binary", "--dataset", "talks")
    stars = [
        {**{key: rows[n][key] for key in ("instruction", "input", "output")}, "stars": 1 + n % 5} for n in range(1, 6)
    ]
    lab.cli(
        "labels",
        lab.write("stars.jsonl", stars),
        "--as",
        "stars",
        "--field",
        "stars",
        "--scale",
        "1:5:1",
        "--threshold",
        4,
        "--dataset",
        "capitals@2",
    )

    # paid: by batch, with faults; by calls, with an answer that is lost and one that is charged too much
    server.misbehave(18, lines=1)
    server.misbehave(21, lines=1)
    server.misbehave(17, share=0.1)
    note("batch, with faults", lab.paid("openai_batch:gpt-4.1-nano", server, "capitals@2", "accuracy"))
    server.behave()
    explain = {"contract": "explain"}
    note(
        "batch, explained",
        lab.paid("openai_batch:gpt-4.1-nano", server, "capitals@2", "helpfulness", asking=explain, batch_rows=10),
    )
    server.misbehave("server_error", status=500, executed=True)
    note(
        "calls, one lost", lab.paid("openai_chat:gpt-4o-mini", server, "talks", "helpfulness", stops=True, in_flight=1)
    )
    server.behave()
    server.misbehave("overcharge", factor=1000)
    note("calls, an alarm", lab.paid("openai_chat:gpt-4.1-nano", server, "talks", "curation", stops=True, in_flight=1))
    server.behave()
    lab.cli("ledger", "acknowledge", "--reason", "the provider took the double charge back")
    note(
        "calls, a small budget",
        lab.paid("openai_chat:gpt-4o", server, "talks", "accuracy", limit=6, run_budget="0.002", in_flight=1),
    )
    grade("fake:dear.toml", "--dataset", "talks", "--rubric", "accuracy", "--yes", codes=(0, 4))
    grade("fake:dying.toml", "--dataset", "capitals@2", "--rubric", "accuracy", "--limit", 5, "--yes", codes=(-9, 137))
    grade("rules", "--dataset", "talks")  # the next run closes what the dead one left

    # what a person books: a settlement, one that is taken back, and one with nothing charged
    store = lab.store()
    owed = accounts.list_unresolved(store)
    note("unresolved attempts", len(owed))
    accounts.settle(store, [owed[0].attempt_id], Decimal("0.00012"), "usage page of the day")
    wrong = accounts.settle(store, [owed[1].attempt_id], Decimal("0.0002"), "read from the wrong day")
    accounts.reverse(store, wrong.act_id, "it was the wrong day")
    accounts.settle(store, [owed[-1].attempt_id], None, "not on the invoice")


def train(lab: Lab) -> None:
    """A training of two parts, the first of which was stopped, recorded as `train` does; no model is needed."""
    from batcher.trainings import Recorder

    store = lab.store()
    with store.reader() as con:
        chosen, version = con.execute(
            "select selection_id::varchar, version_id::varchar from selection_list where label = 'kept'"
        ).fetchall()[0]
    for begin, end, outcome in ((0, 3, "stopped"), (2, 4, "done")):
        part = Recorder(
            store,
            folder=lab.folder / "runs" / "kept",
            base=Path("models/tiny"),
            recipe="alpagasus-7b",
            method="lora",
            facts={"steps": 4, "rows": 12},
            device="cpu",
            from_step=begin,
            usd_per_hour=Decimal("0.05"),
            version_id=version,
            selection_id=chosen,
        )
        for step in range(begin + 1, end + 1):
            part.step(
                {
                    "step": step,
                    "epoch": (step - 1) // 2,
                    "loss": 3 / step,
                    "learning_rate": 1e-4,
                    "grad_norm": 1.0,
                    "examples": 8,
                    "tokens": 400,
                    "tokens_per_second": 50.0,
                    "peak_bytes": 1 << 20,
                }
            )
        if not part.end(outcome):
            raise SystemExit("the training could not be written down")


def send_out(lab: Lab, server: Any) -> Path:
    """Two batches that are not collected, and a request file that is carried manually. Returns the file's folder."""
    server.batch_seconds = 3600.0
    ended = lab.paid("openai_batch:gpt-4.1-mini", server, "talks", "accuracy", wait=False, batch_rows=3)
    note("batches in flight", ended)
    carried = lab.folder / "exported"
    lab.cli(
        "batch",
        "export",
        carried,
        "--grader",
        "openai_batch:gpt-4.1",
        "--dataset",
        "capitals@2",
        "--limit",
        5,
        "--yes",
        codes=(0, 4),
    )
    return carried


def run_by_hand(server: Any, exported: Path) -> bytes:
    """What becomes of an exported file at the provider: the content of its output file."""
    import openai

    server.batch_seconds = 0.0
    client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
    with exported.open("rb") as file:
        sent = client.files.create(file=(exported.name, file), purpose="batch")
    batch = client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = client.batches.retrieve(batch.id)
    return client.files.content(str(done.output_file_id)).content


def state_of(server: Any, store: Any) -> dict[str, Any]:
    """The batches that are out, as submitted; `complete` adds the rest."""
    out = {str(row["batch_id"]): str(row["attempt_id"]) for row in store.query("batches_out") if row["batch_id"]}
    with store.reader() as con:
        ledger = con.execute("select value from meta where key = 'ledger'").fetchall()[0][0]
        requests = dict(con.execute("select attempt_id::varchar, facts::json ->> 'file' from attempts").fetchall())
    batches = [
        {"attempt": out[view["id"]], "request_file": requests[out[view["id"]]], "submitted": view}
        for view in server.batches()
        if view["id"] in out
    ]
    return {
        "base_url": server.url,
        "stands_for": REAL,
        "key": KEY,
        "marker": MARKER,
        "ledger": ledger,
        "batches": batches,
    }


def complete(server: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state with the batches completed and the content of every file."""
    server.advance(7200)
    views = {view["id"]: view for view in server.batches()}
    files = {view["id"]: view for view in server.files()}
    state["files"] = {}
    for one in state["batches"]:
        one["completed"] = views[one["submitted"]["id"]]
        for name in ("input_file_id", "output_file_id", "error_file_id"):
            if (file_id := one["completed"][name]) is not None:
                content = server._files[file_id].path.read_bytes().decode()
                view = {k: v for k, v in files[file_id].items() if k != "deleted"}
                state["files"][file_id] = {"object": view, "content": content}
    return state


# -- what is kept -------------------------------------------------------------------------------------------------


def facts(store: Any, queries: Mapping[str, str]) -> dict[str, Any]:
    """Columns and sorted rows of some queries, every value as text; doubles, whose sums vary, with 9 decimals."""
    found: dict[str, Any] = {}
    with store.reader() as con:
        for name, text in queries.items():
            kinds = con.execute(f"describe {text}").fetchall()
            columns = [f'round("{c}", 9) as "{c}"' if kind == "DOUBLE" else f'"{c}"' for c, kind, *_ in kinds]
            inner = f"select {', '.join(columns)} from ({text})"
            rows = con.execute(f"select columns(*)::varchar from ({inner}) order by all").fetchall()
            found[name] = {"columns": [c for c, *_ in kinds], "rows": [list(row) for row in rows]}
    return found


def counts(store: Any) -> dict[str, int]:
    with store.reader() as con:
        names = [n for (n,) in con.execute("select table_name from duckdb_tables() order by 1").fetchall()]
        return {name: con.execute(f"select count(*) from {name}").fetchall()[0][0] for name in names}


def as_text(value: Mapping[str, Any]) -> str:
    """JSON with a line for each row."""
    parts = []
    for name, one in value.items():
        if isinstance(one, dict) and set(one) == {"columns", "rows"}:
            rows = ",\n".join("   " + json.dumps(row, ensure_ascii=False) for row in one["rows"])
            inside = f'{{\n  "columns": {json.dumps(one["columns"])},\n  "rows": [\n{rows}\n  ]\n }}'
        else:
            inside = json.dumps(one, ensure_ascii=False)
        parts.append(f" {json.dumps(name)}: {inside}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def collected(lab: Lab, database: Path, state: Mapping[str, Any], results: Path, *, again: bool) -> dict[str, Any]:
    """What the release makes of the batches and of the file, in a copy of the database that was adopted."""
    from batcher.batches import collect
    from graders.rehearsal import Rehearsal

    answers = import_module("in_flight_server")
    copy = lab.folder / f"copy{again:d}" / "copy.duckdb"
    copy.parent.mkdir()
    shutil.copy2(database, copy)
    lab.cli("ledger", "adopt", "--reason", "a copy to try", db=copy)
    store = lab.store(copy)
    options = {"stands_for": state["stands_for"], "poll_seconds": 0.02, "grace_seconds": 0.0}
    if again:
        with Rehearsal(marker=state["marker"]) as server:
            answers.into_rehearsal(server, state)
            found = collect(store, {"base_url": server.url, **options}, wait=True)
    else:
        with answers.serve(state) as url:
            found = collect(store, {"base_url": url, **options}, wait=True)
    lab.cli("batch", "import", results.resolve(), db=copy)
    after = facts(store, AFTER)
    if found.still_out or after["open_attempts"]["rows"]:
        raise SystemExit(f"something is still out: {found}")
    return after


def main() -> None:
    checkout, target = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    sys.path[:0] = [str(checkout), str(HERE)]
    for name in [n for n in os.environ if n.startswith(("ALPASIFT_", "OPENAI_"))]:
        del os.environ[name]
    os.environ["OPENAI_API_KEY"] = KEY
    import batcher
    from graders.rehearsal import Rehearsal

    if not Path(batcher.__file__).resolve().is_relative_to(checkout):
        raise SystemExit(f"{batcher.__file__} is not the checkout's")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="alpasift-release-") as temporary, Rehearsal(marker=MARKER) as server:
        lab = Lab(checkout, Path(temporary))
        fill(lab, server)
        carried = send_out(lab, server)
        store = lab.store()
        state = state_of(server, store)
        with store._connection(read_only=False, wait=10) as con:
            con.execute("checkpoint")
        database = lab.folder / "kept.duckdb"
        shutil.copy2(lab.db, database)
        before = {
            "release": "0.1.0",
            "counts": counts(store),
            **facts(store, {**{name: f"select * from {name}" for name in FACTS}, **OTHERS}),
        }
        kept = target / "exported"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for file in carried.glob("*.jsonl"):
            shutil.copyfile(file, kept / file.name)
        (exported,) = kept.glob("alpasift-*.jsonl")
        (kept / "results.jsonl").write_bytes(run_by_hand(server, exported))
        state = json.loads(json.dumps(complete(server, state)))
        after = collected(lab, database, state, kept / "results.jsonl", again=False)
        if collected(lab, database, state, kept / "results.jsonl", again=True) != after:
            raise SystemExit("the two servers do not bring the same")
        with gzip.GzipFile(target / "release_0_1_0.duckdb.gz", "wb", 9, mtime=0) as out:
            out.write(database.read_bytes())
        (target / "release_0_1_0.json").write_text(as_text(before), "utf-8")
        (target / "after_collect.json").write_text(as_text(after), "utf-8")
        (target / "in_flight.json").write_text(json.dumps(state, ensure_ascii=False, indent=1) + "\n", "utf-8")
        note("errors of the server", server.errors)


if __name__ == "__main__":
    main()
