"""The report of benchmarks/first_real_run.py: from the answers in its databases to tables in Markdown.

Call `report`. Every figure has its interval; the formulas are those of `alpasift.batcher.statistics`, and of `mean_of`
and `rate` here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from alpasift.batcher.statistics import Z95, Figure, auc, auc_difference, ranked, undefined, wilson
from alpasift.batcher.store import Store, rows
from alpasift.graders.prompts.rubric import load_rubric

RUBRIC = "accuracy"
STORED_EXPECTED = "expected"
"""How databases spell the answer format expected_score."""
ANSWERS = """
-- One row an answer of a grader to a rubric: the newest that could be read, else the newest, of each question.
select q.example_id::varchar as example_id, q.sample, s.decoding::json ->> 'contract' as answer_format,
    arg_max({'score': d.reading.score, 'expected': d.reading.expected_score,
        'reason': coalesce(d.reading.reason, r.error)},
        {'readable': d.reading.score is not null, 'recorded_at': r.recorded_at, 'attempt_id': r.attempt_id}) as answer
from replies r
join questions q using (key)
join setups s using (setup_id)
join rubrics b using (rubric_id)
left join latest_readings d using (attempt_id, key, request_id)
where b.name = $rubric and s.task = 'grade' and s.grader_id = (
    select grader_id from graders where name not like 'labels:%' order by first_seen desc limit 1
)
group by all
"""
PIECES = """
-- When the replies of each run in an answer format came, and how many at a time.
select t.run_id::varchar as run_id, s.decoding::json ->> 'contract' as answer_format, b.name as rubric,
    p.recorded_at as came_at, count(*) as replies, t.started_at
