"""What a comparison of two graders means, in sentences. None claims more than its 95 % interval carries.

Knows the figures of an `Agreement`; computes and prints nothing. The size of an order has a word by its AUC, or by its
rank correlation where there is no AUC. The bounds .7, .8 and .9 of an AUC are those of Hosmer, Lemeshow & Sturdivant
2013, Applied Logistic Regression, section 5.2.4; those of a correlation are twice the AUC less 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alpasift.batcher.statistics import ROUNDING, Figure, beyond, paired_difference, short_of

if TYPE_CHECKING:
    from alpasift.batcher.grading.agree import Agreement

LEAST = 10
"""Fewer rows that the reference keeps, or drops, and nothing is said of the order."""
_SIZES = (
    (0.995, "perfectly"),
    (0.9, "very well"),
    (0.8, "well"),
    (0.7, "fairly well"),
    (0.6, "weakly"),
    (0.0, "barely"),
)


def sentences(found: Agreement) -> list[str]:
    """What the numbers mean."""
    a, b = _names(found)
    table = found.grader.table
    if not table.rows:
        return [f"{a} and {b} have no graded row in common"]
    lines = [
        f"{a} keeps {_percent(table.first / table.rows)} of the {table.rows:,} rows, "
        f"{b} {_percent(table.b / table.rows)}; both keep {table.both:,}"
    ]
    if found.grader.precision.value is not None and found.grader.recall.value is not None:
        lines.append(
            f"of the rows {a} keeps, {b} keeps {_percent(found.grader.precision.value)}; of the rows {b} keeps, "
            f"{a} keeps {_percent(found.grader.recall.value)}"
        )
    return [*lines, *_of_raw_agreement(found), *_of_the_order(found, a, b)]


def order_shown(found: Agreement) -> Literal["with", "against"] | None:
    """Whether A is shown to order the rows as B keeps them, or the other way round; None where neither is shown."""
    area, ranks = found.grader.auc, found.grader.spearman
    if area.value is None:
        return "with" if beyond(ranks, ROUNDING) else "against" if short_of(ranks, -ROUNDING) else None
    if _too_few(found):
        return None
    return "with" if beyond(area, 0.5) else "against" if short_of(area, 0.5) else None


def better_than_length(found: Agreement) -> bool:
    """Whether A is shown to order the rows better than output length does."""
    return order_shown(found) == "with" and beyond(found.auc_lead, 0.0)


def better_than_one_decision(found: Agreement) -> bool:
    """Whether A's raw agreement is shown to be above that of keeping, or dropping, every row, whichever is higher."""
    table = found.grader.table
    drop, keep = (table.both, table.first_only), (table.neither, table.b_only)
    return beyond(paired_difference(*(drop if _drops(found) else keep), table.rows), 0.0)


def worth_calibrating(found: Agreement) -> bool:
    """Whether A is seen to rank what B keeps higher, and not shown to be worse at it than output length."""
    return order_shown(found) == "with" and not _length_is_better(found)


def _names(found: Agreement) -> tuple[str, str]:
    a, b = found.a.grader, found.b.grader
    return (f"{a} ({found.a.rubric})", f"{b} ({found.b.rubric})") if a == b else (a, b)


def _drops(found: Agreement) -> bool:
    """Whether dropping every row agrees with B at least as often as keeping every row."""
    return (found.drop_everything or 0.0) >= (found.keep_everything or 0.0)


def _of_raw_agreement(found: Agreement) -> list[str]:
    """Raw agreement beside that of keeping, or dropping, every row, whichever agrees more."""
    agreement = found.grader.agreement.value or 0.0
    what, share = ("dropping", found.drop_everything) if _drops(found) else ("keeping", found.keep_everything)
    verdict = "better" if better_than_one_decision(found) else "no better"
    return [
        f"raw agreement is {_percent(agreement)}, {verdict} than {what} every row, which agrees on {_percent(share)}"
    ]


