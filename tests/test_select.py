"""Scores -> a subset. Expected numbers are counted by hand, by the plain-Python reference below, or AlpaGasus's own."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.run import Run
from alpasift.batcher.grading.condition import Condition, SelectError
from alpasift.batcher.grading.lookup import GradingError, NotGraded, find_grading, scores_of
from alpasift.batcher.grading.select import select
from alpasift.batcher.grading.selections import composition, kept_positions, resolve_selection
from alpasift.batcher.store import Store, append, hash_id, new_id, scalar, utc_now
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import open_backend
from alpasift.graders.prompts.rubric import load_rubric
from conftest import new_store, write_rows

GRADER, RUBRIC = hash_id("grader", "fake"), hash_id("rubric", "accuracy")
D = Decimal


@dataclass(frozen=True)
class Row:
    """One row of a made-up dataset. Equal outputs and instructions are equal content and share their score."""

    output: str
    score: str | None = None
    reason: str | None = None
    category: str | None = None
    instruction: str = "Say it."
    input: str = ""

    @property
    def example_id(self) -> str:
        return hash_id(self.instruction, self.input, self.output)


def add_grader(store: Store, name: str, version: int = 1, rubric: str = "accuracy", rubric_version: int = 1) -> str:
    """Write a grader, a rubric (0 to 5 by 0.5, threshold 4.5) and their setup, and return the setup's id."""
    grader_id = GRADER if (name, version) == ("fake", 1) else hash_id("grader", name, str(version))
    rubric_id = (
        RUBRIC if (rubric, rubric_version) == ("accuracy", 1) else hash_id("rubric", rubric, str(rubric_version))
    )
    setup_id = hash_id("setup", grader_id, rubric_id)
    with store.transaction() as con:
        append(
            con,
            "graders",
            ("grader_id", "name", "version", "fingerprint", "first_seen"),
            [(grader_id, name, version, json.dumps({"version": str(version)}), utc_now())],
            unique=True,
        )
        append(
            con,
            "rubrics",
            (
                "rubric_id",
                "name",
                "version",
                "scale_low",
                "scale_high",
                "scale_step",
                "threshold",
                "content",
                "first_seen",
            ),
            [(rubric_id, rubric, rubric_version, D(0), D(5), D("0.5"), D("4.5"), '{"name": "x"}', utc_now())],
            unique=True,
        )
        append(
            con,
            "setups",
            ("setup_id", "task", "grader_id", "rubric_id", "decoding"),
            [(setup_id, "grade", grader_id, rubric_id, "{}")],
            unique=True,
        )
    return setup_id