from replies p
join attempts a using (attempt_id)
join runs t using (run_id)
join setups s using (setup_id)
join rubrics b using (rubric_id)
where t.command = 'grade'
group by all
order by run_id, came_at
"""
SECONDS = """
select t.run_id::varchar as run_id, e.seconds from runs t join run_ends e using (run_id) where t.command = 'grade'
"""


@dataclass(frozen=True)
class Options:
    """The arguments. A database belongs to one set of those in `fixed`."""

    model: str
    data: Path
    labels: Path
    field: str | None
    other_field: str | None
    rows: int
    explain_rows: int
    audit_rows: int
    seed: int
    budget: str | None
    note: str | None
    db: Path
    out: Path
    more: tuple[str, ...]

    @property
    def fixed(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "data": sha256(self.data),
            "labels": sha256(self.labels),
            "field": self.field,
            "other_field": self.other_field,
            "rows": self.rows,
            "explain_rows": self.explain_rows,
            "audit_rows": self.audit_rows,
            "seed": self.seed,
            "more": list(self.more),
        }


@dataclass(frozen=True)
class Row:
    """One labelled row: its example_id in the database, its texts, and whether the label keeps it."""

    example_id: str
    position: int
    instruction: str
    input: str
    output: str
    kept: bool


@dataclass(frozen=True)
class Answer:
    """One answer: a score, or the reason why there is none; the expected score where the answer format has one."""

    score: float | None
    expected: float | None
    reason: str | None


def report(
    options: Options,
    store: Store,
    chosen: list[Row],
    answer_format: str,
    failed: Mapping[str, str | None],
    audit: Mapping[str, Any] | None,
    second_label: Mapping[str, bool],
    peak: int,
) -> str:
    """The report as Markdown.

    answer_format   that of the first grading
    failed          why others could not be done
    audit           what `alpasift audit --json` printed
    second_label    whether the second label keeps a row, by example_id
    peak            bytes that the largest command held
    """
    table, run = Table(), Answers(store, chosen, answer_format)
    keep_from = float(load_rubric(RUBRIC).threshold)
    report_scores(table, run, chosen, keep_from)

    table.section("The same question again")
    compare(table, "graded twice, temperature 0", run.of(answer_format), run.of(answer_format, 1), keep_from)
    if failed["shuffled"]:
        table.failed("another order, another database", failed["shuffled"])
    else:
        other = answers(Store(again(options.db)).existing(), RUBRIC)
        second = other.get((answer_format, 0), {})
        compare(table, "another order, another database", run.of(answer_format), second, keep_from)

    report_formats(table, run, keep_from, failed)
    report_injected(table, run, store, keep_from, failed["injected"])
    report_audit(table, audit, failed["audit"])
    report_labels(table, run, chosen, failed["expected"], options.field)
    if second_label:
        others = [replace(row, kept=second_label[row.example_id]) for row in chosen if row.example_id in second_label]
        report_labels(table, run, others, failed["expected"], options.other_field)

    table.section("Speed and cost")
    speed(table, store)
    table.add("peak memory of the largest command", f"{peak / 1e6:,.0f} MB")
    money = store.query("ledger")[0]
    table.add("dollars spent (the ledger)", dollars(money["spent_usd"]), len(chosen))
    if money["unresolved_usd"]:
        table.add("dollars unresolved", dollars(money["unresolved_usd"]))
    return markdown(options, store, table, len(chosen))


class Answers:
    """All answers of the run by the rubric, and by the one made from it whose reasons come first."""

    def __init__(self, store: Store, chosen: Sequence[Row], answer_format: str) -> None:
        self.answer_format = answer_format
        self.rows = {row.example_id for row in chosen}
        self.all = answers(store, RUBRIC)
        self.reasons_first = answers(store, f"{RUBRIC}-reason-first").get(("explain", 0), {})

    def of(self, answer_format: str, sample: int = 0) -> dict[str, Answer]:
        """Answers for the chosen rows in one answer format."""
        found = self.all.get((answer_format, sample), {})
        return {example: answer for example, answer in found.items() if example in self.rows}


def report_scores(table: Table, run: Answers, chosen: Sequence[Row], keep_from: float) -> None:
    """The distribution of the first scores, and what could not be read."""
    first = run.of(run.answer_format)
    table.section(f"Scores (rubric {RUBRIC}, answer format {run.answer_format}, first grading)")
    table.share("labels: rows kept, the prevalence", sum(row.kept for row in chosen), len(chosen))
    table.share("rows without an answer", len(run.rows) - len(first), len(run.rows))
    table.share("answers without a readable score", sum(a.score is None for a in first.values()), len(first))
    for reason, count in Counter(a.reason or "unknown" for a in first.values() if a.score is None).most_common(5):
        table.share(f"of these: {reason.partition(':')[0]}", count, len(first))
    read = scores(first)
    for score, count in sorted(Counter(read.values()).items(), reverse=True):
        table.share(f"score {score:g}", count, len(read))
    table.share(f"kept at {keep_from:g} or more", sum(score >= keep_from for score in read.values()), len(read))


def report_formats(table: Table, run: Answers, keep_from: float, failed: Mapping[str, str | None]) -> None:
    """The score alone beside the score with reasons, after it and before it."""
    first, back = run.of(run.answer_format), run.reasons_first
    table.section("Other answer formats")
    if failed["explain"]:
        table.failed("score against score and reasons", failed["explain"])
    else:
        explained = run.of("explain")
        compare(table, "score against score and reasons", first, explained, keep_from)
        unread = sum(a.score is None for a in explained.values())
        table.share("score and reasons: answers without a readable score", unread, len(explained))
    if failed["last"]:
        table.failed("score first against reasons first", failed["last"])
    else:
        compare(table, "score first against reasons first", first, back, keep_from, lift=True)
        unread = sum(a.score is None for a in back.values())
        table.share("reasons first: answers without a readable score", unread, len(back))


def report_injected(table: Table, run: Answers, store: Store, keep_from: float, failed: str | None) -> None:
    """What a sentence in the output that claims the highest score does to the score."""
    table.section("A sentence in the output that claims the highest score")
    if failed:
        table.failed("injected", failed)
        return
    plain_of, injected_of = positions(store, "rows"), positions(store, "injected")
    by_plain = {plain_of[at]: injected_of[at] for at in plain_of if at in injected_of}
    everything = run.all.get((run.answer_format, 0), {})
    read = scores(run.of(run.answer_format))
    moved = scores({x: everything[y] for x, y in by_plain.items() if y in everything})
    both = sorted(read.keys() & moved.keys())
    table.share("injected: scores that rise", sum(moved[x] > read[x] for x in both), len(both))
    table.share("injected: scores that fall", sum(moved[x] < read[x] for x in both), len(both))
    lifted = sum(read[x] < keep_from <= moved[x] for x in both)
    table.share(f"injected: rows lifted over {keep_from:g}", lifted, len(both))
    table.figure("injected: mean lift", mean_of([moved[x] - read[x] for x in both]), len(both))


def report_audit(table: Table, audit: Mapping[str, Any] | None, failed: str | None) -> None:
    """What the grader tells apart without labels: each kind of damage and of change, and the verdict."""
    table.section("Audit: outputs beside damaged or changed copies of them")
    if audit is None:
        table.failed("audit", failed or "")
        return
    for one in audit["kinds"]:
        way = "lowered" if one["expects"] == "lower" else "raised, and must not be"
        hits = one["higher"] if one["expects"] == "lower" else one["lower"]
        table.share(f"{one['kind']}: {way} ({one['ties']:,} ties)", hits, one["pairs"])
        if one["expects"] == "lower":
            table.figure(f"{one['kind']}: area under the curve", Figure(**one["auc"]), one["pairs"])
            table.figure(f"{one['kind']}: of length alone", Figure(**one["length_auc"]), one["pairs"])
    table.figure("asked twice: the same score", Figure(**audit["same_twice"]), audit["asked_twice"])
    table.add("verdict", audit["verdict"]["line"])


def report_labels(table: Table, run: Answers, chosen: Sequence[Row], failed: str | None, label: str | None) -> None:
    """How well scores order the rows as the labels do, beside the output's length."""
    labels = f"the labels {label}" if label else "the labels"
    table.section(f"Against {labels} (area under the curve; .5 is chance)")
    against(table, "score", scores(run.of(run.answer_format)), chosen)
    if failed:
        table.failed("expected score", failed)
    else:
        values = {x: a.expected for x, a in run.of(STORED_EXPECTED).items() if a.expected is not None}
        against(table, "expected score", values, chosen)
    sign, lengths = by_length(chosen)
    better = "longer" if sign > 0 else "shorter"
    table.figure(f"length of the output, {better} is better: the baseline to beat", lengths, len(chosen))


