"""The pairs of an audit: which rows of a dataset are taken, and what is made of each.

Knows rows as examples, and chance that is seeded; nothing of graders or the database. Call `plant`. What becomes of a
row depends on the seed and on the rows of the dataset, not on how many are taken: a larger audit holds the smaller.

A row is taken where its output is at least WORDS words long, the grader `rules` finds no flaw in it, and no row before
it has the same instruction and input. Another row's output has no such flaw either, and is one of the nearest in
length, longer or shorter by chance, so that neither form nor length gives it away.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from alpasift.batcher.data.identity import example_id
from alpasift.batcher.grading.audit_damage import KINDS, changed
from alpasift.graders import Example
from alpasift.graders.rules import judge

WORDS = 8
"""A row whose output has fewer words is not taken: there is too little to cut or shuffle."""
NEAR = 8
"""Another row's output is one of so many that are next in length, on either side."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the dataset that is audited upon: its content and the id of that."""

    example_id: str
    example: Example


@dataclass(frozen=True, slots=True)
class Planted:
    """A row as it was changed, and whether its question is asked a second time."""

    kind: str
    example_id: str
    example: Example
    asked_twice: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that was taken, as it is, with what was made of it."""

    row: Row
    planted: tuple[Planted, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The rows taken, in the order of their draw; by kind, of how many no pair could be made; why rows were passed
    over before there were enough."""

    taken: tuple[Taken, ...]
    left_out: dict[str, int]
    passed_over: dict[str, int]


def draw(seed: int, example: str) -> str:
    """Where a row stands in the order in which rows are taken; sql/queries/audit_pool.sql computes the same."""
    return hashlib.md5(f"audit {seed} {example}".encode(), usedforsecurity=False).hexdigest()


def plant(pool: Sequence[Row], count: int, seed: int, highest: str) -> Pairs:
    """Pairs of the first `count` rows, in the order of their draw, that can be taken.

    `highest` is the rubric's highest answer, which an injected line claims.
    """
    order = sorted(pool, key=lambda row: draw(seed, row.example_id))
    lengths = sorted((len(row.example.output), draw(seed, row.example_id), row) for row in order)
    passed_over: Counter[str] = Counter()
    left_out: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    taken: list[Taken] = []
    for row in _fit(order, passed_over):
        taken.append(_taken(row, lengths, seed, highest, left_out))
        if len(taken) == count:
            break
    return Pairs(tuple(taken), dict(left_out), dict(passed_over))


def _fit(order: Sequence[Row], passed_over: Counter[str]) -> Iterator[Row]:
    """The rows that can be taken."""
    seen = set()
    for row in order:
        example = row.example
        asked = (example.system, example.turns, example.instruction, example.input)
        if len(example.output.split()) < WORDS:
            passed_over["short_output"] += 1
        elif judge(example) != "1":
            passed_over["flawed_form"] += 1
        elif asked in seen:
            passed_over["same_instruction"] += 1
        else:
            seen.add(asked)
            yield row


def _taken(row: Row, lengths: Sequence[tuple[int, str, Row]], seed: int, highest: str, left_out: Counter[str]) -> Taken:
    """What is made of a row, each kind by a chance of its own. One of them, by chance, is asked twice."""
    other = _other(row, lengths, seed)
    made: dict[str, Planted] = {}
    texts = {row.example.output}
    for kind in KINDS:
        chance = random.Random(f"{seed} {row.example_id} {kind}")
        output = changed(kind, row.example.output, chance, other, highest)
        if output is None or output in texts:
            left_out[kind] += 1
            continue
        texts.add(output)
        example = replace(row.example, output=output)
        made[kind] = Planted(kind, example_id(example), example, False)
    again = random.Random(f"{seed} {row.example_id} again").choice(list(made))
    return Taken(row, tuple(replace(one, asked_twice=kind == again) for kind, one in made.items()))


def _other(row: Row, lengths: Sequence[tuple[int, str, Row]], seed: int) -> str | None:
    """The output of a row of about the same length, that is another answer to another instruction; None without one."""
    place = bisect_left(lengths, (len(row.example.output), draw(seed, row.example_id)))
    chance = random.Random(f"{seed} {row.example_id} partner")
    sides = [list(range(place - NEAR, place)), list(range(place + 1, place + 1 + NEAR))]
    for side in sides:
        chance.shuffle(side)
    chance.shuffle(sides)
    for at in (*sides[0], *sides[1]):
        if 0 <= at < len(lengths):
            one = lengths[at][2].example
            if one.output != row.example.output and one.instruction != row.example.instruction and judge(one) == "1":
                return one.output
    return None