def add_rows(
    store: Store, table: Sequence[Row], *, dataset: str = "made", shuffle: int | None = None, setup: str | None = None
) -> str:
    """Write a dataset version of these rows with their grades; rows without score and reason are not graded.

    `shuffle` seeds the order in which the rows are inserted, not their positions.
    """
    version_id = new_id()
    setup = setup or add_grader(store, "fake")
    placed = list(enumerate(table))
    if shuffle is not None:
        random.Random(shuffle).shuffle(placed)
    unique = {row.example_id: row for _, row in placed}
    graded = [row for row in unique.values() if row.score is not None or row.reason is not None]
    attempt, now = new_id(), utc_now()
    with store.transaction() as con:
        before = scalar(con, "select count(*) from dataset_versions where dataset = $d", {"d": dataset})
        append(
            con,
            "dataset_versions",
            (
                "version_id",
                "dataset",
                "version",
                "shape",
                "source",
                "sha256",
                "rows",
                "set_aside",
                "duplicates",
                "facts",
                "imported_at",
            ),
            [(version_id, dataset, before + 1, "alpaca", "made.json", "ab" * 32, len(table), 0, 0, "{}", now)],
        )
        append(
            con,
            "examples",
            ("example_id", "system", "turns", "instruction", "input", "output"),
            [(i, "", "", row.instruction, row.input, row.output) for i, row in unique.items()],
            unique=True,
        )
        append(
            con,
            "dataset_rows",
            ("version_id", "position", "example_id", "category", "other"),
            [(version_id, position, row.example_id, row.category, "{}") for position, row in placed],
        )
        keys = {row.example_id: hash_id("key", setup, row.example_id) for row in graded}
        append(
            con,
            "questions",
            ("key", "setup_id", "subject_id", "example_id", "sample"),
            [(keys[row.example_id], setup, row.example_id, row.example_id, 0) for row in graded],
            unique=True,
        )
        append(
            con,
            "replies",
            ("attempt_id", "key", "request_id", "outcome", "text", "recorded_at"),
            [(attempt, keys[row.example_id], "r", "answered", row.score or "?", now) for row in graded],
        )
        append(
            con,
            "readings",
            ("attempt_id", "key", "request_id", "reader", "score", "reason", "recorded_at"),
            [(attempt, keys[row.example_id], "r", "1", row.score and D(row.score), row.reason, now) for row in graded],
        )
    return version_id


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for tests that each add a dataset of their own."""
    return new_store(tmp_path_factory.mktemp("select") / "made.duckdb")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "made.duckdb")


_fresh = count()


def scores(text: str) -> list[Row]:
    """New rows r0, r1, ... with the scores of a text: "5 4.5 - ?" is two scores, an ungraded row, an unreadable one."""
    made, instruction = [], f"Say {next(_fresh)}."
    for i, word in enumerate(text.split()):
        score, reason = (None, None) if word == "-" else (None, "unreadable") if word == "?" else (word, None)
        made.append(Row(f"r{i}", score, reason, instruction=instruction))
    return made


# -- the reference: the documented rule in plain Python -----------------------------------------------------------


def draw(purpose: str, seed: int, example_id: str, copy: int) -> str:
    return hashlib.md5(f"{purpose} {seed} {example_id} {copy}".encode()).hexdigest()


def copies(table: Sequence[Row]) -> list[int]:
    """For each row, which copy of its content it is: by category (none first), then position."""
    ordered = sorted(range(len(table)), key=lambda p: (table[p].category or "(none)", p))
    ordered.sort(key=lambda p: "" if table[p].category is None else (table[p].category or "(none)"))
    seen: Counter[str] = Counter()
    numbers = [0] * len(table)
    for position in ordered:
        seen[table[position].example_id] += 1
        numbers[position] = seen[table[position].example_id]
    return numbers


def reference(table: Sequence[Row], condition: Condition) -> list[int]:
    """The positions that a condition keeps (no `where`)."""
    number = copies(table)
    purpose = "random" if condition.order == "random" else "tie"

    def worth(position: int) -> float:
        if condition.order:
            sign = {"random": 0, "longest": 1, "shortest": -1}[condition.order]
            return sign * len(table[position].output)
        return float(table[position].score or 0)

    able = [p for p in range(len(table)) if condition.order or table[p].score is not None]
    if condition.min_score is not None:
        able = [p for p in able if D(table[p].score or "0") >= condition.min_score]
    able.sort(key=lambda p: (-worth(p), draw(purpose, condition.seed, table[p].example_id, number[p])))
    used: Counter[str] = Counter()
    left = []
    for position in able:
        category = table[position].category or "(none)"
        used[category] += 1
        most = condition.quota.get(category, condition.quota.get("*"))
        if most is None or used[category] <= most:
            left.append(position)
    return sorted(left[: condition.top or condition.size or len(left)])


# -- thresholds, counts and shares --------------------------------------------------------------------------------


def test_a_threshold_keeps_scores_at_and_above_it_and_counts_the_rest_by_reason(shared: Store) -> None:
    version = add_rows(shared, scores("5 4.5 4 0 - - ?"))
    (made,) = select(shared, version, "threshold", Condition(min_score=D("4.5")))
    assert list(kept_positions(shared, made.selection_id)) == [0, 1]
    assert (made.rows, made.pool, made.label, made.version) == (2, 7, "threshold", 1)
    assert made.manifest["not_kept_by_reason"] == {"below_threshold": 2, "not_graded": 2, "unreadable": 1}
    assert made.manifest["counts"] == {"pool": 7, "scored": 4, "kept": 2, "kept_share": 0.285714}
    assert made.manifest["ties"] is None


def test_a_threshold_between_two_steps_is_not_rounded(shared: Store) -> None:
    version = add_rows(shared, scores("5 4.5 4"))
    (made,) = select(shared, version, "between", Condition(min_score=D("4.50001")))
    assert list(kept_positions(shared, made.selection_id)) == [0]


def test_four_and_a_half_means_five_to_a_grader_of_whole_numbers(shared: Store) -> None:
    version = add_rows(shared, scores("5 5 4 3 1"))
    (made,) = select(shared, version, "whole", Condition(min_score=D("4.5")))
    assert made.rows == 2
    assert (made.manifest["observed_step"], made.manifest["threshold"], made.manifest["threshold_means"]) == (1, 4.5, 5)
    assert made.manifest["notes"] == ["the scores of fake are in steps of 1: 4.5 is effectively 5"]
    halves = add_rows(shared, scores("5 4.5 4 3 1"))
    (other,) = select(shared, halves, "halves", Condition(min_score=D("4.5")))
    assert (other.manifest["observed_step"], other.manifest["notes"]) == (0.5, [])


def test_top_tells_the_score_at_the_cut_and_how_many_of_the_tied_rows_were_taken(shared: Store) -> None:
    table = scores("5 4 4 4 4 3 ?")
    version = add_rows(shared, table)
    (made,) = select(shared, version, "top", Condition(top=3, seed=7))
    assert made.manifest["ties"] == {"score": 4, "tied": 4, "taken": 2}
    assert made.manifest["not_kept_by_reason"] == {"tied_at_cut": 2, "below_cut": 1, "unreadable": 1}
    assert list(kept_positions(shared, made.selection_id)) == reference(table, Condition(top=3, seed=7))


def test_top_takes_what_has_a_score_and_says_so(shared: Store) -> None:
    version = add_rows(shared, scores("5 4 - -"))
    (made,) = select(shared, version, "short", Condition(top=3))
    assert made.rows == 2
    assert made.manifest["notes"] == ["3 rows were requested; 2 rows have a score, which leaves 2"]
    with pytest.raises(SelectError, match=r"--top asks for 5 rows and the dataset has 4"):
        select(shared, version, "short", Condition(top=5))


@pytest.mark.parametrize(("share", "kept"), [("0.5", 3), ("0.49", 2), ("0.3", 2), ("0.29", 1), ("1", 5)])
def test_a_share_is_of_the_whole_pool_and_rounds_half_up(shared: Store, share: str, kept: int) -> None:
    version = add_rows(shared, scores("5 4.5 4 3 2"))  # 5 rows: 2.5 -> 3, 2.45 -> 2, 1.5 -> 2, 1.45 -> 1
    (made,) = select(shared, version, f"share-{share}", Condition(keep_share=D(share)))
    assert list(kept_positions(shared, made.selection_id)) == list(range(kept))


def test_duplicates_are_rows_of_their_own_and_share_their_score(shared: Store) -> None:
    table = [Row("same", "5"), Row("other", "4"), Row("same", "5"), Row("same", "5")]
    version = add_rows(shared, table)
    (made,) = select(shared, version, "duplicates", Condition(min_score=D(5)))
    assert list(kept_positions(shared, made.selection_id)) == [0, 2, 3]
    (two,) = select(shared, version, "two", Condition(top=2))
    assert two.manifest["ties"] == {"score": 5, "tied": 3, "taken": 2}


def test_a_condition_that_keeps_nothing_writes_nothing(store: Store) -> None:
    version = add_rows(store, scores("4 3"))
    with pytest.raises(
        SelectError, match=r"no row of made meets .*\(score below the threshold: 2\); the highest score of fake is 4"
    ):
        select(store, version, "none", Condition(min_score=D(5)))
    assert store.locked_query("select count(*) from selections").rows == [(0,)]


def test_expected_scores_that_nobody_gave_and_categories_that_no_row_has_are_said(store: Store) -> None:
    version = add_rows(store, scores("4 3"))
    with pytest.raises(SelectError, match=r"none of the 2 rows that fake has scored has an expected score; `alpasift"):
        select(store, version, "none", Condition(top=1, by="expected_score"))
    with pytest.raises(SelectError, match=r"--quota coding: the rows have no category$"):
        select(store, version, "none", Condition(top=1, quota={"coding": 1}))


# -- AlpaGasus's published histogram ------------------------------------------------------------------------------

HISTOGRAM = {"2.5": 172, "3": 1550, "3.5": 10811, "4": 30240, "4.5": 9218, "5": 11}
"""The project page's scores.svg for 52,002 Alpaca rows; "2.5" stands for its bar "<3"."""


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    store = new_store(tmp_path_factory.mktemp("alpaca") / "alpaca.duckdb")
    setup, version_id = add_grader(store, "chatgpt"), hash_id("alpaca")
    with store.transaction() as con:
        con.execute("create temp table bars (score varchar, n bigint)")
        con.executemany("insert into bars values (?, ?)", list(HISTOGRAM.items()))
        con.execute(
            "create temp table made as select row_number() over (order by score, i) - 1 as position, score, "
            "md5('e' || score || i)::uuid as example_id, md5('k' || score || i)::uuid as key "
            "from (select score, unnest(range(n)) as i from bars)"
        )
        con.execute(
            "insert into examples (example_id, system, turns, instruction, input, output) "
            "select example_id, '', '', 'Say ' || position, '', repeat('x', (position % 300)::int) from made"
        )
        con.execute("insert into dataset_rows select $v, position, example_id, null, '{}' from made", {"v": version_id})
        con.execute(
            "insert into dataset_versions select $v, 'alpaca', 1, 'alpaca', 'alpaca_data.json', 'x', count(*), 0, 0, "
            "'{}', "
            "now()::timestamp from made",
            {"v": version_id},
        )
        con.execute(
            "insert into questions (key, setup_id, example_id, sample, subject_id) "
            "select key, $s, example_id, 0, example_id from made",
            {"s": setup},
        )
        con.execute(
            "insert into replies (attempt_id, key, request_id, outcome, text, recorded_at) "
            "select md5('a')::uuid, key, 'r', 'answered', score, now()::timestamp from made"
        )
        con.execute(
            "insert into readings (attempt_id, key, request_id, reader, score, recorded_at) "
            "select md5('a')::uuid, key, 'r', '1', score::decimal(9, 3), now()::timestamp from made"
        )
    return store, version_id