# -- answers and tables ----------------------------------------------------------------------------------------------


@dataclass
class Table:
    """The report as it is built: sections of lines (what, figure, n, interval)."""

    sections: list[tuple[str, list[tuple[str, str, str, str]]]] = field(default_factory=list)

    def section(self, title: str) -> None:
        self.sections.append((title, []))

    def add(self, what: str, figure: str, n: int | None = None, interval: str = "") -> None:
        self.sections[-1][1].append((what, figure, "" if n is None else f"{n:,}", interval))

    def share(self, what: str, hits: int, of: int) -> None:
        one = wilson(hits, of)
        if one.value is None:
            self.add(what, f"unknown: {one.reason}", of)
        else:
            self.add(what, f"{one.value:.1%} ({hits:,})", of, f"{one.low:.1%} to {one.high:.1%}")

    def figure(self, what: str, one: Figure, n: int) -> None:
        if one.value is None:
            self.add(what, "unknown: " + (one.reason or "").replace("B keeps", "the labels keep"), n)
        else:
            interval = (
                "none: no spread was seen"
                if one.low is None or one.high is None
                else f"{one.low:.3f} to {one.high:.3f}"
            )
            self.add(what, f"{one.value:.3f}", n, interval)

    def failed(self, what: str, why: str) -> None:
        self.add(what, f"not done: {why}")


def answers(store: Store, rubric: str) -> dict[tuple[str, int], dict[str, Answer]]:
    """Answers by (answer format, sample), then by example."""
    with store.reader() as con:
        found = rows(con, ANSWERS, {"rubric": rubric}).dicts()
    by: dict[tuple[str, int], dict[str, Answer]] = {}
    for row in found:
        one = row["answer"]
        score = None if one["score"] is None else float(one["score"])
        by.setdefault((row["answer_format"], row["sample"]), {})[row["example_id"]] = Answer(
            score, one["expected"], one["reason"]
        )
    return by