def _too_few(found: Agreement) -> str | None:
    """Why too few rows of a kind are there to speak of an order, None where there are enough."""
    table = found.grader.table
    kept, dropped = table.b, table.rows - table.b
    if min(kept, dropped) >= LEAST or min(kept, dropped) == 0:  # where one is 0 the AUC itself says why it has no value
        return None
    which, count = ("keeps", kept) if kept < dropped else ("drops", dropped)
    return f"{found.b.grader} {which} only {count} of these rows; at least {LEAST} are needed to judge the ranking"


def _of_the_order(found: Agreement, a: str, b: str) -> list[str]:
    area = found.grader.auc
    if area.value is None:
        return [
            f"whether {a} ranks the rows as {b} keeps them cannot be computed: {area.reason}",
            *_of_ranks(found, a, b),
        ]
    if few := _too_few(found):
        return [few]
    shown = order_shown(found)
    if shown == "with":
        line = f"{a} ranks rows that {b} keeps above the rest {_size(area)}: AUC {_short(area)}, chance level is .5"
    elif shown == "against":
        size = _size(_reversed(area))
        line = f"{a} ranks rows that {b} drops above the rest {size}: AUC {_short(area)}, chance level is .5"
    else:
        line = f"{_no_relation(area)}: AUC {_short(area)}, chance level is .5"
    return [line, *_beside_length(found, a)]


def _of_ranks(found: Agreement, a: str, b: str) -> list[str]:
    """The order over the whole scale, where the threshold says nothing."""
    ranks = found.grader.spearman
    if ranks.value is None or ranks.low is None:
        return []
    shown = order_shown(found)
    if shown == "with":
        as_area = Figure((1 + ranks.value) / 2, (1 + ranks.low) / 2)
        return [f"over the whole scale {a} follows the order of {b} {_size(as_area)}: Spearman {_short(ranks)}"]
    if shown == "against":
        return [f"over the whole scale {a} orders the rows against {b}: Spearman {_short(ranks)}"]
    return [
        f"over the whole scale no relation found: the interval of Spearman's, {_short(ranks)}, includes 0 or "
        f"comes close to it"
    ]


def _beside_length(found: Agreement, a: str) -> list[str]:
    area, length, lead = found.grader.auc, found.length.auc, found.auc_lead
    if area.value is None or length.value is None or lead.value is None or lead.low is None:
        return []
    against = (
        f"AUC {_point(area.value)} against {_point(length.value)} for ranking the {found.length.what} outputs first, a "
        f"difference of {_short(lead)}"
    )
    if _length_is_better(found):
        return [f"output length alone is better than {a}: {against}"]
    if better_than_length(found):
        return [f"{a} is better than output length alone: {against}"]
    return [f"{a} is not shown to be better than output length alone: {against}"]


def _length_is_better(found: Agreement) -> bool:
    return short_of(found.auc_lead, 0.0) and beyond(found.length.auc, 0.5)


def _reversed(area: Figure) -> Figure:
    """The AUC of the opposite order."""
    assert area.value is not None and area.low is not None and area.high is not None
    return Figure(1 - area.value, 1 - area.high, 1 - area.low)


def _no_relation(area: Figure) -> str:
    """What an interval that holds chance shows: hardly a relation where it is narrow, nothing where it is wide."""
    assert area.low is not None and area.high is not None
    farthest = max(area.high, 1 - area.low)
    if round(farthest, 2) < _SIZES[-2][0]:
        return "no relation found, or hardly any"
    return f"no relation found, and these rows are too few to rule out an AUC of {_point(farthest)} either way"


def _size(area: Figure) -> str:
    """The word for an AUC above .5; and for the low end of its interval where that has another."""
    word, least = _word(area.value or 0.0), _word(area.low or 0.0)
    return word if word == least else f"{word} (lower end of the interval: {least})"


def _word(area: float) -> str:
    return next(word for bound, word in _SIZES if round(area, 2) >= bound)  # the word fits the number as it is printed


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _point(value: float) -> str:
    text = f"{round(value, 2) + 0.0:.2f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0") else text


def _short(figure: Figure) -> str:
    assert figure.value is not None and figure.low is not None and figure.high is not None
    return f"{_point(figure.value)} ({_point(figure.low)} to {_point(figure.high)})"