@pytest.mark.parametrize(("threshold", "kept"), [("4.5", 9229), ("4", 39469), ("3.5", 50280), ("3", 51830)])
def test_the_published_histogram_gives_the_published_subsets(
    alpaca: tuple[Store, str], threshold: str, kept: int
) -> None:
    store, version = alpaca
    (made,) = select(store, version, f"t{threshold}", Condition(min_score=D(threshold)))
    assert (made.rows, made.pool) == (kept, 52002)
    if threshold == "4.5":
        assert round(made.manifest["counts"]["kept_share"], 4) == 0.1775
        assert made.manifest["observed_step"] == 0.5


def test_the_ablations_of_the_paper_are_nested_subsets_and_a_random_baseline_of_equal_size(
    alpaca: tuple[Store, str],
) -> None:
    store, version = alpaca
    whole, three, six = select(store, version, "nine", Condition(min_score=D("4.5"), nested=(6000, 3000)))
    assert [s.label for s in (whole, three, six)] == ["nine", "nine-3000", "nine-6000"]
    sets = [set(kept_positions(store, s.selection_id)) for s in (three, six, whole)]
    assert [len(s) for s in sets] == [3000, 6000, 9229]
    assert sets[0] < sets[1] < sets[2]
    assert three.manifest["of"]["selection"] == "nine"
    assert three.manifest["not_kept_by_reason"] == {"below_threshold": 42773, "not_drawn": 6229}
    (base,) = select(store, version, "random", Condition(order="random", match="nine"))
    assert base.rows == 9229
    assert base.manifest["grader"] is None
    shared = len(set(kept_positions(store, base.selection_id)) & sets[2])
    assert 1500 < shared < 1780  # hypergeometric: mean 9229 * 9229 / 52002 = 1638, deviation 33