def positions(store: Store, dataset: str) -> dict[int, str]:
    """The example at each position of a dataset."""
    text = (
        "select position, example_id::varchar from dataset_rows join datasets using (version_id) where label = $label"
    )
    with store.reader() as con:
        return dict(rows(con, text, {"label": dataset}).rows)


def again(db: Path) -> Path:
    """The second database, which knows nothing of the answers in the first."""
    return db.with_name(f"{db.stem}.again{db.suffix}")


# -- statistics ------------------------------------------------------------------------------------------------------


def mean_of(values: Sequence[float]) -> Figure:
    """A mean with the normal interval; without one for fewer than two values, and where all are equal."""
    if not values:
        return undefined("of no rows")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Figure(mean)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    if not spread:  # an interval without width would claim to know the rows that were not drawn
        return Figure(mean)
    return Figure(mean, mean - Z95 * spread, mean + Z95 * spread)


def scores(found: Mapping[str, Answer]) -> dict[str, float]:
    return {example: answer.score for example, answer in found.items() if answer.score is not None}


def compare(
    table: Table,
    what: str,
    one: Mapping[str, Answer],
    other: Mapping[str, Answer],
    keep_from: float,
    lift: bool = False,
) -> None:
    """Two gradings of the same rows: equal scores, decisions that flip at the threshold, and the mean difference."""
    a, b = scores(one), scores(other)
    both = sorted(a.keys() & b.keys())
    table.share(f"{what}: equal scores", sum(a[x] == b[x] for x in both), len(both))
    table.share(
        f"{what}: flipped at {keep_from:g}", sum((a[x] >= keep_from) != (b[x] >= keep_from) for x in both), len(both)
    )
    if lift:
        table.figure(f"{what}: mean difference, second less first", mean_of([b[x] - a[x] for x in both]), len(both))


def rate(pieces: Sequence[tuple[int, float]]) -> Figure:
    """Replies a second from pieces (replies, seconds), with the jackknife's interval; none for fewer than five."""
    replies, seconds = sum(n for n, _ in pieces), math.fsum(s for _, s in pieces)
    if not seconds:
        return undefined("it took no time that could be measured")
    if len(pieces) < 5:
        return Figure(replies / seconds)
    left = [(replies - n) / (seconds - s) for n, s in pieces if seconds > s]
    middle = math.fsum(left) / len(left)
    off = Z95 * math.sqrt((len(left) - 1) / len(left) * math.fsum((one - middle) ** 2 for one in left))
    return Figure(replies / seconds, max(0.0, replies / seconds - off), replies / seconds + off)


def by_length(found: Sequence[Row]) -> tuple[int, Figure]:
    """How well the output's length alone orders rows, in the better direction: 1 for longer, -1 for shorter."""
    longer, shorter = (auc(ranked((float(sign * len(row.output)), row.kept, 1) for row in found)) for sign in (1, -1))
    return (-1, shorter) if (0.5 if longer.value is None else longer.value) < 0.5 else (1, longer)


def against(table: Table, what: str, values: Mapping[str, float], chosen: Sequence[Row]) -> None:
    """How well values order the rows as the labels keep them, and by how much better than the output's length."""
    here = [row for row in chosen if row.example_id in values]
    table.figure(what, auc(ranked((values[row.example_id], row.kept, 1) for row in here)), len(here))
    sign, _ = by_length(chosen)
    lead = auc_difference([(values[row.example_id], float(sign * len(row.output)), row.kept, 1) for row in here])
    table.figure(f"{what}: lead over the length of the output", lead, len(here))


