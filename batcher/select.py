"""From scores to a subset: which rows of a dataset version are kept, written down with what made it so.

Knows grades and rows as SQL shows them; nothing of backends, files or training. A selection is a set of positions of one
dataset version and a manifest: condition, grader, rubric, counts, ties, reasons, composition and fingerprints. Nothing is
ever changed: the same name with another result is its next version, NAME@2.

Every choice is repeatable. Where rows are equally good, or where chance is wanted, they are ordered by their draw,

    md5("PURPOSE SEED EXAMPLE_ID COPY")     in hexadecimal; PURPOSE is tie, random or nested,

where COPY counts the rows of equal content from 1. A draw depends neither on the machine, nor on the order of the
file, nor on DuckDB. Purposes have draws of their own, so that a random baseline does not follow the rows that won a tie.

Method: Chen et al. 2023 (AlpaGasus, arXiv 2307.08701): the threshold of section 2.3, the random and the nested 3k and 6k
subsets of sections 4.1 and 4.2. Quotas are the remedy for what its section 6 finds, that code is hardly kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from importlib import metadata
from typing import Any, Literal, get_args

import pyarrow as pa

from batcher.store import Connection, QueryError, Store, hash_id, named_query, rows, scalar, utc_now
from graders import AlpaSiftError
from graders.rubric import spell

Order = Literal["random", "longest", "shortest"]
By = Literal["score", "expected"]
Combine = Literal["mean", "median", "minimum"]
_COMBINED = {"mean": "avg", "median": "median", "minimum": "min"}

MEMORY = "1GB"
WHERE_SECONDS = 300.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VOLATILE = ("selection", "composition", "alpasift", "duckdb", "created_at")
"""parts of a manifest that do not make it another selection"""


class SelectError(AlpaSiftError):
    """A selection that cannot be made, or cannot be found."""


class NotGraded(SelectError):
    """No grader has been asked about the dataset version."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The grader and rubric whose scores count, and how they have answered about one dataset version.

    `observed_step` is the widest step on which all their scores lie, None below two distinct scores; `step` is the
    rubric's own. `asked` counts rows with a reply, `scored` those with a score.
    """

    grader_id: str
    rubric_id: str
    grader: str
    rubric: str
    threshold: Decimal
    low: Decimal
    high: Decimal
    step: Decimal
    observed_step: Decimal | None
    highest: Decimal | None
    asked: int
    scored: int
    fingerprint: str
    rubric_sha256: str

    def means(self, threshold: Decimal) -> Decimal:
        """The lowest score on the observed step that reaches the threshold: 4.5 means 5 to a grader of whole numbers."""
        step = self.observed_step or self.step
        steps = ((threshold - self.low) / step).to_integral_value(ROUND_CEILING)
        return self.low + step * steps


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows to keep: exactly one of min_score, top, keep_share, where and order; the rest refines it.

    min_score   rows with this score or more
    top         this many rows of the highest scores
    keep_share  this share (0 < share <= 1) of all rows of the dataset version, rounded half up, highest scores first
    where       rows for which an SQL expression over the columns of sql/queries/pool.sql is true
    order       random, longest or shortest (by characters of the output) rows of the whole dataset version, as many
                as `size` says, or as the selection named by `match` has
    by          which figure of a grade counts: its score, or the mean score under the model's own probabilities
    combine     of several graders' figures for a row the mean, the median or the minimum; a row needs all of them
    calibration what was calibrated to what, where min_score comes from a calibration; written down with the rest
    quota       category -> at most so many of its rows, in the condition's own order (best scores first; for random
                its draw), before rows are counted off. "*" is every category not named; "(none)" rows without one
    nested      sizes of random sub-samples, each inside the next larger one
    """

    min_score: Decimal | None = None
    top: int | None = None
    keep_share: Decimal | None = None
    where: str | None = None
    order: Order | None = None
    size: int | None = None
    match: str | None = None
    by: By = "score"
    combine: Combine | None = None
    calibration: Mapping[str, Any] | None = None
    quota: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    nested: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """Which of the five it is; for an order its name."""
        return self.order or next(
            k for k in ("min_score", "top", "keep_share", "where") if getattr(self, k) is not None
        )

    def as_given(self) -> dict[str, Any]:
        """The parts that were given, and the seed, as plain values."""
        parts: dict[str, Any] = {
            "min_score": _number(self.min_score), "top": self.top, "keep_share": _number(self.keep_share),
            "where": self.where, "order": self.order, "size": self.size, "match": self.match,
            "by": self.by if self.by != "score" else None, "combine": self.combine,
            "calibration": dict(self.calibration) if self.calibration else None,
            "quota": dict(sorted(self.quota.items())) or None, "nested": sorted(self.nested) or None,
        }  # fmt: skip
        return {**{k: v for k, v in parts.items() if v is not None}, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Selection:
    """A stored selection. `rows` were kept of the `pool` rows of the dataset version."""

    selection_id: str
    name: str
    version: int
    label: str
    version_id: str
    rows: int
    pool: int
    manifest: dict[str, Any]


# -- which grader ------------------------------------------------------------------------------------------------


def choose_grader(store: Store, version_id: str, grader: str | None = None, rubric: str | None = None) -> Chosen:
    """The one grader and rubric that have graded this dataset version, or those named by label or id.

    NAME is the newest version of that name among those that graded it, NAME@2 its second, NAME@1 its first. A caller
    who means the very grader of a run gives its id: the label of a first version is NAME too. Raises SelectError when
    there is none, or more than one and the names do not decide.
    """
    found = store.query("graders_of", version_id=version_id)
    if not found:
        raise NotGraded("no grader has been asked about this dataset; run `alpasift grade` first")
    left = _named(_named(found, "grader", grader), "rubric", rubric)
    if not left:
        names = " ".join(f"--{part} {name}" for part, name in (("grader", grader), ("rubric", rubric)) if name)
        raise SelectError(f"{names} has not graded this dataset; these have: {_choices_text(found, found)}")
    if len(left) > 1:
        raise SelectError(f"{len(left)} gradings of this dataset fit; name one: {_choices_text(left, found)}")
    one = left[0]
    digest = hashlib.sha256(json.dumps(json.loads(one["rubric_content"]), sort_keys=True).encode()).hexdigest()
    return Chosen(
        str(one["grader_id"]), str(one["rubric_id"]), one["grader"], one["rubric"], one["threshold"],
        one["scale_low"], one["scale_high"], one["scale_step"], one["observed_step"], one["highest"], one["asked"], one["scored"],
        one["fingerprint"], digest,
    )  # fmt: skip


def _named(found: list[dict[str, Any]], part: str, wanted: str | None) -> list[dict[str, Any]]:
    if wanted is None:
        return found
    if of_id := [r for r in found if str(r[f"{part}_id"]) == wanted]:
        return of_id
    of_name = [r for r in found if r[f"{part}_name"] == wanted]
    if of_name:
        newest = max(r[f"{part}_version"] for r in of_name)
        return [r for r in of_name if r[f"{part}_version"] == newest]
    name, version = _split_label(wanted)
    return [r for r in found if r[f"{part}_name"] == name and r[f"{part}_version"] == version]


def _choices_text(some: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """The options that name each grading beyond doubt, with their rows."""

    def spelled(row: dict[str, Any], part: str) -> str:
        versions = {r[f"{part}_version"] for r in found if r[f"{part}_name"] == row[f"{part}_name"]}
        return str(row[part]) if len(versions) == 1 else f"{row[f'{part}_name']}@{row[f'{part}_version']}"

    return "; ".join(
        f"--grader {spelled(r, 'grader')} --rubric {spelled(r, 'rubric')} ({r['scored']} rows with a score)"
        for r in some
    )


def _split_label(label: str) -> tuple[str, int | None]:
    """NAME@2 -> ("NAME", 2); without a number -> (label, None)."""
    match = re.fullmatch(r"(.+)@([1-9]\d{0,8})", label, re.DOTALL)
    return (match[1], int(match[2])) if match else (label, None)


# -- choosing ----------------------------------------------------------------------------------------------------


def select(
    store: Store,
    version_id: str,
    name: str,
    condition: Condition,
    *,
    grader: str | Sequence[str] | None = None,
    rubric: str | None = None,
) -> list[Selection]:
    """Keep the rows of a dataset version that meet the condition, under a name. Raises SelectError.

    Several graders go with a condition that combines them. Returns the selection, then its nested sub-samples NAME-3000, NAME-6000, smallest first. When the newest
    selection of that name has the same rows by the same condition and grades, it is returned and nothing is written.
    A condition that keeps no row is an error.
    """
    graders: list[str | None] = (
        [grader] if grader is None or isinstance(grader, str) else [*dict.fromkeys(grader)] or [None]
    )
    _check(condition, name, len(graders))
    chosen = _grades_for(store, version_id, condition, graders[0], rubric)
    panel = _panel(store, version_id, chosen, graders, rubric)
    size = condition.size
    if condition.match is not None:
        matched = resolve_selection(store, condition.match)
        size, condition = matched.rows, replace(condition, match=matched.label)
    verdicts = _where(store, version_id, condition.where, chosen) if condition.where is not None else None
    with store.transaction() as con:
        con.execute(f"set memory_limit = '{MEMORY}'")
        dataset = _dataset(con, version_id)
        size = _size(condition, size, dataset["rows"])
        _pool(con, version_id, condition, chosen, panel)
        _check_quota(con, condition)
        _mark(con, condition, size, verdicts)
        facts = _facts(con, dataset, condition, chosen, panel, size)
        if not facts["counts"]["kept"]:
            raise SelectError(_nothing_kept(facts, condition, chosen))
        _check_nested(condition, facts["counts"]["kept"])
        first = _record(con, name, version_id, facts, facts["counts"]["kept"])
        made = [first]
        for part in sorted(set(condition.nested)):
            made.append(_record(con, f"{name}-{part}", version_id, _nested_facts(con, facts, first, part), part))
    return made


def _panel(
    store: Store, version_id: str, first: Chosen | None, graders: Sequence[str | None], rubric: str | None
) -> list[Chosen]:
    """The graders whose figures are combined, the first among them; each with one rubric, all on one scale."""
    if first is None:
        return []
    panel = [first, *(choose_grader(store, version_id, grader, rubric) for grader in graders[1:])]
    for one in panel[1:]:
        if (one.low, one.high) != (first.low, first.high):
            raise SelectError(
                f"{one.grader} by {one.rubric} scores from {spell(one.low)} to {spell(one.high)} and {first.grader} by "
                f"{first.rubric} from {spell(first.low)} to {spell(first.high)}; only graders on one scale can be combined"
            )
    return panel


def _check(condition: Condition, name: str, graders: int) -> None:
    """Raise SelectError for a name or condition that makes no sense, whatever the rows."""
    if (graders > 1) != (condition.combine is not None):
        raise SelectError(
            "several graders want --combine mean, median or minimum"
            if graders > 1
            else f"--combine {condition.combine} wants two graders or more: --grader A --grader B"
        )
    scored = condition.min_score is not None or condition.top is not None or condition.keep_share is not None
    if not scored and (condition.combine is not None or condition.by != "score"):
        option = "--combine" if condition.combine else "--by"
        raise SelectError(f"{option} goes with --min-score, --top or --keep-share")
    if condition.by not in get_args(By) or condition.combine not in (None, *get_args(Combine)):
        raise SelectError(f"by = {condition.by!r}, combine = {condition.combine!r}; see Condition")
    for each in (name, *(f"{name}-{part}" for part in condition.nested)):
        if not _NAME.fullmatch(each):
            raise SelectError(f"the name {each!r} may hold letters, digits, . _ - only, at most 64 of them")
    kinds = [k for k in ("min_score", "top", "keep_share", "where", "order") if getattr(condition, k) is not None]
    if len(kinds) != 1:
        raise SelectError(
            f"give exactly one of --min-score, --top, --keep-share, --where, --random, --longest, --shortest; "
            f"this has {len(kinds)}"
        )
    if condition.order is not None and condition.order not in ("random", "longest", "shortest"):
        raise SelectError(f"order = {condition.order!r}; it is random, longest or shortest")
    if condition.order is not None and (condition.size is None) == (condition.match is None):
        raise SelectError(
            f"--{condition.order} wants a number of rows, or --match with the name of a selection of that size"
        )
    if condition.order is None and (condition.size is not None or condition.match is not None):
        raise SelectError("--match gives a size to --random, --longest or --shortest only")
    for option, number in (("--top", condition.top), (f"--{condition.order}", condition.size)):
        if number is not None and number < 1:
            raise SelectError(f"{option} {number}: keep 1 row or more")
    if condition.min_score is not None and not condition.min_score.is_finite():
        raise SelectError(f"--min-score {condition.min_score} is not a number")
    if condition.keep_share is not None and not (condition.keep_share.is_finite() and 0 < condition.keep_share <= 1):
        raise SelectError(
            f"--keep-share {condition.keep_share}: a share is above 0 and at most 1; 0.18 keeps 18 % of the rows"
        )
    for category, most in condition.quota.items():
        if most < 0:
            raise SelectError(f"--quota {category}={most}: a quota is 0 or more")
    for part in condition.nested:
        if part < 1:
            raise SelectError(f"--nested {part}: a sub-sample has 1 row or more")


def _grades_for(
    store: Store, version_id: str, condition: Condition, grader: str | None, rubric: str | None
) -> Chosen | None:
    """The grades that the condition needs. Without a name, an order needs none and `where` takes what there is."""
    named = grader is not None or rubric is not None
    if condition.order is not None and not named:
        return None
    try:
        return choose_grader(store, version_id, grader, rubric)
    except NotGraded:
        if condition.where is None or named:
            raise
        return None


def _size(condition: Condition, size: int | None, pool: int) -> int | None:
    """How many rows to count off; None where the condition alone decides."""
    if condition.keep_share is not None:
        size = int((condition.keep_share * pool).quantize(Decimal(1), ROUND_HALF_UP))
        if size == 0:
            raise SelectError(f"--keep-share {condition.keep_share} of {pool} rows is less than half a row; raise it")
    size = condition.top if condition.top is not None else size
    if size is not None and size > pool:
        given = f"--match {condition.match}" if condition.match else f"--{condition.kind.replace('_', '-')}"
        raise SelectError(f"{given} asks for {size} rows and the dataset has {pool}")
    return size


def _dataset(con: Connection, version_id: str) -> dict[str, Any]:
    found = rows(con, "select * from datasets where version_id = $v", {"v": version_id}).dicts()
    if not found:
        raise SelectError(f"there is no dataset version {version_id}; `alpasift datasets` lists them")
    return found[0]


def _statement(name: str) -> str:
    """A named query, to stand inside another one."""
    return named_query(name).text.rstrip().rstrip(";")


def _pool(
    con: Connection, version_id: str, condition: Condition, chosen: Chosen | None, panel: Sequence[Chosen]
) -> None:
    """Temporary table pool_rows: one row a row of the dataset version, with what choosing needs of it.

    score is the figure that the condition is about: the score or expected score, of one grader or of several. worth orders rows, highest first; draw orders rows of equal worth; copy counts rows of equal content.
    """
    text = f"""
        create temp table pool_rows as
        with rows_of as ({_statement("pool")}),
        {_figures(condition, len(panel))},
        copies as (
            select
                position, example_id, coalesce(category, '(none)') as category, score, reason,
                case $kind
                    when 'random' then 0
                    when 'longest' then output_chars
                    when 'shortest' then -output_chars
                    else score
                end::decimal(18, 9) as worth,
                row_number() over (partition by example_id order by category nulls first, position) as copy
            from pool
        )
        select *, md5(concat_ws(' ', $purpose::varchar, $seed::varchar, example_id::varchar, copy::varchar)) as draw
        from copies
    """
    parameters: dict[str, Any] = {
        "version_id": version_id,
        "grader_id": chosen.grader_id if chosen else None,
        "rubric_id": chosen.rubric_id if chosen else None,
        "kind": condition.kind,
        "purpose": "random" if condition.order == "random" else "tie",
        "seed": str(condition.seed),
    }
    if len(panel) > 1:
        parameters |= {"graders": [o.grader_id for o in panel], "rubrics": [o.rubric_id for o in panel]}
    con.execute(text, parameters)


def _figures(condition: Condition, members: int) -> str:
    """SQL of `pool`: rows_of with the figure that the condition is about as its score, and why there is none."""
    if members <= 1:
        return f"""
        pool as (
            select * exclude (score, reason),
                {condition.by}::decimal(18, 9) as score,
                case when score is not null and {condition.by} is null then 'no_{condition.by}' else reason end as reason
            from rows_of
        )"""
    return f"""
        figures as (
            select example_id, {_COMBINED[condition.combine or "mean"]}({condition.by}) as figure, count({condition.by}) as figures
            from graded
            join (select unnest($graders::uuid[]) as grader_id, unnest($rubrics::uuid[]) as rubric_id)
                using (grader_id, rubric_id)
            group by example_id
        ),
        pool as (
            select r.* exclude (score, reason),
                case when f.figures = {members} then f.figure end::decimal(18, 9) as score,
                case when f.figures = {members} then r.reason else 'not_graded_by_all' end as reason
            from rows_of r
            left join figures f using (example_id)
        )"""


def _check_quota(con: Connection, condition: Condition) -> None:
    if not condition.quota:
        return
    known = [r[0] for r in rows(con, "select category from pool_rows group by 1 order by count(*) desc, 1").rows]
    unknown = sorted(set(condition.quota) - {*known, "*"})
    if unknown:
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise SelectError(f"--quota {unknown[0]}: no row has that category; there are {', '.join(known[:20])}{more}")


def _mark(con: Connection, condition: Condition, size: int | None, verdicts: Verdicts | None) -> None:
    """Temporary table marked_rows: pool_rows with `why`, null for a row that is kept, else the reason it is not.

    A row is first judged by the condition, then by its category's quota, then by its place among what is left.
    """
    true, unknown = (verdicts.true, verdicts.unknown) if verdicts else (array("q"), array("q"))
    con.register("where_true", pa.table({"position": pa.array(true, pa.int64())}))
    con.register("where_unknown", pa.table({"position": pa.array(unknown, pa.int64())}))
    text = """
        create temp table marked_rows as
        with judged as (
            select *, case
                when $kind = 'where' and position in (select position from where_true) then null
                when $kind = 'where' and position in (select position from where_unknown) then 'where_null'
                when $kind = 'where' then 'where_false'
                when $kind in ('random', 'longest', 'shortest') then null
                when score is null then reason
                when score < $min_score then 'below_threshold'
            end as why
            from pool_rows
        ),
        quotas as (
            select unnest($categories::varchar[]) as category, unnest($most::bigint[]) as most
        ),
        within_quota as (
            select j.* exclude (why), case
                when j.why is null
                    and row_number() over (partition by j.why is null, j.category order by j.worth desc nulls last, j.draw)
                        > coalesce(q.most, $most_of_others::bigint)
                then 'over_quota'
                else j.why
            end as why
            from judged j
            left join quotas q using (category)
        ),
        placed as (
            select *, row_number() over (partition by why is null order by worth desc nulls last, draw) as place
            from within_quota
        )
        select position, example_id, copy, score, worth,
            case when why is null and place > $size::bigint then 'not_drawn' else why end as why
        from placed
    """
    quota = {c: n for c, n in condition.quota.items() if c != "*"}
    parameters = {
        "kind": condition.kind,
        "min_score": condition.min_score,
        "categories": list(quota),
        "most": list(quota.values()),
        "most_of_others": condition.quota.get("*"),
        "size": size,
    }
    con.execute(text, parameters)
    con.unregister("where_true")
    con.unregister("where_unknown")


# -- the user's SQL ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Positions of the rows for which an expression is true, and of those for which it is null."""

    true: array[int]
    unknown: array[int]


def _where(store: Store, version_id: str, expression: str, chosen: Chosen | None) -> Verdicts:
    """Ask the user's expression about every row, on the locked connection. Raises SelectError.

    The expression must be one expression of its own: it is read once between round and once between square brackets,
    which a text that closes our bracket and opens another cannot both survive.
    """
    if not expression.strip() or len(expression) > 20_000 or "\0" in expression:
        raise SelectError(
            "--where wants an SQL expression of at most 20,000 characters, `score >= 4 and length(output) < 2000`"
        )
    grades = {
        "grader_id": chosen.grader_id if chosen else None,
        "rubric_id": chosen.rubric_id if chosen else None,
    }
    parameters = {"version_id": version_id, **grades}
    pool = f"with pool as ({_statement('pool')})"
    try:
        _refuse_chance(store, expression)
        for open_, close in (("(", ")"), ("[", "]")):  # the newline ends a comment at the end of the expression
            head = store.locked_query(
                f"describe {pool} select {open_}{expression}\n{close} as kept from pool", parameters
            )
            if open_ == "(" and (len(head.rows) != 1 or head.rows[0][1] != "BOOLEAN"):
                kinds = ", ".join(str(r[1]) for r in head.rows)
                raise SelectError(f"--where must be true or false for each row; {expression!r} gives {kinds}")
        found = store.locked_query(
            f"""{pool}, judged as (select position, ({expression}\n) as kept from pool)
            select list(position) filter (where kept), list(position) filter (where kept is null) from judged""",
            parameters,
            max_rows=1,
            seconds=WHERE_SECONDS,
            memory=MEMORY,
        )
    except QueryError as error:
        raise SelectError(f"--where {expression!r}: {_short(str(error))}") from error
    true, unknown = found.rows[0]
    return Verdicts(array("q", true or ()), array("q", unknown or ()))


def _refuse_chance(store: Store, expression: str) -> None:
    """Functions that answer differently each time would make a selection that nobody can repeat."""
    text = re.sub(r"'[^']*'", "''", expression).lower()
    clock = re.search(r"\b(current_(?:date|time|timestamp)|localtime(?:stamp)?)\b", text)
    if clock or re.search(r"\bover\s*\(\s*\)", text):
        what = clock[1] if clock else "over ()"
        raise SelectError(f"--where may not use {what}: it answers differently each time")
    called = set(re.findall(r"([a-z_][a-z0-9_]*)\"?\s*\(", text))
    volatile = store.locked_query(
        "select distinct lower(function_name) from duckdb_functions() where stability <> 'CONSISTENT' and function_type = 'scalar'"
    )
    for name in sorted(called & {r[0] for r in volatile.rows}):
        raise SelectError(
            f"--where may not call {name}(): it answers differently each time; for chance take --random N --seed S"
        )


def _short(message: str) -> str:
    """DuckDB's message without the excerpt of the statement, which the user did not write."""
    return " ".join(message.split("\n\nLINE ")[0].split())


# -- writing it down ---------------------------------------------------------------------------------------------


def _facts(
    con: Connection,
    dataset: dict[str, Any],
    condition: Condition,
    chosen: Chosen | None,
    panel: Sequence[Chosen],
    size: int | None,
) -> dict[str, Any]:
    """The manifest of what was marked, without its name, times and composition."""
    counts = rows(con, "select count(*), count(score), count(*) filter (where why is null) from marked_rows").rows[0]
    pool, scored, kept = counts
    ties = _ties(con, condition) if size is not None and kept and condition.order != "random" else None
    reasons = rows(
        con,
        """
        select case
                when why <> 'not_drawn' or $kind = 'random' then why
                when worth = (select min(worth) from marked_rows where why is null) then 'tied_at_cut'
                else 'below_cut'
            end as reason, count(*)
        from marked_rows
        where why is not null
        group by 1
        order by 2 desc, 1
        """,
        {"kind": condition.kind},
    ).rows
    threshold = condition.min_score
    on_steps = chosen is not None and len(panel) == 1 and condition.by == "score"
    combined = {
        "panel": [
            {"label": one.grader, "fingerprint": json.loads(one.fingerprint), "rubric": one.rubric} for one in panel
        ]
    } if len(panel) > 1 else {}  # fmt: skip
    return {
        "dataset": {
            "label": dataset["label"], "version_id": str(dataset["version_id"]), "source": dataset["source"],
            "sha256": dataset["sha256"], "rows": dataset["rows"],
        },
        "condition": condition.as_given(),
        "seed": condition.seed,
        "grader": {"label": chosen.grader, "fingerprint": json.loads(chosen.fingerprint)} if chosen else None,
        "rubric": {
            "label": chosen.rubric, "sha256": chosen.rubric_sha256, "threshold": _number(chosen.threshold),
            "step": _number(chosen.step),
        } if chosen else None,
        **combined,
        "threshold": _number(threshold),
        "threshold_means": _number(chosen.means(threshold)) if chosen and on_steps and threshold is not None else None,
        "observed_step": _number(chosen.observed_step) if chosen else None,
        "counts": {"pool": pool, "scored": scored, "kept": kept, "kept_share": round(kept / pool, 6) if pool else 0},
        "ties": ties,
        "not_kept_by_reason": dict(reasons),
        "notes": _notes(condition, chosen if on_steps else None, size, scored, kept),
        **_fingerprints(con, "select position, example_id from marked_rows where why is null"),
    }  # fmt: skip


def _ties(con: Connection, condition: Condition) -> dict[str, Any]:
    """The score (or length) of the last row that was kept, how many rows share it and how many of them were kept."""
    at, tied, taken = rows(
        con,
        """
        with cut as (select min(worth) as worth from marked_rows where why is null)
        select any_value(c.worth), count(*), count(*) filter (where m.why is null)
        from marked_rows m, cut c
        where m.worth = c.worth and (m.why is null or m.why = 'not_drawn')
        """,
    ).rows[0]
    return {"output_chars" if condition.order else "score": _number(abs(at)), "tied": tied, "taken": taken}


def _notes(condition: Condition, chosen: Chosen | None, size: int | None, scored: int, kept: int) -> list[str]:
    notes = []
    if chosen and condition.min_score is not None:
        means = chosen.means(condition.min_score)
        if means != condition.min_score:
            step = spell(chosen.observed_step or chosen.step)
            notes.append(
                f"the scores of {chosen.grader} come in steps of {step}: {spell(condition.min_score)} means {spell(means)} here"
            )
    if size is not None and kept < size:
        limit = "the quota leaves" if condition.quota else f"{scored} rows have a score, which leaves"
        notes.append(f"{size} rows were asked for; {limit} {kept}")
    return notes


def _fingerprints(con: Connection, kept: str) -> dict[str, str]:
    """fingerprint: sha256 of the sorted example ids, a line each. positions_sha256: the same of the sorted positions."""
    found = rows(
        con,
        f"""
        select sha256(string_agg(example_id::varchar, chr(10) order by example_id::varchar)) as fingerprint,
               sha256(string_agg(position::varchar, chr(10) order by position)) as positions_sha256
        from ({kept})
        """,
    ).dicts()
    return found[0]


def _check_nested(condition: Condition, kept: int) -> None:
    too_large = [part for part in condition.nested if part > kept]
    if too_large:
        raise SelectError(f"--nested {too_large[0]}: only {kept} rows were kept")


def _nested_facts(con: Connection, facts: dict[str, Any], whole: Selection, part: int) -> dict[str, Any]:
    """Temporary table kept_rows of one sub-sample's rows, and its facts."""
    con.execute(
        """
        create or replace temp table nested_rows as
        select position, example_id
        from marked_rows
        where why is null
        order by md5(concat_ws(' ', 'nested', $seed::varchar, example_id::varchar, copy::varchar))
        limit $part
        """,
        {"seed": str(facts["seed"]), "part": part},
    )
    pool, kept = facts["counts"]["pool"], facts["counts"]["kept"]
    reasons = dict(facts["not_kept_by_reason"])
    if kept > part:
        reasons["not_drawn"] = reasons.get("not_drawn", 0) + kept - part
    return {
        **facts,
        "condition": {"of": whole.label, "order": "random", "size": part, "seed": facts["seed"]},
        "of": {"selection": whole.label, "fingerprint": facts["fingerprint"], "condition": facts["condition"]},
        "counts": {**facts["counts"], "kept": part, "kept_share": round(part / pool, 6)},
        "not_kept_by_reason": reasons,
        **_fingerprints(con, "select position, example_id from nested_rows"),
    }


def _record(con: Connection, name: str, version_id: str, facts: dict[str, Any], kept: int) -> Selection:
    """Write a selection, or find that the newest of its name is the same and return that."""
    facts = json.loads(json.dumps(facts))
    newest = _find(con, name, None)
    if newest and {k: v for k, v in newest.manifest.items() if k not in _VOLATILE} == facts:
        return newest
    version = newest.version + 1 if newest else 1
    label = name if version == 1 else f"{name}@{version}"
    selection_id = hash_id("selection", name, str(version), json.dumps(facts, sort_keys=True))
    source = "nested_rows" if "of" in facts else "marked_rows where why is null"
    con.execute(
        f"insert into selection_rows select $id::uuid, position from {source} order by position", {"id": selection_id}
    )
    now = utc_now()
    manifest = {
        "selection": label,
        **facts,
        "composition": _composition(con, version_id, selection_id),
        "alpasift": _installed_version(),
        "duckdb": scalar(con, "select version()"),
        "created_at": now.isoformat(timespec="seconds") + "Z",
    }
    con.execute(
        "insert into selections values ($id, $name, $version, $version_id, $rows, $manifest, $now)",
        {
            "id": selection_id, "name": name, "version": version, "version_id": version_id, "rows": kept,
            "manifest": json.dumps(manifest), "now": now,
        },
    )  # fmt: skip
    pool = facts["counts"]["pool"]
    return Selection(selection_id, name, version, label, version_id, kept, pool, manifest)


def _nothing_kept(facts: dict[str, Any], condition: Condition, chosen: Chosen | None) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in facts["not_kept_by_reason"].items())
    best = (
        f"; the highest score of {chosen.grader} is {spell(chosen.highest)}"
        if chosen and chosen.highest is not None
        else ""
    )
    grades = "; no grader has been asked about this dataset" if condition.where and chosen is None else ""
    return f"no row of {facts['dataset']['label']} meets the condition ({reasons}){best}{grades}; nothing was written"


def _number(value: Decimal | None) -> int | float | None:
    """A Decimal as JSON writes it: 5, 4.5."""
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _installed_version() -> str:
    try:
        return metadata.version("alpasift")
    except metadata.PackageNotFoundError:
        return "not installed"


# -- looking -----------------------------------------------------------------------------------------------------


def resolve_selection(store: Store, name: str) -> Selection:
    """The selection of that name: NAME is its newest version, NAME@2 its second, NAME@1 its first. Raises SelectError."""
    plain, version = _split_label(name)
    with store.reader() as con:
        found = _find(con, plain, version)
        if found:
            return found
        labels = [
            r[0] for r in rows(con, "select label from selection_list order by created_at desc, label limit 20").rows
        ]
    if not labels:
        raise SelectError(f"no selection is called {name!r}; there is none yet, `alpasift select` makes one")
    raise SelectError(f"no selection is called {name!r}; there are {', '.join(labels)}")


def _find(con: Connection, name: str, version: int | None) -> Selection | None:
    found = rows(
        con,
        """
        select selection_id, name, version, label, version_id, rows, pool, manifest
        from selection_list
        where name = $name and ($version is null or version = $version)
        order by version desc
        limit 1
        """,
        {"name": name, "version": version},
    ).rows
    if not found:
        return None
    selection_id, name, version_number, label, version_id, kept, pool, manifest = found[0]
    return Selection(str(selection_id), name, version_number, label, str(version_id), kept, pool, json.loads(manifest))


def kept_positions(store: Store, selection_id: str) -> array[int]:
    """The positions of the rows of a selection in its dataset version, ascending."""
    text = "select position from selection_rows where selection_id = $id order by position"
    kept = array("q")
    with store.reader() as con:
        cursor = con.execute(text, {"id": selection_id})
        while page := cursor.fetchmany(10_000):
            kept.extend(position for (position,) in page)
    return kept


def composition(
    store: Store,
    version_id: str,
    selection_id: str | None = None,
    *,
    chosen: Chosen | None = None,
    threshold: Decimal | None = None,
) -> list[dict[str, Any]]:
    """Kept against pool, the rows of sql/queries/composition.sql: measure, category, pool, pool_share, kept, ...

    Kept are the rows of a selection; without one, the rows that `chosen` scored at `threshold` (its rubric's own when
    None) or above.
    """
    with store.reader() as con:
        return _composition(con, version_id, selection_id, chosen, threshold)


def _composition(
    con: Connection,
    version_id: str,
    selection_id: str | None,
    chosen: Chosen | None = None,
    threshold: Decimal | None = None,
) -> list[dict[str, Any]]:
    parameters = {
        "version_id": version_id,
        "selection_id": selection_id,
        "grader_id": chosen.grader_id if chosen else None,
        "rubric_id": chosen.rubric_id if chosen else None,
        "threshold": threshold if threshold is not None or chosen is None else chosen.threshold,
    }
    return rows(con, named_query("composition").text, parameters).dicts()