def test_a_top_inside_the_largest_bar_names_its_ties(alpaca: tuple[Store, str]) -> None:
    store, version = alpaca
    (made,) = select(store, version, "top", Condition(top=10_000))
    assert made.manifest["ties"] == {"score": 4, "tied": 30240, "taken": 771}  # 10,000 - 9,229


def test_a_random_baseline_does_not_follow_the_rows_that_won_a_tie(alpaca: tuple[Store, str]) -> None:
    store, version = alpaca
    (tied,) = select(store, version, "tied", Condition(top=24_349))  # 9,229 and half of the 30,240 at 4
    (base,) = select(store, version, "base", Condition(order="random", size=26_001))  # half of all rows
    both = set(kept_positions(store, base.selection_id)) & set(kept_positions(store, tied.selection_id))
    assert abs(len(both) - 24_349 / 2) < 500  # one shared draw would give about 24,349 * 0.81


# -- ties, draws and orders, against the reference ----------------------------------------------------------------

CONTENT = {f"{'x' * (n % 4)}{n}": str(D(n % 5) / 2 + 3) for n in range(8)}
"""Output -> score: eight contents with ties in score and in length."""


@st.composite
def tables(build: st.DrawFn) -> list[Row]:
    outputs = build(st.lists(st.sampled_from(sorted(CONTENT)), min_size=1, max_size=14))
    kinds = st.sampled_from([None, "code", "prose"])
    return [Row(o, CONTENT[o], category=build(kinds)) for o in outputs]


def conditions(rows: int) -> st.SearchStrategy[Condition]:
    quota = st.dictionaries(st.just("*"), st.integers(1, 4), max_size=1)
    number, seed = st.integers(1, rows), st.integers(-3, 3)
    return st.one_of(
        st.builds(Condition, top=number, quota=quota, seed=seed),
        st.builds(Condition, min_score=st.sampled_from([D(3), D("3.5")]), quota=quota, seed=seed),
        st.builds(
            Condition, order=st.sampled_from(["random", "longest", "shortest"]), size=number, quota=quota, seed=seed
        ),
    )


few = settings(max_examples=6, deadline=None)  # each example writes and reads a real database
more = settings(max_examples=14, deadline=None)


@more
@given(data=st.data())
def test_every_condition_agrees_with_the_documented_rule(shared: Store, data: st.DataObject) -> None:
    table = data.draw(tables())
    condition = data.draw(conditions(len(table)))
    expected = reference(table, condition)
    version = add_rows(shared, table, dataset="rule")
    if not expected:
        with pytest.raises(SelectError, match="no row of"):
            select(shared, version, "rule", condition)
        return
    made = select(shared, version, "rule", condition)[0]
    assert list(kept_positions(shared, made.selection_id)) == expected
    assert sum(made.manifest["not_kept_by_reason"].values()) == len(table) - len(expected)
    if condition.quota:
        kept = Counter(table[p].category for p in kept_positions(shared, made.selection_id))
        assert max(kept.values()) <= condition.quota["*"]


@few
@given(data=st.data())
def test_equal_seeds_give_equal_selections_in_whatever_order_rows_came(shared: Store, data: st.DataObject) -> None:
    table = data.draw(tables())
    condition = Condition(top=data.draw(st.integers(1, len(table))), seed=data.draw(st.integers(0, 2)))
    positions = []
    for shuffle in (None, 1):
        version = add_rows(shared, table, dataset="order", shuffle=shuffle)
        made = select(shared, version, "order", condition)[0]
        positions.append((list(kept_positions(shared, made.selection_id)), made.manifest["fingerprint"]))
    assert positions[0] == positions[1]
    turned = add_rows(shared, data.draw(st.permutations(table)), dataset="order")
    assert select(shared, turned, "order", condition)[0].manifest["fingerprint"] == positions[0][1]


@few
@given(data=st.data())
def test_nested_sub_samples_lie_inside_each_other(shared: Store, data: st.DataObject) -> None:
    table = data.draw(tables())
    condition = Condition(min_score=D(3), seed=data.draw(st.integers(0, 3)))
    sizes = data.draw(st.sets(st.integers(1, len(table)), min_size=1, max_size=4))
    version = add_rows(shared, table, dataset="nest")
    whole, *parts = select(shared, version, "nest", replace(condition, nested=tuple(sizes)))
    sets = [set(kept_positions(shared, s.selection_id)) for s in (*parts, whole)]
    assert [len(s) for s in sets] == [*sorted(sizes), len(table)]
    assert all(small <= large for small, large in pairwise(sets))
    alone = select(shared, version, "alone", replace(condition, nested=(min(sizes),)))[1]
    assert set(kept_positions(shared, alone.selection_id)) == sets[0]


def test_another_seed_breaks_ties_otherwise(shared: Store) -> None:
    version = add_rows(shared, scores("4 " * 40))
    kept = {
        tuple(kept_positions(shared, select(shared, version, "s", Condition(top=10, seed=s))[0].selection_id))
        for s in range(4)
    }
    assert len(kept) == 4


def test_longest_and_shortest_count_characters_not_bytes_and_need_no_grader(store: Store) -> None:
    version = add_rows(store, [Row("ééé"), Row("abcde"), Row("日本語文"), Row("a")])
    (longest,) = select(store, version, "long", Condition(order="longest", size=2))
    assert list(kept_positions(store, longest.selection_id)) == [1, 2]
    assert longest.manifest["ties"] == {"output_chars": 4, "tied": 1, "taken": 1}
    (shortest,) = select(store, version, "short", Condition(order="shortest", match="long"))
    assert list(kept_positions(store, shortest.selection_id)) == [0, 3]
    assert (shortest.manifest["grader"], shortest.manifest["condition"]["match"]) == (None, "long")


