"""Names of graders, models, datasets and rubrics: what is shown can be typed, a slip is answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alpasift.batcher.grading.lookup import GradingError, label_of
from alpasift.batcher.store import Store
from alpasift.graders import BackendError, backend_kind, name_of
from alpasift.graders.api.price_lookup import UnknownPrice, price_of
from alpasift.graders.prompts.rubric import RubricError, load_rubric
from conftest import Ran, call_cli, new_store, some_rows, write_rows
from tiny_models import make_gguf

Call = Callable[..., Ran]
RUBRIC = 'name = "brief"\nlow = 0\nhigh = 5\nstep = 1\nthreshold = 4\nsystem = "Grade."\nquestion = "How brief?"\n'


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("openai_batch:gpt-4.1-nano", "openai:gpt-4.1-nano"),
        ("openai_chat:gpt-4.1-nano", "openai:gpt-4.1-nano"),
        ("openai:gpt-4.1-nano", "openai:gpt-4.1-nano"),
        ("llama_cpp:models/q4/a.gguf", "llama_cpp:a.gguf"),
        ("vllm:/models/base/+/models/adapter", "vllm:base+adapter"),
        ("fake:scripts/five.toml", "fake:five.toml"),
        ("rules", "rules"),
        ("labels:people", "labels:people"),
        ("nobody:x/y", "nobody:x/y"),
    ],
)
def test_what_is_typed_has_a_name_that_is_shown(typed: str, shown: str) -> None:
    assert name_of(typed) == shown


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        ("openai_bacth:gpt-4.1-nano", "did you mean openai_batch? Choose from fake"),
        ("lama_cpp:a.gguf", "did you mean llama_cpp?"),
        ("labels:people", "imported grades and cannot grade"),
        ("xyz", "auto, and labels:NAME"),
    ],
)
def test_a_misspelled_grader_is_answered_with_a_proposal(slip: str, words: str) -> None:
    with pytest.raises(BackendError) as error:
        backend_kind(slip)
    assert words in str(error.value)


def test_a_misspelled_model_is_answered_with_a_proposal_before_the_table_to_fill_in(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownPrice, match=r"^no price is known for gpt-4\.1-nanno at api\.openai\.com; did you mean gpt-4\.1-nano\?"
    ):
        price_of("gpt-4.1-nanno", batch=True)
    own = tmp_path / "prices.toml"
    own.write_text(
        '[[price]]\nprovider = "llm.lab.org"\nmodel = "lab-7b"\ninput = "1"\noutput = "2"\n'
        'date = 2026-11-01\nsource = "a bill"\nchecked = true\n'
    )
    with pytest.raises(UnknownPrice, match=r"did you mean lab-7b\?"):
        price_of("lab-7", host="llm.lab.org", batch=False, overrides=own)
    with pytest.raises(UnknownPrice, match=r"for nothing-like-it at api\.openai\.com; nothing was sent"):
        price_of("nothing-like-it", batch=True)


def test_a_misspelled_rubric_or_another_file_is_answered_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RubricError, match=r"did you mean accuracy\? Choose from"):
        load_rubric("acuracy")
    (tmp_path / "brief.yaml").write_text("name: brief\n")
    with pytest.raises(RubricError, match=r"brief\.yaml: a rubric is a \.toml file"):
        load_rubric(str(tmp_path / "brief.yaml"))
    (tmp_path / "brief.toml").write_text("")
    with pytest.raises(RubricError, match=r"did you mean .*brief\.toml\?"):
        load_rubric(str(tmp_path / "brief"))


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows, graded by two scripts of one name and by a rubric of one's own."""
    folder = tmp_path_factory.mktemp("named")
    write_rows(folder / "rows.jsonl", some_rows(4))
    (folder / "brief.toml").write_text(RUBRIC)
    for place, text in (("one", "5"), ("two", "1")):
        (folder / place).mkdir()
        (folder / place / "g.toml").write_text(f'[[reply]]\ntext = "{text}"\n')
    for command in (
        ["import", "rows.jsonl"],
        ["grade", "--grader", "fake:one/g.toml"],
        ["grade", "--grader", "fake:two/g.toml"],
        ["grade", "--grader", "fake:two/g.toml", "--rubric", "brief.toml"],
    ):
        ran = call_cli(command, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


def test_scores_takes_names_and_paths_as_grade_does(graded: Path) -> None:
    for name in ("fake:g.toml", "fake:two/g.toml", "fake:g.toml@2"):
        ran = call_cli(["scores", "--grader", name, "--rubric", "brief.toml"], cwd=graded)
        assert "graded by fake:g.toml@2, rubric brief: 4 of 4 rows" in ran.out, ran.err
    ran = call_cli(["scores", "--rubric", "breif"], cwd=graded)
    assert (ran.code, "did you mean brief? There are" in ran.err) == (1, True), ran.err


def test_a_hidden_version_of_a_rubric_is_listed_on_request_and_found_by_its_version(
    alpasift: Call, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", some_rows(4))
    alpasift("import", "rows.jsonl")
    script, rubric = tmp_path / "g.toml", tmp_path / "brief.toml"
    for question, text in (("How brief?", "2"), ("How terse?", "3"), ("Short?", "4")):
        rubric.write_text(RUBRIC.replace("How brief?", question))
        script.write_text(f'[[reply]]\ntext = "{text}"\n')
        assert alpasift("grade", "--grader", "fake:g.toml", "--rubric", "brief.toml").code == 0

    def listed(*options: str) -> list[str]:
        return [row["rubric"] for row in alpasift("scores", "--json", *options).json if row["score"] is not None]

    top = ["select", "--top", "2", "--name", "k", "--grader"]
    assert listed() == ["brief", "brief@2", "brief@3"]
    ran = alpasift("rubric", "hide", "brief@1", "brief@3")
    assert (ran.code, "hidden: brief, brief@3" in ran.err) == (0, True), ran.err
    assert "nothing changed" in alpasift("rubric", "hide", "brief@3").err
    assert listed() == ["brief@2"]
    assert listed("--all") == ["brief", "brief@2", "brief@3"]
    assert listed("--rubric", "brief@3") == ["brief@3"]
    assert listed("--rubric", "brief") == ["brief@2"], "the newest of those that are listed"
    for by in ("category", "length", "keyword"):
        assert {row["rubric"] for row in alpasift("scores", "--by", by, "--json").json} == {"brief@2"}
        assert len({row["rubric"] for row in alpasift("scores", "--by", by, "--json", "--all").json}) == 3
    assert {row["rubric"] for row in alpasift("show", "--json").json} == {"brief@2"}
    ran = alpasift("scores", "--rubric", "breif@9")
    assert "there are: brief@2" in ran.err.lower(), ran.err
    assert alpasift(*top, "fake:g.toml@2").code == 0, "the only grading that is listed by that grader"
    ran = alpasift(*top, "fake:g.toml@1")
    assert ran.code == 1, ran.err  # what is hidden is not chosen unasked
    assert alpasift(*top, "fake:g.toml@1", "--rubric", "brief@1").code == 0
    ran = alpasift("rubric", "unhide", "brief@1")
    assert (ran.code, listed()) == (0, ["brief", "brief@2"]), ran.err
    ran = alpasift("rubric", "hide", "terse")
    assert (ran.code, "no rubric named 'terse' has grades here" in ran.err) == (1, True), ran.err


def test_a_grader_and_a_rubric_that_nothing_was_answered_with_are_not_listed(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a.duckdb")
    with store.transaction() as con:
        con.execute("insert into graders values (uuid(), 'openai:m', 1, '{}', now())")
        con.execute("insert into rubrics values (uuid(), 'brief', 1, 0, 5, 1, 4, '{}', now())")
    with pytest.raises(GradingError, match=r"no grader named 'fake' has grades here; there are: none yet"):
        label_of(store, "grader", "fake")
    with pytest.raises(GradingError, match=r"no rubric named 'beief' has grades here; there are: none yet"):
        label_of(store, "rubric", "beief")
    assert label_of(store, "rubric", "brief") == "brief"


def test_a_path_that_could_be_two_graders_is_not_guessed(graded: Path) -> None:
    where = ["select", "--top", "2", "--name", "k", "--rubric", "accuracy"]
    ran = call_cli([*where, "--grader", "fake:one/g.toml"], cwd=graded)
    assert (ran.code, "2 gradings of this dataset match" in ran.err) == (1, True), ran.err
    assert call_cli([*where, "--grader", "fake:g.toml@1"], cwd=graded).code == 0
    ran = call_cli([*where, "--grader", "fake:h.toml"], cwd=graded)
    assert "did you mean fake:g.toml? These have" in ran.err, ran.err


@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        (["select", "--name", "a", "--threshold", "4"], "Did you mean '--min-score'?"),
        (["select", "--name", "a", "--min_scor", "4"], "Did you mean '--min-score'?"),
        (["export", "--out", "a.json"], "Did you mean '--output'?"),
        (["grade", "--model", "rules"], "Did you mean '--grader'?"),
        (["query", "deciles", "--grader", "rules"], "a parameter of a query is written without dashes: grader=VALUE"),
    ],
)
def test_an_option_of_another_name_is_answered_with_ours(alpasift: Call, typed: list[str], proposed: str) -> None:
    ran = alpasift(*typed)
    assert (ran.code, ran.err.strip().endswith(proposed)) == (2, True), ran.err


def test_datasets_and_selections_are_proposed_too(graded: Path) -> None:
    assert "did you mean rows?" in call_cli(["export", "--dataset", "row", "-o", "x.json"], cwd=graded).err
    call_cli(["select", "--random", "2", "--name", "baseline"], cwd=graded)
    assert "did you mean baseline?" in call_cli(["export", "--selection", "basline", "-o", "x.json"], cwd=graded).err


def test_a_version_that_is_shown_can_be_graded_by_again_and_another_is_not_taken_for_it(
    alpasift: Call, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", some_rows(4))
    alpasift("import", "rows.jsonl")
    script = tmp_path / "g.toml"
    for text in ("5", "1"):
        script.write_text(f'[[reply]]\ntext = "{text}"\n')
        assert alpasift("grade", "--grader", "fake:g.toml").code == 0
    ran = alpasift("grade", "--grader", "fake:g.toml@2")
    assert (ran.code, "4 rows were graded before" in ran.err) == (0, True), ran.err
    ran = alpasift("grade", "--grader", "fake:g.toml@1")
    assert (ran.code, "graded with different settings: script was" in ran.err) == (1, True), ran.err


def test_a_first_try_that_is_refused_registers_no_grader(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", some_rows(4))
    alpasift("import", "rows.jsonl")
    key = {"OPENAI_API_KEY": "sk-test-of-nothing"}
    away = ["grade", "--grader", "openai_batch:gpt-4.1-nano", "--base-url", "http://127.0.0.1:9/v1"]
    assert alpasift(*away, env=key).code == 2  # no budget
    ran = alpasift(*away, "--budget", "1", env=key)
    assert (ran.code, "add --yes" in ran.err) == (2, True), ran.err
    store = Store(tmp_path / "alpasift.duckdb")
    assert store.query("labels") == []
    assert store.query("ledger")[0]["budget_usd"] is None


def test_a_local_model_is_found_where_it_was_by_the_name_that_is_shown(alpasift: Call, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    make_gguf(tmp_path / "models" / "tiny.gguf")
    write_rows(tmp_path / "rows.jsonl", some_rows(3))
    alpasift("import", "rows.jsonl")
    assert alpasift("grade", "--grader", "llama_cpp:models/tiny.gguf", "--limit", "2").code == 0
    ran = alpasift("grade", "--grader", "llama_cpp:tiny.gguf")
    assert (ran.code, "2 rows were graded before" in ran.err) == (0, True), ran.err


def test_labels_are_found_by_both_spellings_of_an_api_grader(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a.duckdb")
    with store.transaction() as con:
        con.execute(
            "insert into graders values (uuid(), 'openai:m', 1, '{}', now()), (uuid(), 'openai:m', 2, '{}', now())"
        )
    assert [label_of(store, "grader", name) for name in ("openai_batch:m", "openai_chat:m@1", "openai:m@2")] == [
        "openai:m@2",
        "openai:m",
        "openai:m@2",
    ]