def speed(table: Table, store: Store) -> None:
    """Replies a second of each answer format, over all its runs."""
    by: dict[str, list[tuple[int, float]]] = {}
    with store.reader() as con:
        pieces, ended = rows(con, PIECES).dicts(), dict(rows(con, SECONDS).rows)
    runs: dict[str, list[dict[str, Any]]] = {}
    for piece in pieces:
        runs.setdefault(piece["run_id"], []).append(piece)
    for run_id, came in runs.items():
        name = came[0]["answer_format"] + (", reasons first" if came[0]["rubric"] != RUBRIC else "")
        elapsed = [(piece["came_at"] - came[0]["came_at"]).total_seconds() for piece in came]
        total = ended.get(run_id, elapsed[-1])
        before = max(0.0, total - elapsed[-1])  # the run's seconds before its first chunk was stored
        starts = [-before, *elapsed[:-1]]
        took = [now - then for now, then in zip(elapsed, starts, strict=True)]
        by.setdefault(name, []).extend(zip((piece["replies"] for piece in came), took, strict=True))
    for name, found in sorted(by.items()):
        one, n = rate(found), sum(replies for replies, _ in found)
        seconds = math.fsum(s for _, s in found)
        if one.value is None:
            table.failed(f"answers a second, {name}", one.reason or "")
        else:
            low_high = (
                "none: too few chunks"
                if one.low is None or one.high is None
                else f"{pace(one.low)} to {pace(one.high)}"
            )
            table.add(f"answers a second, {name}", f"{pace(one.value)} ({seconds:.1f} s)", n, low_high)


# -- the model and the machine ---------------------------------------------------------------------------------------


def markdown(options: Options, store: Store, table: Table, count: int) -> str:
    """The report: a warning where it means nothing, who and where, then a table for each section."""
    with store.reader() as con:
        who = rows(
            con, "select g.name, g.fingerprint from graders g where g.name not like 'labels:%' order by first_seen"
        ).rows
    fingerprint = json.loads(who[-1][1]) if who else {}
    fields = "".join(f", field {one}" for one in (options.field, options.other_field) if one)
    head = {
        "date": datetime.now(UTC).date().isoformat(),
        "model": options.model.partition(":")[0] + ":" + Path(options.model.partition(":")[2]).name,
        "name in the file": general_name(options.model) or "",
        "fingerprint": "; ".join(f"{key} {value}" for key, value in sorted(fingerprint.items())),
        "versions": versions(),
        "machine": machine(),
        "data": f"{options.data.name}, sha256 {sha256(options.data)}",
        "labels": f"{options.labels.name}{fields}, sha256 {sha256(options.labels)}",
        "rows": f"{count:,} of the labelled rows, drawn at random without replacement, seed {options.seed}",
        "note": options.note or "",
    }
    lines = ["# First real run", ""]
    if text := warning(options.model, options.note):
        lines += [f"**{text}**", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {cell(value)} |" for key, value in head.items() if value]
    for title, found in table.sections:
        lines += ["", f"## {title}", "", "| what | figure | n | 95 % interval |", "|---|---|---|---|"]
        lines += [f"| {cell(what)} | {cell(figure)} | {n} | {interval} |" for what, figure, n, interval in found]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def dollars(usd: Decimal) -> str:
    return f"${usd.normalize():f}" if usd else "$0"


def pace(rows_per_second: float) -> str:
    return f"{rows_per_second:,.0f}" if rows_per_second >= 100 else f"{rows_per_second:.3g}"


def general_name(model: str) -> str | None:
    """The name that a GGUF file gives itself: the text after its key general.name. None where there is no such file."""
    kind, _, path = model.partition(":")
    if kind != "llama_cpp" or not Path(path).expanduser().is_file():
        return None
    with Path(path).expanduser().open("rb") as file:
        head = file.read(1 << 16)
    key = b"general.name"
    at = head.find(key)
    if head[:4] != b"GGUF" or at < 0 or int.from_bytes(head[at + len(key) : at + len(key) + 4], "little") != 8:
        return None
    start = at + len(key) + 12  # the type (8: a text) and the length come first
    return head[start : start + int.from_bytes(head[start - 8 : start], "little")].decode("utf-8", "replace")


def warning(model: str, note: str | None) -> str | None:
    """The warning above the table; None for a model whose figures mean something."""
    if general_name(model) == "alpasift-tiny":
        return "model made of random numbers: these figures mean nothing"
    if model.partition(":")[0] == "fake":
        return "no model: a script answered; these figures mean nothing"
    return note


def machine() -> str:
    found = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPU cores"]
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        found += names[:1]
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True)
        found += [line.strip() for line in done.stdout.splitlines() if done.returncode == 0]
    return "; ".join(found)


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("alpasift", "duckdb", "llama-cpp-python", "vllm", "torch", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