# -- quotas -------------------------------------------------------------------------------------------------------


def test_a_quota_takes_the_best_of_each_category_before_rows_are_counted_off(shared: Store) -> None:
    table = [
        Row("a", "5", category="qa"),
        Row("b", "4.5", category="qa"),
        Row("c", "4", category="qa"),
        Row("d", "3.5", category="code"),
        Row("e", "3", category="code"),
        Row("f", "2"),
    ]
    version = add_rows(shared, table)
    (made,) = select(shared, version, "quota", Condition(top=3, quota={"qa": 1}))
    assert list(kept_positions(shared, made.selection_id)) == [0, 3, 4]
    assert made.manifest["not_kept_by_reason"] == {"over_quota": 2, "below_cut": 1}
    (each,) = select(shared, version, "each", Condition(min_score=D(0), quota={"*": 1, "qa": 2}))
    assert list(kept_positions(shared, each.selection_id)) == [0, 1, 3, 5]
    (none,) = select(shared, version, "none", Condition(min_score=D(0), quota={"(none)": 0, "code": 0}))
    assert list(kept_positions(shared, none.selection_id)) == [0, 1, 2]
    with pytest.raises(SelectError, match=r"--quota coding: no row has that category; choose from qa, code, \(none\)"):
        select(shared, version, "typo", Condition(top=3, quota={"coding": 1}))


# -- the user's SQL -----------------------------------------------------------------------------------------------


def test_where_keeps_rows_for_which_it_is_true_and_tells_false_from_null(shared: Store) -> None:
    version = add_rows(shared, [*scores("5 4 3 -"), Row("a longer output than the others", "5")])
    (made,) = select(shared, version, "where", Condition(where="score >= 4 and output_chars < 10 -- short ones"))
    assert list(kept_positions(shared, made.selection_id)) == [0, 1]
    assert made.manifest["not_kept_by_reason"] == {"where_false": 2, "where_null": 1}
    assert made.manifest["condition"] == {"where": "score >= 4 and output_chars < 10 -- short ones", "seed": 0}
    (best,) = select(shared, version, "best", Condition(where="rank() over (order by score desc nulls last) <= 2"))
    assert list(kept_positions(shared, best.selection_id)) == [0, 4]


def test_where_may_look_for_a_word_that_is_also_a_function_of_chance(shared: Store) -> None:
    version = add_rows(shared, [Row("call random() here", "5"), Row("no chance", "5")])
    (made,) = select(shared, version, "word", Condition(where="contains(output, 'random()')"))
    assert list(kept_positions(shared, made.selection_id)) == [0]


def test_where_works_on_a_dataset_that_nobody_graded(store: Store) -> None:
    version = add_rows(store, scores("- - -"))
    (made,) = select(store, version, "where", Condition(where="position > 0 and reason = 'not_graded'"))
    assert list(kept_positions(store, made.selection_id)) == [1, 2]
    with pytest.raises(SelectError, match="no grader has graded"):
        select(store, version, "where", Condition(where="score > 4"))


def test_where_may_be_a_million_rows_of_a_dataset_but_only_of_this_one(shared: Store) -> None:
    add_rows(shared, scores("5 5 5"), dataset="another")
    version = add_rows(shared, scores("5 4"))
    (made,) = select(shared, version, "all", Condition(where="true"))
    assert list(kept_positions(shared, made.selection_id)) == [0, 1]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, bytes]:
    """A store, a dataset version in it, and the bytes of its file."""
    store = new_store(tmp_path_factory.mktemp("hostile") / "made.duckdb")
    version = add_rows(store, scores("5 4"))
    return store, version, store.path.read_bytes()


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("score >>", "syntax error"),
        ("scre > 4", 'Candidate bindings: "score"'),
        ("score", r"must be true or false for each row; 'score' gives DECIMAL\(9,3\)"),
        ("1", "gives INTEGER"),
        ("null", "gives"),
        ("true, false", "gives"),
        ("", "needs an SQL expression"),
        ("true) or (true", "syntax error"),
        ("true] or [true", "syntax error"),
        ("true) as kept from pool --", "syntax error"),
        ("true) from pool union all select (true", "syntax error"),
        ("true /*", "unterminated"),
        ("'", "unterminated"),
        ("true; drop table examples", "syntax error"),
        ("true); drop table examples; select (true", "statement|syntax error"),
        ("(copy examples to 'stolen.csv')", "syntax error"),
        ("(insert into meta values ('a', 'b') returning true)", "syntax error"),
        ("(attach 'other.duckdb')", "attach does not exist"),
        ("(select count(*) from read_text('/etc/passwd')) > 0", "disabled by configuration"),
        ("(select count(*) from 'made.csv') > 0", "disabled by configuration|does not exist"),
        ("random() < 0.5", r"may not call random\(\)"),
        ('"random"() < 0.5', r"may not call random\(\)"),
        ("random/**/() < 0.5", r"may not call random\(\)"),
        ("random -- a comment\n () < 0.5", r"may not call random\(\)"),
        ("system.main.RANDOM() < 0.5", r"may not call random\(\)"),
        ("list_filter([1], lambda x: random() > 0.5)[1] = 1", r"may not call random\(\)"),
        ("position in (select position from pool using sample 1)", "may not draw a sample"),
        ("position in (select position from pool tablesample reservoir(50%))", "may not draw a sample"),
        ("row_number() over/**/() < 2", r"may not use over \(\)"),
        (
            "row_number() over (partition by length(output)) < 2",
            r"may not use row_number\(\) over rows without an order",
        ),
        ("Current_Timestamp is not null", "may not use current_timestamp"),
        ("true using sample 1", "syntax error"),
        ("gen_random_uuid() is not null", r"may not call gen_random_uuid\(\)"),
        ("score > $other", "other|parameter"),
        ("score > avg(score)", "GROUP BY"),
    ],
)
def test_where_refuses_what_is_no_condition(hostile: tuple[Store, str, bytes], expression: str, message: str) -> None:
    store, version, before = hostile
    with pytest.raises(SelectError, match=message):
        select(store, version, "hostile", Condition(where=expression))
    assert store.path.read_bytes() == before


