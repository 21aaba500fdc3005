"""What people query: the views with their columns, the named queries, the recipes of the manual."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from alpasift.batcher.store import Store, column_meanings, relation_texts, relations, sql_texts
from conftest import ROOT, Ran, call_cli, new_store, write_rows

Cli = Callable[..., Ran]
RECIPES = re.findall(r"## (.+?)\n.*?```sql\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text("utf-8"), re.S)

PAID = """
usd_per_million_input = "0.15"
usd_per_million_output = "0.60"
"""
UNREADABLE = """
[[reply]]
match = "fact 3[.]"
text = "I would rather not say."
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A database with two graders, rows that repeat and rows that were skipped, and a selection. Tests only read."""
    folder = tmp_path_factory.mktemp("lab")

    def alpasift(*arguments: object) -> Ran:
        return call_cli(arguments, cwd=folder)

    rows = [
        {
            "instruction": f"Name fact {i % 18}.",
            "input": "",
            "output": "A fact. " * (1 + i % 18),
            "category": "ab"[i % 2],
        }
        for i in range(20)
    ]
    write_rows(folder / "rows.jsonl", [*rows, {"instruction": "no answer"}, {"instruction": "", "output": "none"}])
    assert alpasift("import", "rows.jsonl").code == 0
    assert alpasift("grade", "--grader", "rules").code == 0
    (folder / "paid.toml").write_text(PAID + UNREADABLE)
    assert alpasift("grade", "--grader", "fake:paid.toml", "--rubric", "accuracy", "--budget", 1, "--yes").code == 0
    assert alpasift("select", "--grader", "fake:paid.toml", "--top", 5, "--name", "kept").code == 0
    return alpasift


def test_there_are_thirteen_recipes() -> None:
    assert len(RECIPES) == 13


@pytest.mark.parametrize("text", [text for _, text in RECIPES], ids=[title for title, _ in RECIPES])
def test_each_recipe_of_the_manual_answers(lab: Cli, text: str) -> None:
    asked = lab("sql", text, "--json")
    assert asked.code == 0, asked.err
    rows = json.loads(asked.out)
    assert rows, "the recipe finds nothing in a database that holds what it asks for"


def test_the_recipes_use_only_views_for_people() -> None:
    known = {found.name: found.internal for found in relation_texts()}
    for title, text in RECIPES:
        used = re.findall(r"\b(?:from|join) (\w+)", text)
        assert used, title
        assert [name for name in used if known[name]] == [], title


def test_schema_lists_what_is_for_people_and_with_all_the_rest(lab: Cli) -> None:
    listed = [row["name"] for row in json.loads(lab("schema", "--json").out)]
    assert {"graded_rows", "selected_rows", "answer_costs", "skipped_rows"} <= set(listed)
    assert not {"latest_readings", "replies", "attempts"} & set(listed)
    everything = [row["name"] for row in json.loads(lab("schema", "--all", "--json").out)]
    assert {"latest_readings", "replies", "attempts", *listed} <= set(everything)


def test_schema_of_a_view_gives_its_columns_and_a_wrong_name_what_is_like_it(lab: Cli) -> None:
    columns = json.loads(lab("schema", "score_counts", "--json").out)
    assert {c["column"] for c in columns} == {"rows", "score", "reason", "version_id", "grader_id", "rubric_id"}
    wrong = lab("schema", "selected_row")
    assert wrong.code == 1
    assert "did you mean selected_rows" in wrong.err


def test_every_view_says_what_one_row_is_and_every_table_and_view_is_known(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.duckdb")
    found = relations(store, internal=True)
    with store.reader() as con:
        there = con.execute(
            "select view_name from duckdb_views() where not internal union all select table_name from duckdb_tables()"
        ).fetchall()
    assert {r.name for r in found} >= {name for (name,) in there} - {"migrations", "views_state"}
    assert [r.name for r in found if r.kind == "view" and len(r.doc) < 20] == []


def test_query_lists_what_is_for_people_and_with_all_the_rest(lab: Cli) -> None:
    listed = {row["name"] for row in json.loads(lab("query", "--json").out)}
    assert {"scores", "deciles", "runs", "skipped", "answer_costs"} <= listed
    assert "unseen_by_attempt" not in listed
    everything = {row["name"] for row in json.loads(lab("query", "--all", "--json").out)}
    assert everything == {q.name for q in sql_texts("queries")}


def test_a_list_cuts_no_description_in_the_middle(lab: Cli) -> None:
    for command in (("query",), ("schema",), ("query", "--all")):
        assert "\N{HORIZONTAL ELLIPSIS}" not in lab(*command).out


def test_the_rows_of_a_selection_stand_beside_every_grade_of_theirs(lab: Cli) -> None:
    rows = json.loads(
        lab(
            "sql", "select position, grader, score, by_selector from selected_rows where selection = 'kept'", "--json"
        ).out
    )
    assert len(rows) == 10, "five rows, two graders"
    assert {(r["grader"], r["by_selector"]) for r in rows} == {("rules", False), ("fake:paid.toml", True)}
    lowest = min(r["score"] for r in rows if r["by_selector"])
    above = json.loads(
        lab(
            "sql",
            f"select count(*) as n from graded_rows where grader = 'fake:paid.toml' and score > {lowest}",
            "--json",
        ).out
    )
    assert above[0]["n"] <= 5


def test_deciles_hold_every_scored_row_in_order(lab: Cli) -> None:
    deciles = json.loads(lab("query", "deciles", "grader=fake:paid.toml", "--json").out)
    assert [d["decile"] for d in deciles] == list(range(1, 11))
    scored = json.loads(
        lab(
            "sql",
            "select count(*) as n from graded_rows where grader = 'fake:paid.toml' and score is not null",
            "--json",
        ).out
    )
    assert sum(d["rows"] for d in deciles) == scored[0]["n"]
    assert [d["lowest"] for d in deciles] == sorted(d["lowest"] for d in deciles)


def test_skipped_rows_are_counted_by_reason(lab: Cli) -> None:
    counted = json.loads(lab("query", "skipped", "--json").out)
    assert sum(row["rows"] for row in counted) == 2


def test_answer_costs_name_the_grader_and_add_up_to_what_was_spent(alpasift: Cli, tmp_path: Path) -> None:
    (tmp_path / "paid.toml").write_text(PAID)
    write_rows(tmp_path / "rows.jsonl", [{"instruction": f"Say {i}.", "output": str(i)} for i in range(6)])
    assert alpasift("import", "rows.jsonl").code == 0
    assert alpasift("grade", "--grader", "fake:paid.toml", "--rubric", "accuracy", "--budget", 1, "--yes").code == 0
    (row,) = json.loads(alpasift("query", "answer_costs", "--json").out)
    assert (row["task"], row["grader"], row["rubric"], row["answers"]) == ("grade", "fake:paid.toml", "accuracy", 6)
    assert row["usd"] == json.loads(alpasift("ledger", "--json").out)["spent_usd"]
    store = Store(tmp_path / "alpasift.duckdb").existing()
    assert store.query("answer_costs", grader="rules") == []


def test_every_column_of_a_view_for_people_has_a_meaning_and_no_meaning_is_left_over(store: Store) -> None:
    meanings, used = column_meanings(), set()
    for view in relations(store):
        for column in view.columns:
            assert column.meaning, f"sql/columns.sql says nothing of {view.name}.{column.name}"
            own = f"{view.name}.{column.name}"
            used.add(own if own in meanings else column.name)
    assert meanings.keys() == used


def test_the_manual_lists_exactly_the_views_for_people_and_their_columns(store: Store) -> None:
    manual = (ROOT / "docs" / "database.md").read_text("utf-8").split("\n## Views\n")[1].split("\n## ")[0]
    listed = {
        section.split("\n")[0]: re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section, re.M)
        for section in manual.split("\n### ")[1:]
    }
    assert listed == {view.name: [(c.name, c.type, c.meaning) for c in view.columns] for view in relations(store)}


def test_schema_says_what_columns_of_views_and_tables_hold(lab: Cli) -> None:
    shown = lab("schema", "gradings").out
    assert re.search(r"^kept_share +DOUBLE +kept / graded, from 0 to 1$", shown, re.M)
    assert re.search(
        r"^line +BIGINT +1-based line of the file, where lines mean something$", lab("schema", "set_aside").out, re.M
    )
    assert "`alpasift schema` lists" in lab("sql", "show tables").err
