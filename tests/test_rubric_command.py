"""The command `rubric`: a rubric is begun, checked and seen as a grader would see it, for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alpasift.graders.prompts.rubric import RubricError, load_rubric, parse_rubric, rubric_names
from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]
HEAD = 'name = "short"\nlow = 1\nhigh = 3\nstep = 1\nthreshold = 3\n'


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (
            "Judge the {dimension}.",
            "line 6: system holds {dimension}, which would be sent literally; write {{dimension}}",
        ),
        ("From { low } to {{high}}.", "line 6: system holds { low }"),
        ("From {{Low}} on.", "line 6: system holds {{Low}}, which is not a field; did you mean low?"),
        ("From {{dimensions}} on.", "has the unknown field {{dimensions}}; did you mean dimension?"),
    ],
)
def test_what_looks_like_a_field_and_is_none_is_refused_with_its_line(system: str, words: str) -> None:
    with pytest.raises(RubricError) as error:
        parse_rubric(f'{HEAD}system = "{system}"\nquestion = "{{{{dimension}}}}?"\n', "mine.toml")
    assert words in str(error.value)


def test_braces_that_name_no_field_stay(tmp_path: Path) -> None:
    text = HEAD + "system = '''Answer {\"score\": 3}, as in {x} or \\frac{a}{b}.'''\nquestion = 'Score:'\n"
    assert parse_rubric(text, "mine.toml").name == "short"
    assert [load_rubric(name).name for name in rubric_names()] == rubric_names()


def test_a_new_rubric_passes_its_check_and_shows_the_prompt_of_a_row(alpasift: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", some_rows(4))
    alpasift("import", "r.jsonl")
    assert alpasift("rubric", "new", "clarity.toml").code == 0
    assert alpasift("rubric", "check", "clarity.toml").out == "clarity: 0 to 5 in steps of 1, threshold 4\n"
    ran = alpasift("rubric", "show", "clarity.toml", "--row", "2")
    assert ran.code == 0, ran.err
    assert "Judge one thing only: the clarity of the response." in ran.out
    assert "Add the number 2 to itself." in ran.out
    assert "nothing was sent" in ran.err
    shown = alpasift("rubric", "show", "clarity.toml", "--row", "2", "--json").json
    assert [role for role, _ in shown["messages"]] == ["system", "user"]
    assert shown["choices"] == ["0", "1", "2", "3", "4", "5"]
    assert alpasift("query", "labels", "--json").json == []
    again = alpasift("rubric", "new", "clarity.toml")
    assert (again.code, "clarity.toml exists" in again.err) == (2, True), again.err
    beyond = alpasift("rubric", "show", "accuracy", "--row", "9")
    assert (beyond.code, "rows are numbered from 0" in beyond.err) == (1, True), beyond.err


def test_a_built_in_rubric_is_shown_and_all_are_listed(alpasift: Call) -> None:
    assert alpasift("rubric", "show").out.split() == rubric_names()
    shown = alpasift("rubric", "show", "accuracy").out
    assert shown.startswith("accuracy: 0 to 5 in steps of 0.5, threshold 4.5\n")
    assert "{{choices}}" in shown