# -- which grader -------------------------------------------------------------------------------------------------


def test_the_only_grader_is_taken_and_of_two_one_must_be_named(store: Store) -> None:
    table = scores("5 4 3")
    version = add_rows(store, [replace(r, score=None) for r in table])
    with pytest.raises(NotGraded, match="alpasift grade"):
        find_grading(store, version)
    with pytest.raises(NotGraded, match="alpasift grade"):
        select(store, version, "x", Condition(top=1))
    version = add_rows(store, table)
    found = find_grading(store, version)
    assert (found.grader, found.rubric, found.threshold, found.step) == ("fake", "accuracy", D("4.5"), D("0.5"))
    counted = scores_of(store, version, found)
    assert (counted.observed_step, counted.graded, counted.scored, counted.highest) == (D(1), 3, 3, D(5))
    add_rows(store, table[:2], dataset="made", setup=add_grader(store, "fake", 2))
    with pytest.raises(GradingError) as caught:
        find_grading(store, version)
    assert "--grader fake@1 --rubric accuracy (3 rows with a score)" in str(caught.value)
    assert "--grader fake@2 --rubric accuracy (2 rows with a score)" in str(caught.value)
    assert find_grading(store, version, "fake").grader == "fake@2"
    assert find_grading(store, version, "fake@1").grader == "fake"
    assert scores_of(store, version, find_grading(store, version, "fake@2", "accuracy")).scored == 2
    assert find_grading(store, version, GRADER, RUBRIC).grader == "fake", "an id names the very grader"
    with pytest.raises(GradingError, match="--grader gpt has not graded this dataset; these have: --grader fake@1"):
        find_grading(store, version, "gpt")
    (made,) = select(store, version, "named", Condition(min_score=D(3)), grader="fake@2")
    assert made.manifest["grader"] == {"label": "fake@2", "fingerprint": {"version": "2"}}
    assert made.manifest["not_kept_by_reason"] == {"not_graded": 1}


# -- names, versions and the manifest -----------------------------------------------------------------------------


def test_the_same_again_is_the_same_selection_and_another_result_the_next_version(store: Store) -> None:
    version = add_rows(store, scores("5 4.5 4 3"))
    first, part = select(store, version, "keep", Condition(min_score=D("4.5"), nested=(1,)))
    again = select(store, version, "keep", Condition(min_score=D("4.5"), nested=(1,)))
    assert again == [first, part]
    assert store.locked_query("select count(*) from selections").rows == [(2,)]
    assert store.locked_query("select count(*) from selection_rows").rows == [(3,)]
    (second,) = select(store, version, "keep", Condition(min_score=D(4)))
    assert (second.label, second.version, second.rows) == ("keep@2", 2, 3)
    assert resolve_selection(store, "keep") == second
    assert resolve_selection(store, "keep@1") == first
    (third,) = select(store, version, "keep", Condition(min_score=D("4.5")))
    assert third.label == "keep@3", "the plain name is what was selected last under it"
    with pytest.raises(SelectError, match=r"no selection named 'kept'; did you mean keep\? Choose from keep@3"):
        resolve_selection(store, "kept")
    with pytest.raises(SelectError, match=r"no selection named 'keep@9'"):
        resolve_selection(store, "keep@9")


def test_a_manifest_tells_all_that_made_the_selection(store: Store) -> None:
    table = scores("5 4.5 3")
    version = add_rows(store, table)
    (made,) = select(store, version, "keep", Condition(min_score=D("4.5"), seed=3))
    manifest = resolve_selection(store, "keep").manifest
    assert manifest == made.manifest == json.loads(json.dumps(made.manifest))
    ids = "\n".join(sorted(r.example_id for r in table[:2]))
    expected = {
        "selection": "keep",
        "dataset": {"label": "made", "version_id": version, "source": "made.json", "sha256": "ab" * 32, "rows": 3},
        "condition": {"min_score": 4.5, "seed": 3},
        "seed": 3,
        "grader": {"label": "fake", "fingerprint": {"version": "1"}},
        "rubric": {
            "label": "accuracy",
            "sha256": hashlib.sha256(b'{"name": "x"}').hexdigest(),
            "threshold": 4.5,
            "step": 0.5,
        },
        "threshold": 4.5,
        "threshold_means": 4.5,
        "observed_step": 0.5,
        "counts": {"pool": 3, "scored": 3, "kept": 2, "kept_share": 0.666667},
        "ties": None,
        "not_kept_by_reason": {"below_threshold": 1},
        "notes": [],
        "fingerprint": hashlib.sha256(ids.encode()).hexdigest(),
        "positions_sha256": hashlib.sha256(b"0\n1").hexdigest(),
        "composition": composition(store, version, made.selection_id),
    }
    assert {k: v for k, v in manifest.items() if k not in ("alpasift", "duckdb", "created_at")} == expected
    assert manifest["duckdb"].startswith("v")
    assert manifest["created_at"].endswith("Z")


