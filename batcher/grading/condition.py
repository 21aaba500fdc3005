"""The condition of a selection: which rows of a dataset version to keep, and what makes no sense whatever the rows.

Knows options and their combinations; nothing of grades or the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, get_args

from alpasift.batcher.grading.lookup import STORED_BY, By
from alpasift.graders import AlpaSiftError
from alpasift.graders.interface.names import NAME_RULE, is_name

Order = Literal["random", "longest", "shortest"]
Combine = Literal["mean", "median", "minimum"]

_KINDS = ("min_score", "top", "keep_share", "where", "order")


class SelectError(AlpaSiftError):
    """A selection that cannot be made, or cannot be found."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows to keep: exactly one of min_score, top, keep_share, where and order; the rest refines it.

    min_score   rows with this score or more
    top         this many rows of the highest scores
    keep_share  this share (0 < share <= 1) of all rows of the dataset version, rounded half up, highest scores first
    where       rows for which an SQL expression over the columns of sql/queries/pool.sql is true
    order       random, longest or shortest (by characters of the output) rows of the whole dataset version, as many
                as `size` says, or as the selection named by `match` has
    below       of the rows that min_score, top or keep_share would keep, only those whose figure is less than this
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
    below: Decimal | None = None
    by: By = "score"
    combine: Combine | None = None
    calibration: Mapping[str, Any] | None = None
    quota: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    nested: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """Which of the five it is; for an order its name."""
        return self.order or next(kind for kind in _KINDS if getattr(self, kind) is not None)

    def as_given(self) -> dict[str, Any]:
        """The parts that were given, and the seed, as plain values."""
        parts: dict[str, Any] = {
            "min_score": plain_number(self.min_score),
            "top": self.top,
            "keep_share": plain_number(self.keep_share),
            "where": self.where,
            "order": self.order,
            "size": self.size,
            "match": self.match,
            "below": plain_number(self.below),
            "by": STORED_BY[self.by] if self.by != "score" else None,
            "combine": self.combine,
            "calibration": dict(self.calibration) if self.calibration else None,
            "quota": dict(sorted(self.quota.items())) or None,
            "nested": sorted(self.nested) or None,
        }
        return {**{k: v for k, v in parts.items() if v is not None}, "seed": self.seed}

    def size_of(self, pool: int, matched: int | None) -> int | None:
        """How many of the rows of a pool to count off; None where the condition alone decides. Raises SelectError.

        `matched` is the size of the selection named by `match`.
        """
        size = self.size if matched is None else matched
        if self.keep_share is not None:
            size = int((self.keep_share * pool).quantize(Decimal(1), ROUND_HALF_UP))
            if size == 0:
                raise SelectError(f"--keep-share {self.keep_share} of {pool} rows is less than one row; raise it")
        size = self.top if self.top is not None else size
        if size is not None and size > pool:
            given = f"--match {self.match}" if self.match else f"--{self.kind.replace('_', '-')}"
            raise SelectError(f"{given} asks for {size:,} rows and the dataset has {pool:,}")
        return size

    def check(self, name: str, graders: int) -> None:
        """Raise SelectError for a name or condition that makes no sense, whatever the rows."""
        for each in (name, *(f"{name}-{part}" for part in self.nested)):
            if not is_name(each):
                raise SelectError(f"{each!r} is not a valid name; {NAME_RULE}")
        self._check_combination(graders)
        self._check_kind()
        self._check_numbers()

    def _check_combination(self, graders: int) -> None:
        if graders > 1 and self.combine is None:
            raise SelectError("several graders need --combine mean, median or minimum")
        if graders == 1 and self.combine is not None:
            raise SelectError(f"--combine {self.combine} needs two or more graders: --grader A --grader B")
        scored = self.min_score is not None or self.top is not None or self.keep_share is not None
        if not scored and self.below is not None:
            raise SelectError("--below goes with --min-score, --top or --keep-share")
        if not scored and (self.combine is not None or self.by != "score"):
            option = "--combine" if self.combine else "--by"
            raise SelectError(f"{option} goes with --min-score, --top or --keep-share")
        if self.by not in get_args(By) or self.combine not in (None, *get_args(Combine)):
            raise SelectError(f"by = {self.by!r}, combine = {self.combine!r}; see Condition")

    def _check_kind(self) -> None:
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise SelectError(
                "give exactly one of --min-score, --top, --keep-share, --where, --random, --longest, --shortest; "
                f"this has {len(kinds)}"
            )
        if self.order is not None and self.order not in get_args(Order):
            raise SelectError(f"order = {self.order!r}; it is random, longest or shortest")
        if self.order is not None and (self.size is None) == (self.match is None):
            raise SelectError(
                f"--{self.order} needs a number of rows, or --match with the name of a selection of that size"
            )
        if self.order is None and (self.size is not None or self.match is not None):
            raise SelectError("--match works with --random, --longest and --shortest only")

    def _check_numbers(self) -> None:
        for option, number in (("--top", self.top), (f"--{self.order}", self.size)):
            if number is not None and number < 1:
                raise SelectError(f"{option} {number}: must be 1 or more")
        if self.min_score is not None and not self.min_score.is_finite():
            raise SelectError(f"--min-score {self.min_score} is not a number")
        if self.below is not None and not self.below.is_finite():
            raise SelectError(f"--below {self.below} is not a number")
        if self.keep_share is not None and not (self.keep_share.is_finite() and 0 < self.keep_share <= 1):
            raise SelectError(
                f"--keep-share {self.keep_share}: must be above 0 and at most 1; 0.18 keeps 18 % of the rows"
            )
        for category, most in self.quota.items():
            if most < 0:
                raise SelectError(f"--quota {category}={most}: must be 0 or more")
        for part in self.nested:
            if part < 1:
                raise SelectError(f"--nested {part}: must be 1 or more")


def plain_number(value: Decimal | None) -> int | float | None:
    """A Decimal as JSON writes it: 5, 4.5."""
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)
