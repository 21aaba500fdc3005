"""What an answer holds: score, explain, json, expected_score; samples of a row; explanations near the threshold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.questions import pending
from alpasift.batcher.engine.run import Run
from alpasift.batcher.engine.task import Item
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade, GradeError, grade_for
from alpasift.graders import BackendUnavailable, Example, open_backend
from alpasift.graders.api.model_families import constrained, family_of
from alpasift.graders.api.wire_format import answer_regex, body_of, call_arguments, cannot, output_cap, reply_of
from alpasift.graders.prompts.reading import expected_score, read_score
from alpasift.graders.prompts.rubric import RubricError, load_rubric, parse_rubric, rubric_of
from conftest import EXAMPLES, Ran, some_rows, write_rows

ROW = Example("Name a colour.", "", "Green.")
LETTERS = """
name = "letters"
dimension = "quality"
low = 0
high = 2
step = 1
threshold = 2
labels = ["A", "B", "C"]
system = "Grade the response: {{labels}}. Answer with one of {{choices}}."
question = "Your answer:"
"""


def letters(**changes: str) -> str:
    text = LETTERS
    for key, value in changes.items():
        text = "\n".join(f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines())
    return text


def grade(rubric: str = "accuracy", answer_format: str | None = None, **more: float) -> Grade:
    return Grade(load_rubric(rubric), answer_format, **more)  # type: ignore[arg-type]


# -- the question ------------------------------------------------------------------------------------------------


def test_score_explain_and_expected_ask_the_same_question_byte_for_byte() -> None:
    asked = {
        c: grade(answer_format=c).request(Item("e", ROW), "s", 0)
        for c in ("score", "explain", "expected_score", "json")
    }
    assert asked["explain"].messages == asked["score"].messages == asked["expected_score"].messages
    assert [r.explain for r in asked.values()] == ["no", "after", "no", "no"]
    assert [r.max_tokens for r in asked.values()] == [8, 256, 8, 256]
    assert [r.want_logprobs for r in asked.values()] == [False, False, True, False]
    user, told = asked["score"].messages[1][1], asked["json"].messages[1][1]
    assert told.startswith(user) and "score, explanation" in told.removeprefix(user)


def test_the_questions_of_the_plain_format_are_those_of_earlier_versions() -> None:
    """Their identity is paid for: a database that was graded before must not be graded again."""
    task = grade()
    assert task.decoding == {"contract": "score", "max_tokens": 8, "temperature": 0, "renderer": "1"}
    assert json.dumps(task.decoding) == '{"contract": "score", "max_tokens": 8, "temperature": 0, "renderer": "1"}'
    assert set(task.rubric.content()) == {
        "name",
        "dimension",
        "low",
        "high",
        "step",
        "threshold",
        "score",
        "max_tokens",
        "system",
        "row",
        "question",
        "gives_reason",
    }


def test_a_rubric_whose_score_comes_last_is_asked_for_its_reasons_first() -> None:
    for name in ("curation", "additive"):
        request = grade(name).request(Item("e", ROW), "s", 0)
        assert (request.explain, request.max_tokens) == ("before", 400)
        assert "Score: N" in request.messages[0][1]
    assert grade("curation").choices == ("1", "2", "3", "4", "5")
    assert load_rubric("curation").threshold == 5
    assert grade("additive").choices == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(GradeError, match="has reasons before the score"):
        grade("curation", "score")


def test_json_has_its_keys_in_the_order_of_the_rubric() -> None:
    first, last = grade(answer_format="json").schema, grade("curation", "json").schema
    assert first is not None and last is not None
    assert list(first["properties"]) == ["score", "explanation"]
    assert list(last["properties"]) == ["explanation", "score"]
    assert last["properties"]["score"] == {"type": "number", "enum": [1, 2, 3, 4, 5]}


@pytest.mark.parametrize(("samples", "temperature"), [(0, None), (65, None), (1, 2.5), (1, -0.1)])
def test_impossible_samples_and_temperatures_are_refused(samples: int, temperature: float | None) -> None:
    with pytest.raises(GradeError):
        grade(samples=samples, temperature=temperature)


def test_a_format_keeps_the_name_that_databases_know_it_by() -> None:
    old, new = (
        parse_rubric(letters(threshold=f'2\n{key} = "{name}"'), "l")
        for key, name in (("contract", "expected"), ("answer_format", "expected_score"))
    )
    assert old == new and new.answer_format == "expected_score"
    assert new.content()["contract"] == "expected" and "answer_format" not in new.content()
    assert rubric_of(new.content()) == new
    assert "contract" not in load_rubric("accuracy").content()
    assert Grade(new).decoding["contract"] == "expected"
    assert Grade(new).decoding == Grade(new, "expected").decoding
    with pytest.raises(RubricError, match="keep one of them"):
        parse_rubric(letters(threshold='2\ncontract = "json"\nanswer_format = "json"'), "l")


# -- labels ------------------------------------------------------------------------------------------------------


def test_labels_are_answered_in_place_of_scores_and_read_as_them() -> None:
    rubric = parse_rubric(LETTERS, "l")
    assert (rubric.answers, rubric.choices) == (("A", "B", "C"), ("0", "1", "2"))
    assert rubric.messages(ROW, "x")[0][1] == "Grade the response: A = 0, B = 1, C = 2. Answer with one of A, B, C."
    read = {
        "B": "1",
        " C\n": "2",
        "**B**": "1",
        "Quality: A": "0",
        "B: it says too little": "1",
        "C\nbecause": "2",
        '{"score": "B"}': "1",
    }
    for text, score in read.items():
        assert read_score(text, rubric).score == Decimal(score), text
    for text in ("D", "A or B", "1", "As a rule", "b"):
        assert read_score(text, rubric).score is None, text
    last = parse_rubric(letters(labels='["A", "B", "C"]\nscore = "last"'), "l")
    assert read_score("It answers well.\nScore: B", last).score == 1
    assert read_score("It answers well.\nScore: B", last).explanation == "It answers well."


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("labels", '["A", "B"]', "2 labels for 3 scores"),
        ("labels", '["A", "a", "B"]', "distinct short words"),
        ("labels", '["A", "B C", "D"]', "distinct short words"),
        ("labels", '"ABC"', "distinct short words"),
        ("threshold", '2\nanswer_format = "guess"', "answer_format = 'guess'"),
        ("threshold", "2\nexplain_tokens = 3", "explain_tokens = 3"),
        ("threshold", '2\nscore = "last"\nanswer_format = "score"', "reasons come first"),
    ],
)
def test_a_rubric_that_does_not_hold_together_is_refused(key: str, value: str, says: str) -> None:
    with pytest.raises(RubricError, match=says):
        parse_rubric(letters(**{key: value}), "l")


# -- the expected score ------------------------------------------------------------------------------------------


def test_the_expected_score_is_the_mean_under_the_probabilities_of_the_answers() -> None:
    rubric = load_rubric("accuracy")
    planted = {"4": math.log(0.1), "4.5": math.log(0.9)}
    assert expected_score(planted, rubric) == pytest.approx(4.45)
    assert expected_score({**planted, " 4.5": math.log(1e-9), "Sure": -12.0}, rubric) == pytest.approx(4.45)
    assert expected_score({"A": math.log(0.25), "C": math.log(0.75)}, parse_rubric(LETTERS, "l")) == pytest.approx(1.5)


def test_an_expected_score_needs_most_of_the_probability_on_the_answers() -> None:
    rubric = load_rubric("accuracy")
    assert expected_score({"Sure": math.log(0.9), "4": math.log(0.1)}, rubric) is None
    assert expected_score({}, rubric) is None
    assert expected_score(None, rubric) is None


# -- the API -----------------------------------------------------------------------------------------------------


def test_an_api_is_asked_for_reasons_without_a_schema_and_for_a_bare_score_with_one() -> None:
    family = family_of("gpt-4.1-nano", "api.openai.com")
    bodies = {
        c: body_of(grade(answer_format=c).request(Item("e", ROW), "s", 0), "gpt-4.1-nano", family)
        for c in ("score", "explain", "json")
    }
    assert "enum" in str(bodies["score"]["response_format"]) and "explanation" not in str(bodies["score"])
    assert "response_format" not in bodies["explain"]
    assert bodies["explain"]["max_tokens"] == 256
    assert list(bodies["json"]["response_format"]["json_schema"]["schema"]["properties"]) == ["score", "explanation"]
    assert output_cap(grade(answer_format="explain").probe(), family) == 256


def test_an_api_gives_an_expected_score_only_where_each_answer_is_one_token() -> None:
    host, expected = "api.openai.com", grade(answer_format="expected_score").probe()
    nano = family_of("gpt-4.1-nano", host)
    assert "'0.5' is not known to be one token" in str(cannot(expected, "gpt-4.1-nano", host, nano))
    lettered = Grade(parse_rubric(LETTERS, "l"), "expected_score").probe()
    assert cannot(lettered, "gpt-4.1-nano", host, nano) is None
    body = body_of(lettered, "gpt-4.1-nano", nano)
    assert (body["logprobs"], body["top_logprobs"], "response_format" in body) == (True, 20, False)
    thinking = family_of("gpt-5-nano", host)
    assert "no log-probabilities" in str(cannot(lettered, "gpt-5-nano", host, thinking))
    reasons_first = grade("curation", "expected_score").probe()
    assert "reasons come first" in str(cannot(reasons_first, "gpt-4.1-nano", host, nano))


def test_the_probabilities_of_the_first_token_are_taken_from_a_reply() -> None:
    top = [
        {"token": "B", "logprob": math.log(0.8)},
        {"token": " B", "logprob": -9.0},
        {"token": "C", "logprob": math.log(0.2)},
    ]
    body = {
        "choices": [
            {
                "message": {"content": "B"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "B", "top_logprobs": top}]},
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "model": "m",
    }
    reply = reply_of("a", "k", "r", body)
    assert reply.logprobs is not None and set(reply.logprobs) == {"B", " B", "C"}
    assert expected_score(reply.logprobs, parse_rubric(LETTERS, "l")) == pytest.approx(1.2, abs=1e-3)
    for hostile in ({"content": "x"}, {"content": [{"top_logprobs": [{"token": 3, "logprob": "-1"}, 7]}]}, [], "x"):
        body["choices"][0]["logprobs"] = hostile  # type: ignore[index]
        assert reply_of("a", "k", "r", body).logprobs is None


def test_a_server_of_ones_own_is_held_to_the_scores_as_it_understands() -> None:
    plain = family_of("my-model", "localhost")
    score, explain = grade().probe(), grade(answer_format="explain").probe()
    assert "structured_outputs" not in body_of(score, "my-model", plain)
    vllm = constrained(plain, "vllm")
    bodies = [body_of(request, "my-model", vllm) for request in (score, explain)]
    assert (
        bodies[0]["structured_outputs"]
        == bodies[1]["structured_outputs"]
        == {"regex": answer_regex(score.choices or ())}
    )
    assert (bodies[0].get("stop"), bodies[1].get("stop")) == (["\n"], None)
    assert call_arguments(bodies[0])["extra_body"] == {"structured_outputs": bodies[0]["structured_outputs"]}
    assert call_arguments(body_of(score, "m", plain)) == body_of(score, "m", plain)
    assert "response_format" in body_of(score, "my-model", constrained(plain, "json"))
    with pytest.raises(Exception, match="--constrain maybe"):
        constrained(plain, "maybe")


# -- which format ------------------------------------------------------------------------------------------------


def test_the_cheapest_format_that_the_grader_can_do_is_taken(tmp_path: Path) -> None:
    fake = open_backend("fake")
    assert grade_for(load_rubric("accuracy"), fake).answer_format == "score"
    assert grade_for(load_rubric("curation"), fake).answer_format == "explain"
    assert grade_for(load_rubric("accuracy"), fake, "explain").answer_format == "explain"
    with pytest.raises(BackendUnavailable, match="format expected_score: log-probabilities"):
        grade_for(load_rubric("accuracy"), fake, "expected_score")


def test_a_format_that_a_grader_cannot_do_is_refused_in_one_line(alpasift: Callable[..., Ran]) -> None:
    alpasift("import", EXAMPLES, "--dataset", "ex")
    ran = alpasift("grade", "--grader", "fake", "--answer-format", "expected_score")
    assert ran.code == 3
    assert ran.err.splitlines()[-1].startswith("alpasift: fake cannot give answers in the format expected_score")
    old = alpasift("grade", "--grader", "fake", "--contract", "expected")
    assert (old.code, old.err.splitlines()[-1]) == (3, ran.err.splitlines()[-1])
    ran = alpasift("plan", "--grader", "openai_chat:gpt-5-nano", "--answer-format", "expected_score")
    assert "gives no log-probabilities" in ran.out + ran.err


@pytest.mark.parametrize("answer_format", ["score", "explain", "json"])
def test_every_format_is_read_back(answer_format: str, store: Store, tmp_path: Path) -> None:
    version = import_file(store, str(write_rows(tmp_path / "d.jsonl", some_rows(12)))).version_id
    for rubric in ("accuracy", "curation"):
        if (rubric, answer_format) == ("curation", "score"):
            continue
        with Run(store, Grade(load_rubric(rubric), answer_format), open_backend("fake"), version) as run:
            assert run.go().usable == 12
    found = store.locked_query(
        "select rubric, count(score), count(explanation) from graded group by rubric order by 1"
    ).rows
    reasons = 0 if answer_format == "score" else 12
    assert found[0] == ("accuracy", 12, reasons)
    if answer_format != "score":
        assert found[1] == ("curation", 12, 12)


# -- samples -----------------------------------------------------------------------------------------------------


def test_samples_give_a_mean_and_a_spread_and_more_of_them_ask_only_what_is_new(store: Store, tmp_path: Path) -> None:
    version = import_file(store, str(write_rows(tmp_path / "d.jsonl", some_rows(7)))).version_id
    rubric, fake = load_rubric("additive"), open_backend("fake")

    def run(samples: int, **more: int) -> tuple[int, int]:
        with Run(store, Grade(rubric, samples=samples), fake, version, **more) as one:  # type: ignore[arg-type]
            summary = one.go()
        return summary.asked, summary.usable

    assert run(2) == (14, 14)
    assert run(3) == (7, 7)
    assert run(3) == (0, 0)
    by_hand = store.locked_query("""
        select q.example_id, avg(r.score)::decimal(9, 3), count(*), stddev_samp(r.score)
        from readings r join questions q using (key) group by 1 order by 1""").rows
    found = store.locked_query("select example_id, score, samples, spread from graded order by 1").rows
    assert [row[:3] for row in found] == [row[:3] for row in by_hand]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in by_hand])
    assert all(count == 3 for _, _, count, _ in by_hand)
    assert any(spread > 0 for _, _, _, spread in by_hand)
    assert {q for (q,) in store.locked_query("select distinct sample from questions").rows} == {0, 1, 2}


def test_a_limit_counts_rows_and_not_samples(store: Store, tmp_path: Path) -> None:
    version = import_file(store, str(write_rows(tmp_path / "d.jsonl", some_rows(5)))).version_id
    task, fake = Grade(load_rubric("additive"), samples=3), open_backend("fake")
    with Run(store, task, fake, version, limit=2) as run:
        assert run.go().usable == 6
    found = pending(store, task, fake, version)
    questions, answered = found.questions, found.already
    assert (len(questions), questions.rows, answered) == (9, 3, 6)


def test_one_sample_without_a_temperature_is_another_question_than_a_warm_one() -> None:
    assert grade().decoding["temperature"] == 0
    assert grade(samples=3).decoding["temperature"] == 0.7
    assert grade(samples=3, temperature=0.0).decoding == grade().decoding


# -- explanations near the threshold -----------------------------------------------------------------------------


def test_explanations_are_bought_for_the_rows_near_a_score_only(alpasift: Callable[..., Ran], tmp_path: Path) -> None:
    write_rows(tmp_path / "d.jsonl", some_rows(60))
    alpasift("import", "d.jsonl")
    ran = alpasift("grade", "--grader", "fake", "--explain-near", "4.5")
    assert ran.code == 2 and "grade first" in ran.err
    assert alpasift("grade", "--grader", "fake").code == 0
    before = {
        r["example_id"]: r["score"] for r in alpasift("sql", "select example_id, score from graded", "--json").json
    }
    near = sum(4 <= float(score) <= 5 for score in before.values())
    assert 0 < near < 60
    ran = alpasift("grade", "--grader", "fake", "--explain-near", "4.5")
    assert ran.code == 0 and f"{near} rows score within 0.5 of 4.5" in ran.err and f"{near} replies" in ran.err
    after = alpasift("sql", "select example_id, score, explanation from graded", "--json").json
    assert {r["example_id"]: r["score"] for r in after} == before
    assert sum(r["explanation"] is not None for r in after) == near
    assert all(4 <= float(r["score"]) <= 5 for r in after if r["explanation"])
    assert "0 replies" in alpasift("grade", "--grader", "fake", "--explain-near", "4.5").err


# -- several graders below each other, and the threshold of a calibration ------------------------------------------


def test_gradings_put_graders_below_each_other(store: Store, tmp_path: Path) -> None:
    version = import_file(store, str(write_rows(tmp_path / "d.jsonl", some_rows(30)))).version_id
    for rubric in ("accuracy", "curation"):
        with Run(store, Grade(load_rubric(rubric)), open_backend("fake"), version) as run:
            run.go()
    found = store.locked_query(
        "select rubric, graded, scored, mean_score, kept, kept_share, usd from gradings order by 1"
    ).rows
    for rubric, asked, scored, mean, kept, share, usd in found:
        scores = [
            float(s) for (s,) in store.locked_query("select score from graded where rubric = $r", {"r": rubric}).rows
        ]
        threshold = float(load_rubric(rubric).threshold)
        assert (asked, scored, usd) == (30, 30, 0)
        assert mean == pytest.approx(sum(scores) / 30)
        assert (kept, share) == (sum(s >= threshold for s in scores), sum(s >= threshold for s in scores) / 30)
    assert [row[0] for row in found] == ["accuracy", "curation"]


def test_a_selection_goes_by_the_threshold_of_a_calibration(alpasift: Callable[..., Ran], tmp_path: Path) -> None:
    rows = some_rows(600)
    write_rows(tmp_path / "d.jsonl", rows)
    scores = [(i * 7) % 11 / 2 for i in range(600)]
    keeps = [int((score >= 4 and i % 9 != 0) or i % 23 == 0) for i, score in enumerate(scores)]
    write_rows(tmp_path / "cheap.jsonl", [{"index": i, "label": score} for i, score in enumerate(scores)])
    write_rows(tmp_path / "people.jsonl", [{"index": i, "label": keep} for i, keep in enumerate(keeps)])
    alpasift("import", "d.jsonl")
    assert alpasift("labels", "cheap.jsonl", "--as", "cheap", "--rubric", "accuracy").code == 0
    assert alpasift("labels", "people.jsonl", "--as", "people", "--binary").code == 0
    chosen = ("select", "--grader", "labels:cheap", "--name", "kept", "--json")
    ran = alpasift(*chosen, "--calibrated")
    assert ran.code == 1 and "was never calibrated; run `alpasift calibrate`" in ran.err
    ran = alpasift("calibrate", "--cheap", "labels:cheap", "--reference", "labels:people", "--sample", "400", "--force")
    assert ran.code == 0 and "CALIBRATED" in ran.out
    (manifest,) = alpasift(*chosen, "--calibrated").json
    assert manifest["condition"]["min_score"] == 4
    assert manifest["counts"]["kept"] == sum(score >= 4 for score in scores)
    assert manifest["condition"]["calibration"]["reference"] == "labels:people"
    (precise,) = alpasift(*chosen, "--calibrated", ".7").json
    assert precise["condition"]["calibration"]["what"] == "precision 0.7"
    kept = {i for i, score in enumerate(scores) if score >= precise["condition"]["min_score"]}
    assert sum(keeps[i] for i in kept) / len(kept) > 0.6  # .7 is what the sample of 400 says, with an interval
    ran = alpasift(*chosen, "--calibrated", ".999")
    assert ran.code == 1 and "no threshold of labels:cheap" in ran.err
    write_rows(tmp_path / "cheap2.jsonl", [{"index": i, "label": 5 - score} for i, score in enumerate(scores)])
    assert alpasift("labels", "cheap2.jsonl", "--as", "cheap", "--rubric", "accuracy").code == 0
    ran = alpasift(*chosen, "--calibrated")
    assert ran.code == 1 and "is stale" in ran.err