@pytest.mark.parametrize("name", ["", "a b", "../x", "keep@2", "x" * 65, "a/b", "ä"])
def test_a_name_that_is_no_file_name_is_refused(shared: Store, name: str) -> None:
    with pytest.raises(SelectError, match="is not a valid name; use 1 to 64 of the characters"):
        select(shared, new_id(), name, Condition(top=1))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(), "exactly one of"),
        (Condition(top=1, min_score=D(4)), "exactly one of .*this has 2"),
        (Condition(top=0), "must be 1 or more"),
        (Condition(keep_share=D(0)), "above 0 and at most 1"),
        (Condition(keep_share=D("1.01")), "above 0 and at most 1"),
        (Condition(keep_share=D("nan")), "above 0 and at most 1"),
        (Condition(min_score=D("inf")), "not a number"),
        (Condition(order="random"), "--random needs a number of rows, or --match"),
        (Condition(order="random", size=1, match="x"), "--random needs a number of rows, or --match"),
        (Condition(top=1, match="x"), "--match works with"),
        (Condition(top=1, quota={"a": -1}), "must be 0 or more"),
        (Condition(top=1, nested=(0,)), "must be 1 or more"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused_before_anything_is_read(
    shared: Store, condition: Condition, message: str
) -> None:
    with pytest.raises(SelectError, match=message):
        select(shared, new_id(), "x", condition)


def test_sizes_that_the_rows_cannot_give_are_refused(shared: Store) -> None:
    version = add_rows(shared, scores("5 4 3"))
    for condition, message in (
        (Condition(order="random", size=4), "--random asks for 4 rows and the dataset has 3"),
        (Condition(keep_share=D("0.1")), "less than one row"),
        (Condition(top=2, nested=(3,)), "--nested 3: only 2 rows were kept"),
    ):
        with pytest.raises(SelectError, match=message):
            select(shared, version, "too-many", condition)
    assert not shared.locked_query("select 1 from selections where name like 'too-many%'").rows


# -- what was kept, against the pool ------------------------------------------------------------------------------

KINDS = [
    Row("Use JavaScript for that", "5", category="a"),
    Row("print() in Python, or Java", "4.5", category="a", input="  \n"),
    Row("the C++17 standard", "3", category="b", input="x"),
    Row("A C#-sharp program", "2", category="b", input="y"),
    Row("an island", "4.5", instruction="Where is java?", input="z"),
    Row("cpython and Python3", None, "unreadable"),
]


def test_composition_counts_kept_against_pool_and_code_once_a_row(store: Store) -> None:
    version = add_rows(store, KINDS)
    (made,) = select(store, version, "keep", Condition(min_score=D("4.5")))
    found = composition(store, version, made.selection_id)
    counted = {r["category"] or r["measure"]: (r["pool"], r["kept"], r["keep_rate"]) for r in found}
    # lengths 23, 26, 18, 18, 9, 19: the lower middle is 18; of those kept 9, 23, 26 it is 23
    assert counted == {
        "rows": (6, 3, 0.5),
        "with_input": (3, 1, 1 / 3),
        "median_output_chars": (18, 23, None),
        "code": (4, 2, 0.5),
        "(none)": (2, 1, 0.5),
        "a": (2, 2, 1.0),
        "b": (2, 0, 0.0),
    }
    assert found[1]["pool_share"] == 0.5
    assert found[1]["kept_share"] == 1 / 3
    grading = find_grading(store, version)
    assert composition(store, version, grading=grading) == found, "the same rows, by the rubric's own threshold"


def test_composition_shows_the_twenty_largest_categories_and_sums_the_rest(shared: Store) -> None:
    table = [Row(f"r{n}", "5", category=f"c{n % 23:02}") for n in range(23 * 2 + 20)]  # c00 .. c19 three times
    version = add_rows(shared, table)
    (made,) = select(shared, version, "many", Condition(min_score=D(5)))
    found = [
        (r["category"], r["pool"])
        for r in composition(shared, version, made.selection_id)
        if r["measure"] == "category"
    ]
    assert found == [*((f"c{n:02}", 3) for n in range(20)), ("(all others)", 6)]


def test_scores_by_group_show_what_the_threshold_would_keep(store: Store) -> None:
    add_rows(store, KINDS)
    labels = {"dataset": "made", "grader": "fake", "rubric": "accuracy", "threshold": None, "hidden": False}

    def counted(name: str, group: str, **changed: object) -> dict[object, tuple[int, int, int]]:
        found = store.query(name, **{**labels, **changed})
        return {r[group]: (r["rows"], r["scored"], r["kept"]) for r in found}

    assert counted("scores_by_category", "category") == {"(none)": (2, 1, 1), "a": (2, 2, 2), "b": (2, 2, 0)}
    assert counted("scores_by_keyword", "keyword") == {
        "Java": (2, 2, 2),
        "C++": (1, 1, 0),
        "C#": (1, 1, 0),
        "Python": (1, 1, 1),
        "code": (4, 4, 2),
        "other": (2, 1, 1),
    }
    # 9 18 18 19 23 26: the quartiles are 18, 18 and 23, so nothing falls into the second bucket
    assert counted("scores_by_length", "quartile") == {1: (3, 3, 1), 3: (2, 1, 1), 4: (1, 1, 1)}
    assert counted("scores_by_category", "category", threshold=D(2))["b"] == (2, 2, 2)
    assert counted("scores_by_category", "category", dataset="another") == {}
    rates = {r["keyword"]: r["keep_rate"] for r in store.query("scores_by_keyword", **labels)}
    assert rates["code"] == 0.5


def test_every_selection_is_listed_with_its_condition(store: Store) -> None:
    version = add_rows(store, scores("5 4"))
    select(store, version, "keep", Condition(top=1))
    found = store.locked_query(
        "select label, dataset, rows, pool, kept_share, condition, grader from selection_list"
    ).rows
    assert found == [("keep", "made", 1, 2, 0.5, '{"top":1,"seed":0}', "fake")]


# -- expected scores, and several graders ------------------------------------------------------------------------


def _graded_by(store: Store, version: str, tmp_path: Path, name: str, texts: dict[str, str], **more: Any) -> str:
    """Grade by a script that answers a row by content; returns the grader's label."""
    rules = "".join(
        f"[[reply]]\nmatch = {json.dumps(match)}\ntext = {json.dumps(text)}\n"
        + (f"logprobs = {more['logprobs'][match]}\n" if "logprobs" in more else "")
        for match, text in texts.items()
    )
    script = tmp_path / f"{name}.toml"
    script.write_text(rules)
    backend = open_backend(f"fake:{script}")
    task = Grade(load_rubric("accuracy"), "expected" if "logprobs" in more else None)
    with Run(store, task, backend, version) as run:
        run.go()
    return f"fake:{name}.toml"


def _three(store: Store, tmp_path: Path) -> str:
    rows_ = [{"instruction": f"say {word}", "output": word} for word in ("one", "two", "three")]
    return import_file(store, str(write_rows(tmp_path / "three.jsonl", rows_))).version_id


def test_several_graders_combine_and_a_row_needs_all_of_them(store: Store, tmp_path: Path) -> None:
    version = _three(store, tmp_path)
    a = _graded_by(store, version, tmp_path, "a", {"one": "5", "two": "4", "three": "4.5"})
    b = _graded_by(store, version, tmp_path, "b", {"one": "3", "two": "4.5", "three": "nonsense"})
    kept = {
        how: select(store, version, how, Condition(min_score=Decimal("4.2"), combine=how), grader=[a, b])[0].rows
        for how in ("mean", "median")
    }
    assert kept == {"mean": 1, "median": 1}  # one: 4, two: 4.25, three has no score of b
    made = select(store, version, "least", Condition(min_score=Decimal(3), combine="minimum"), grader=[a, b])[0]
    assert (made.rows, made.manifest["not_kept_by_reason"]) == (2, {"not_graded_by_all": 1})
    assert [one["label"] for one in made.manifest["panel"]] == [a, b]
    assert made.manifest["condition"]["combine"] == "minimum"
    assert made.manifest["threshold_means"] is None


def test_graders_are_combined_only_when_there_are_several_and_on_one_scale(store: Store, tmp_path: Path) -> None:
    version = _three(store, tmp_path)
    a = _graded_by(store, version, tmp_path, "a", {"": "5"})
    with Run(store, Grade(load_rubric("curation")), open_backend("fake"), version) as run:
        run.go()
    for graders, combine, message in (
        ([a], "mean", "needs two or more graders"),
        ([a, "fake"], None, "need --combine"),
        ([a, "fake"], "mean", "only graders with the same scale"),
    ):
        with pytest.raises(SelectError, match=message):
            select(store, version, "x", Condition(min_score=Decimal(3), combine=combine), grader=graders)


def test_a_threshold_on_the_expected_score_is_another_than_on_the_score(store: Store, tmp_path: Path) -> None:
    version = _three(store, tmp_path)
    sure = '{ "4" = -2.302585, "4.5" = -0.1053605 }'  # P(4) = .1, P(4.5) = .9
    torn = '{ "4" = -0.6931472, "5" = -0.6931472 }'
    grader = _graded_by(
        store,
        version,
        tmp_path,
        "p",
        {"one": "4.5", "two": "5", "three": "5"},
        logprobs={"one": sure, "two": torn, "three": '{ "Sure" = -0.01 }'},
    )
    found = store.locked_query("select score, expected_score from graded order by 1, 2 nulls last").rows
    assert [float(score) for score, _ in found] == [4.5, 5, 5]
    assert [expected for _, expected in found] == [pytest.approx(4.45), pytest.approx(4.5), None]
    by_score = select(store, version, "s", Condition(min_score=Decimal("4.5")), grader=grader)[0]
    by_expected = select(store, version, "e", Condition(min_score=Decimal("4.5"), by="expected_score"), grader=grader)[
        0
    ]
    assert (by_score.rows, by_expected.rows) == (3, 1)
    assert by_expected.manifest["not_kept_by_reason"] == {"below_threshold": 1, "no_expected": 1}
    assert by_expected.manifest["condition"]["by"] == "expected", "as databases have always spelled it"
    for name in ("expected_score", "expected"):  # the second is its former name
        made = select(store, version, "w", Condition(where=f"{name} >= 4.5"), grader=grader)[0]
        assert list(kept_positions(store, made.selection_id)) == list(kept_positions(store, by_expected.selection_id))
