"""Calibration: intervals against repeated samples, no claim on noise, and nothing bought twice."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from benchmarks.null_graders import KINDS, false_claims, power

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.versions import resolve
from alpasift.batcher.grading.calibrate import (
    Calibration,
    calibrate,
    calibration_of,
    is_calibrated,
    stale_calibration,
)
from alpasift.batcher.grading.calibration_fit import (
    analyse,
    cut_for_share,
    point_at,
    reference_share,
    threshold_for,
)
from alpasift.batcher.grading.calibration_sample import (
    Drawn,
    Job,
    Level,
    Pool,
    Seen,
    Stratum,
    allocate,
    draw_sample,
    read_pool,
)
from alpasift.batcher.grading.calibration_threshold import calibrated_threshold
from alpasift.batcher.grading.calibration_verdict import Evidence, Point, no_claim, tells, trivial
from alpasift.batcher.grading.condition import SelectError
from alpasift.batcher.grading.labels import Labelled, import_labels, own_rubric
from alpasift.batcher.grading.lookup import find_grading
from alpasift.batcher.sampling import predict, weighted_auc
from alpasift.batcher.statistics import Figure, auc, ranked, undefined
from alpasift.batcher.store import Store
from alpasift.graders.rehearsal.server import Rehearsal
from conftest import Ran, some_rows, write_rows

Call = Callable[..., Ran]
D = Decimal
Row = tuple[float, bool, int]
"""Cheap score, whether the reference keeps it, length of the output."""


def world(seed: int, slope: float, rows: int = 2000) -> list[Row]:
    """Rows whose chance to be kept rises with the score, or with slope 0 is a tenth whatever the score."""
    chance = random.Random(seed)
    found = []
    for _ in range(rows):
        score = chance.choices([0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0], [5, 10, 20, 30, 20, 10, 5])[0]
        p = 1 / (1 + math.exp(-slope * (score - 4.2))) if slope else 0.1
        found.append((score, chance.random() < p, chance.randint(1, 900)))
    return found


def sampled(rows: list[Row], count: int, seed: int, threshold: float = 4.5) -> tuple[Pool, Drawn]:
    """A stratified sample of rows, as `draw_sample` makes one."""
    chance = random.Random(f"sample {seed}")
    groups = [[row for row in rows if (row[0] >= threshold) == keeper] for keeper in (False, True)]
    keepers, others = allocate(len(groups[1]), len(groups[0]), count)
    taken = [chance.sample(group, n) for group, n in zip(groups, (others, keepers), strict=True)]
    strata = (
        Stratum("others", len(groups[0]), others, others),
        Stratum("keepers", len(groups[1]), keepers, keepers),
    )
    seen = tuple(Seen(score, keeps, h, chars) for h in (0, 1) for score, keeps, chars in taken[h])
    values = sorted({score for score, _, _ in rows})
    sizes = [sum(score == value for score, _, _ in rows) for value in values]
    return Pool(tuple(Level(v, n, n) for v, n in zip(values, sizes, strict=True)), {}), Drawn((), strata, seen, {})


# -- samples and weights ------------------------------------------------------------------------------------------


def test_rare_keepers_make_up_half_of_the_sample_and_short_strata_are_filled_up() -> None:
    assert allocate(5000, 95000, 500) == (250, 250)
    assert allocate(60, 9940, 500) == (60, 440)
    assert allocate(9940, 60, 500) == (440, 60)
    assert allocate(30, 40, 500) == (30, 40)
    assert allocate(0, 400, 100) == (0, 100)


def test_an_unbalanced_sample_is_weighed_back() -> None:
    rows = world(11, 1.2, 4000)
    truth = sum(keeps for _, keeps, _ in rows) / len(rows)
    estimates, raw = [], []
    for seed in range(60):
        pool, drawn = sampled(rows, 300, seed)
        seen = drawn.weighted()
        estimates.append(sum(row.weight for row in seen if row.positive) / pool.examples)
        raw.append(sum(row.positive for row in seen) / len(seen))
    assert abs(sum(estimates) / 60 - truth) < 0.01
    assert sum(raw) / 60 > truth + 0.1


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    hits, repetitions = {"share": 0, "auc": 0, "precision": 0, "recall": 0}, 60
    for seed in range(repetitions):
        rows = world(seed, 1.2)
        pool, drawn = sampled(rows, 200, seed)
        seen = drawn.weighted()
        kept = [keeps for score, keeps, _ in rows if score >= 4.5]
        all_kept = sum(keeps for _, keeps, _ in rows)
        point = point_at(pool, seen, 4.5, 4.5, seed)
        area = auc(ranked((score, keeps, 1) for score, keeps, _ in rows)).value
        for name, figure, truth in (
            ("share", reference_share(pool, seen, 4.5, seed), all_kept / len(rows)),
            ("auc", weighted_auc(seen), area),
            ("precision", point.precision, sum(kept) / len(kept)),
            ("recall", point.recall, sum(kept) / all_kept),
        ):
            assert figure.low is not None and figure.high is not None and truth is not None
            hits[name] += figure.low <= truth <= figure.high
    assert all(count >= 0.85 * repetitions for count in hits.values()), hits


def test_where_every_row_was_seen_the_share_is_known() -> None:
    rows = world(5, 3, 300)
    pool, drawn = sampled(rows, 300, 5)
    found = analyse(pool, drawn, 4.5, 0)
    truth = sum(keeps for _, keeps, _ in rows) / 300
    assert found.share.value == pytest.approx(truth)
    assert (found.share.low, found.share.high) == (pytest.approx(truth), pytest.approx(truth))


# -- the verdict --------------------------------------------------------------------------------------------------


def test_a_planted_relation_is_found() -> None:
    pool, drawn = sampled(world(7, 3), 400, 7)
    found = analyse(pool, drawn, 4.5, 7)
    assert (found.verdict, found.reasons) == ("calibrated", ())
    assert found.held_out is not None and found.held_out.brier < found.held_out.base_brier
    assert predict(found.fit, 5) > 0.8 and predict(found.fit, 1) < 0.1
    assert found.same_share in (4.0, 4.5)
    best = threshold_for(found.curve, 0.6)
    assert best is not None and best.threshold == 4.5
    assert threshold_for(found.curve, 1.01) is None
    assert found.length_lead.low is not None and found.length_lead.low > 0


def test_noise_is_rarely_claimed() -> None:
    claims = 0
    for seed in range(120):
        pool, drawn = sampled(world(seed, 0, 1000), 200, seed)
        claims += analyse(pool, drawn, 4.5, seed).verdict == "calibrated"
    assert claims <= 6  # 2.5 % of 120 are 3; more than 6 has a chance of 3 % even if all else were no hurdle


def test_an_order_upside_down_is_not_claimed() -> None:
    rows = [(5 - score, keeps, chars) for score, keeps, chars in world(9, 3)]
    found = analyse(*sampled(rows, 300, 9), 4.5, 9)
    assert found.verdict == "no_claim"
    assert any("below .5: it ranks what the reference drops above" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("keeps", "reason"),
    [
        (True, "the reference drops only 0 sampled rows"),
        (False, "the reference keeps only 0 sampled rows"),
    ],
)
def test_a_reference_that_keeps_all_or_nothing_shows_nothing(keeps: bool, reason: str) -> None:
    found = analyse(*sampled([(score, keeps, chars) for score, _, chars in world(1, 3, 200)], 100, 1), 4.5, 1)
    assert found.verdict == "no_claim" and found.reasons[0].startswith(reason)
    assert found.held_out is None and found.auc.value is None


def test_a_cheap_grader_of_one_value_shows_nothing() -> None:
    found = analyse(*sampled([(3.0, keeps, chars) for _, keeps, chars in world(1, 3, 200)], 100, 1), 4.5, 1)
    assert found.verdict == "no_claim" and found.auc.reason == "all rows have one value"


def planted(scores: list[tuple[float, bool]]) -> tuple[Pool, Drawn]:
    """All of these rows labelled, with outputs of any length."""
    chance = random.Random(3)
    return sampled([(score, keeps, chance.randint(1, 900)) for score, keeps in scores], len(scores), 0)


def test_a_grader_that_is_length_in_disguise_is_not_claimed() -> None:
    chance = random.Random(1)
    rows = []
    for _ in range(600):
        chars = chance.randint(1, 900)
        rows.append((chars // 90 / 2, chance.random() < 0.1 + 0.8 * (chars > 600), chars))
    found = analyse(*sampled(rows, 300, 1), 4.0, 1)
    assert found.auc.low is not None and found.auc.low > 0.6
    assert found.verdict == "no_claim" and found.curve == ()
    (reason,) = found.reasons
    assert "ranking the longest outputs first" in reason and "not shown to be better" in reason


def test_an_auc_whose_low_end_is_printed_as_half_is_not_claimed() -> None:
    area = Figure(0.58, 0.504, 0.65)
    evidence = Evidence(50, 50, area, "longest", undefined("one length"), undefined("one length"), None, area, ())
    assert no_claim(evidence) == (
        "the AUC is 0.58 (0.50 to 0.65), and chance level is .5: the sample shows no relation",
    )
    assert no_claim(replace(evidence, auc=Figure(0.58, 0.51, 0.65))) == ()


def test_a_threshold_that_keeps_nearly_all_or_nearly_none_carries_no_claim() -> None:
    """All but 6 % of the rows have one score, and none of the others is kept: true, and of no use."""
    found = analyse(*planted([(2.0, False)] * 60 + [(3.0, i % 10 == 0) for i in range(940)]), 3.0, 0)
    assert found.auc.low is not None and found.auc.low > 0.5
    assert found.verdict == "no_claim"
    assert [trivial(share, 0.1) for share in (0.005, 0.02, 0.5, 0.9, 0.95, 1.0)] == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    assert [trivial(share, 0.97) for share in (0.05, 0.5, 0.98, 0.999)] == [True, False, False, True]
    point = Point(3.0, 940, 940, 0.94, 900, Figure(0.12, 0.11, 0.13), Figure(1.0, 0.9, 1.0))
    good = Figure(0.6, 0.58, 0.62)
    evidence = Evidence(100, 900, good, "longest", good, Figure(0.1, 0.08, 0.12), None, Figure(0.1, 0.1, 0.1), (point,))
    (reason,) = no_claim(evidence)
    assert "the threshold 3 keeps 94.0% of the rows, nearly all of them" in reason
    assert no_claim(replace(evidence, curve=(replace(point, share=0.5),))) == ()
    assert no_claim(replace(evidence, curve=(replace(point, share=0.001),)))


def test_a_precision_without_width_carries_no_claim_and_labelling_every_row_gives_one_with_width() -> None:
    found = analyse(*planted([(i % 10 / 2, i % 10 + i // 10 % 3 > 8) for i in range(400)]), 4.5, 0)
    assert found.verdict == "calibrated" and found.share.low == found.share.high
    assert all(one.precision.low != one.precision.high for one in found.curve)
    flat = replace(found.curve[-1], precision=Figure(0.9, 0.9, 0.9))
    assert tells(found.curve[-1], 0.2) and not tells(flat, 0.2)


def test_null_graders_are_rarely_claimed_and_real_ones_are_found() -> None:
    calibrated = agreed = 0
    for kind in KINDS:
        found = false_claims(kind, 6, 0)
        assert max(found) <= 2, (kind.name, found)
        calibrated, agreed = calibrated + found[0], agreed + found[1]
    assert calibrated <= 0.05 * 6 * len(KINDS) and agreed <= 0.05 * 6 * len(KINDS)
    for area, count, least in ((0.8, 100, 2), (0.7, 300, 3), (0.8, 300, 4)):
        assert min(power(area, count, 0.5, 4, 0)) >= least


def test_the_threshold_of_a_share_is_the_nearest_there_is() -> None:
    pool = Pool((Level(1, 50, 50), Level(4, 30, 40), Level(5, 20, 20)), {})
    assert [cut_for_share(pool, share) for share in (0.0, 0.2, 0.34, 0.36, 0.5, 0.9, 1.0)] == [5, 5, 5, 4, 4, 1, 1]


# -- in the database ----------------------------------------------------------------------------------------------


def labelled(store: Store, folder: Path, name: str, scores: list[float], file: str | None = None) -> Labelled:
    path = write_rows(folder / f"{file or name}.jsonl", [{"index": i, "label": x} for i, x in enumerate(scores)])
    return import_labels(store, path, name, resolve(store, None), own_rubric("quality", "0", "5", "0.5", "4.5"))


def job(store: Store, cheap: Labelled, reference: Labelled, sample: int = 200) -> Job:
    version = resolve(store, None).version_id
    two = (find_grading(store, version, one.grader_id, one.rubric_id) for one in (cheap, reference))
    return Job(version, *two, "score", True, sample)


def made(store: Store, folder: Path, slope: float = 3.0, sample: int = 200) -> tuple[Job, Calibration, list[Row]]:
    rows = world(21, slope, 600)
    import_file(store, write_rows(folder / "d.jsonl", some_rows(600)))
    cheap = labelled(store, folder, "cheap", [score for score, _, _ in rows])
    reference = labelled(store, folder, "reference", [5.0 if keeps else 1.0 for _, keeps, _ in rows])
    one = job(store, cheap, reference, sample)
    return one, calibrate(store, one), rows


def test_a_calibration_is_kept_with_all_that_made_it_and_not_twice(store: Store, tmp_path: Path) -> None:
    one, found, rows = made(store, tmp_path)
    assert found.verdict == "calibrated" and found.sample == 200
    assert (found.grader, found.reference, found.rubric) == ("labels:cheap", "labels:reference", "quality")
    assert [s["weight"] for s in found.facts["strata"]] == [
        s["examples"] / s["answered"] for s in found.facts["strata"]
    ]
    assert sum(s["examples"] for s in found.facts["strata"]) == 600
    assert found.p_keep(5) > 0.8 > 0.1 > found.p_keep(2)
    best = found.threshold_precision(0.6)
    assert best is not None and best.rows == sum(score >= best.threshold for score, _, _ in rows)
    assert found.at(best.threshold) == best and found.at(best.threshold - 0.2) == best and found.at(6) is None
    again = calibrate(store, one)
    assert again == found
    assert (
        len(
            store.query("calibrations", grader_id=None, rubric_id=None, scored=None, grader_name=None, rubric_name=None)
        )
        == 1
    )
    assert calibrate(store, replace(one, seed=1)).facts["seed"] == 1
    newest = calibration_of(store, found.grader_id, found.rubric_id)
    assert newest is not None and newest.facts["seed"] == 1
    assert calibration_of(store, found.grader_id, found.rubric_id, "expected_score") is None


def test_the_same_job_draws_the_same_rows_and_a_larger_sample_holds_them(store: Store, tmp_path: Path) -> None:
    one, _, _ = made(store, tmp_path, sample=60)
    pool = read_pool(store, one)
    small, large = draw_sample(store, one, pool), draw_sample(store, replace(one, sample=120), pool)
    assert draw_sample(store, one, pool) == small
    assert len(small.positions) == 60 and set(small.positions) < set(large.positions)
    assert set(draw_sample(store, replace(one, seed=1), pool).positions) != set(small.positions)
    assert small.strata[1].answered == 30


def test_under_no_claim_no_threshold_is_offered(store: Store, tmp_path: Path) -> None:
    _, found, _ = made(store, tmp_path, slope=0)
    assert found.verdict == "no_claim" and found.reasons
    assert found.threshold_same_share is None and found.threshold_precision(0.01) is None and found.curve == ()
    assert found.p_keep(5) == found.p_keep(0) == found.facts["share"]["value"]


def test_a_stored_claim_that_the_rule_of_today_does_not_carry_is_withdrawn(store: Store, tmp_path: Path) -> None:
    """A row as an earlier release wrote it: length does better, and it says calibrated."""
    one, found, _ = made(store, tmp_path)
    assert is_calibrated(store, found.grader_id, found.rubric_id)
    facts = json.loads(json.dumps(found.facts))
    facts["length"] = {
        "direction": "shortest",
        "auc": {"value": 0.95, "low": 0.93, "high": 0.97, "reason": None},
        "lead": {"value": -0.05, "low": -0.08, "high": -0.02, "reason": None},
    }
    with store.transaction() as con:
        con.execute("update calibrations set facts = $facts", {"facts": json.dumps(facts)})
    read = calibration_of(store, found.grader_id, found.rubric_id)
    assert read is not None and read.verdict == "no_claim" and "ranking the shortest outputs first" in read.reasons[0]
    assert read.threshold_same_share is None and not is_calibrated(store, found.grader_id, found.rubric_id)
    with pytest.raises(SelectError, match="makes no claim"):
        calibrated_threshold(store, one.version_id, found.grader, found.rubric, "score", None)


def test_a_calibration_of_another_version_is_stale(store: Store, tmp_path: Path) -> None:
    _, found, _ = made(store, tmp_path)
    assert stale_calibration(store, "labels:cheap", "quality") is None
    newer = labelled(store, tmp_path, "cheap", [3.0] * 600, "cheap2")
    assert newer.grader == "labels:cheap@2"
    stale = stale_calibration(store, "labels:cheap", "quality")
    assert stale == found and calibration_of(store, newer.grader_id, newer.rubric_id) is None
    assert stale_calibration(store, "labels:cheap", "quality", grader_id=found.grader_id) is None
    assert stale_calibration(store, "labels:nobody", "quality") is None


# -- the command --------------------------------------------------------------------------------------------------

SCRIPT = """
usd_per_million_input = "1"
usd_per_million_output = "10"
lines_per_attempt = 5
bill = "bill.txt"
[[reply]]
match = "good"
text = "5"
[[reply]]
text = "1"
"""
"""A paid reference that keeps rows which say good."""


@pytest.fixture
def graded(alpasift: Call, tmp_path: Path) -> Call:
    """400 rows of any length, a third of them good, that a free grader has graded well but not perfectly."""
    chance = random.Random(0)
    rows = [
        {
            "instruction": f"Row {i}",
            "input": "",
            "output": ("good " if i % 3 == 0 else "bad ")
            + chance.choices(["high", "low"], [9, 1] if i % 3 == 0 else [1, 9])[0]
            + " word" * chance.randint(0, 30),
        }
        for i in range(400)
    ]
    write_rows(tmp_path / "d.jsonl", rows)
    (tmp_path / "cheap.toml").write_text('[[reply]]\nmatch = "high"\ntext = "5"\n[[reply]]\ntext = "2"\n')
    (tmp_path / "reference.toml").write_text(SCRIPT)
    assert alpasift("import", "d.jsonl").code == 0
    assert alpasift("grade", "--grader", "fake:cheap.toml", "--rubric", "accuracy").code == 0
    return alpasift


def test_the_command_buys_a_sample_once_and_fits(graded: Call, tmp_path: Path) -> None:
    command = ("calibrate", "--cheap", "fake:cheap.toml", "--reference", "fake:reference.toml", "--sample", 120)
    refused = graded(*command, "--budget", "0.50")
    assert refused.code == 2 and "add --yes" in refused.err and not (tmp_path / "bill.txt").exists()
    done = graded(*command, "--budget", "0.50", "--yes", "--precision", ".8", "--json")
    assert done.code == 0, done.err
    assert len((tmp_path / "bill.txt").read_text().splitlines()) == 120
    found = done.json
    assert found["verdict"] == "calibrated" and found["facts"]["sample"]["answered"] == 120
    assert found["facts"]["share"]["low"] < 134 / 400 < found["facts"]["share"]["high"]
    assert found["precision"][0]["point"]["threshold"] == 5
    again = graded(*command, "--precision", ".8")
    assert again.code == 0, again.err
    assert "the reference has graded all 120 sampled rows already; nothing is sent" in again.err
    assert len((tmp_path / "bill.txt").read_text().splitlines()) == 120
    assert "CALIBRATED" in again.out and "next: alpasift select --min-score 5" in again.err


def test_a_budget_that_ends_leaves_a_command_that_goes_on(graded: Call, tmp_path: Path) -> None:
    command = ("calibrate", "--cheap", "fake:cheap.toml", "--reference", "fake:reference.toml", "--sample", 60, "--yes")
    cut = graded(*command, "--budget", "0.01")
    assert cut.code == 4, cut.err
    done = graded(*command, "--budget", "1", "--json")
    assert done.code == 0, done.err
    assert len(set((tmp_path / "bill.txt").read_text().splitlines())) == 60
    assert json.loads(done.out)["facts"]["sample"]["answered"] == 60


def test_what_cannot_be_calibrated_is_refused_in_one_line(graded: Call, tmp_path: Path) -> None:
    write_rows(tmp_path / "l.jsonl", [{"index": i, "good": int(i % 3 == 0)} for i in range(400)])
    assert graded("labels", "l.jsonl", "--as", "people", "--binary").code == 0
    differ = graded("calibrate", "--cheap", "fake:cheap.toml", "--reference", "labels:people")
    assert differ.code == 1 and "the rubrics differ" in differ.err and "--force" in differ.err
    forced = graded(
        "calibrate", "--cheap", "fake:cheap.toml", "--reference", "labels:people", "--force", "--sample", 200
    )
    assert forced.code == 0 and "CALIBRATED" in forced.out, forced.err
    assert "200 sampled of the 400 distinct rows graded by both" in forced.err
    ungraded = graded("calibrate", "--cheap", "fake", "--reference", "labels:people", "--force")
    assert (
        ungraded.code == 1 and "`alpasift grade --grader fake --rubric accuracy --dataset d` does that" in ungraded.err
    )
    same = graded("calibrate", "--cheap", "labels:people", "--reference", "labels:people")
    assert same.code == 1 and "give two graders" in same.err
    graded("grade", "--grader", "fake", "--rubric", "accuracy", "--limit", 9)
    part = graded("calibrate", "--cheap", "fake", "--reference", "fake:reference.toml", "--budget", 1, "--yes")
    assert part.code == 1 and "has graded 9 of the 400 rows" in part.err


@pytest.mark.parametrize("sample", [500, 100])
def test_force_stores_and_claims_nothing_of_a_grader_that_says_nothing(
    alpasift: Call, tmp_path: Path, sample: int
) -> None:
    """150 labelled rows; nearly all get one score, and the shortest outputs are the good ones."""
    chance = random.Random(4)
    good = [chance.random() < 0.12 for _ in range(150)]
    rows = [
        {"instruction": f"Row {i}", "input": "", "output": "word " * chance.randint(1, 9 if good[i] else 30)}
        for i in range(150)
    ]
    write_rows(tmp_path / "d.jsonl", rows)
    low = {good.index(True), good.index(True, 40), 77, 140}
    labels = [{"index": i, "good": int(good[i]), "cheap": 1 if i in low else 4} for i in range(150)]
    write_rows(tmp_path / "l.jsonl", labels)
    assert alpasift("import", "d.jsonl").code == 0
    assert alpasift("labels", "l.jsonl", "--as", "people", "--field", "good", "--binary").code == 0
    scale = ("--scale", "0:5:1", "--threshold", 4)
    assert alpasift("labels", "l.jsonl", "--as", "cheap", "--field", "cheap", *scale).code == 0
    command = ("calibrate", "--cheap", "labels:cheap", "--reference", "labels:people", "--sample", sample)
    assert alpasift(*command).code == 1
    forced = alpasift(*command, "--force")
    assert forced.code == 0, forced.err
    assert "NO CLAIM" in forced.out and "CALIBRATED" not in forced.out and "chance level is .5" in forced.out
    assert "next: alpasift agree" in forced.err and "select" not in forced.err
    assert alpasift("query", "calibrations", "--json").json[0]["verdict"] == "no_claim"
    for precision in ((), (".05",)):
        refused = alpasift("select", "--calibrated", *precision, "--grader", "labels:cheap", "--name", "kept")
        assert refused.code == 1 and "makes no claim" in refused.err
    beside = alpasift("agree", "labels:cheap", "labels:people")
    assert "no relation found" in beside.out and "calibrate --" not in beside.err


def test_a_selection_by_calibration_says_what_it_rests_on(graded: Call, tmp_path: Path) -> None:
    command = ("calibrate", "--cheap", "fake:cheap.toml", "--reference", "fake:reference.toml", "--sample", 200)
    assert graded(*command, "--budget", 1, "--yes").code == 0
    done = graded("select", "--calibrated", ".8", "--grader", "fake:cheap.toml", "--name", "kept", "--json")
    assert done.code == 0, done.err
    assert (
        "precision 0.8 is at 5; the precision there is 0.8" in done.err and "that of keeping all rows 0.3" in done.err
    )
    kept = done.json[0]["condition"]["calibration"]
    assert 0.7 < kept["precision"]["low"] < kept["precision"]["value"] < kept["precision"]["high"] <= 1
    assert 0.2 < kept["reference_share"] < 0.45


def test_a_batch_that_is_out_leaves_the_same_sample_to_go_on_with(graded: Call, tmp_path: Path) -> None:
    rates = {"input": "0.15", "output": "0.60", "cached_input": "0.15", "cache_write": "0.15", "batch_discount": "0.5"}
    (tmp_path / "prices.toml").write_text(
        '[[price]]\nprovider = "127.0.0.1"\nmodel = "gpt-4o-mini"\ninput = "0.15"\noutput = "0.60"\ndiscount = "0.5"\n'
        'source = "this test"\ndate = 2026-11-01\n'
    )
    key = "sk-rehearsal-0123456789"
    with Rehearsal(key=key, prices={"gpt-4o-mini": rates}, batch_seconds=3600).start() as server:
        command = (
            "calibrate",
            "--cheap",
            "fake:cheap.toml",
            "--reference",
            "openai_batch:gpt-4o-mini",
            "--sample",
            40,
            "--yes",
            "--base-url",
            server.url,
            "--prices",
            "prices.toml",
            "--poll-seconds",
            0.05,
            "--no-wait",
            "--json",
        )
        env = {"OPENAI_API_KEY": key}
        sent = graded(*command, "--budget", 1, env=env)
        assert sent.code == 4 and "the same command resumes with the same sample" in sent.err, sent.err
        assert graded(*command, env=env).code == 4
        server.advance(2 * 3600)
        done = graded(*command, env=env)
        assert done.code == 0, done.err
        sample = done.json["facts"]["sample"]
        assert (sample["drawn"], sample["answered"] + sum(sample["unanswered"].values())) == (40, 40)
        assert sum(server.executions().values()) == 40 and max(server.executions().values()) == 1
