"""How often the verdict of an audit claims what is not there, and how often it finds what is.

python -m benchmarks.null_audits [--each 200] [--rows 200] [--data FILE] [--seed 0]

Graders without knowledge (one value, chance, output length in disguise) score the pairs that `alpasift audit` makes of
a file's rows; then graders whose scores of damaged outputs are lower by a part of their spread. A false claim is any
claim about damage, or that a change raises scores; of length in disguise, that it finds a kind of damage which length
does not.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpasift.batcher.data.identity import example_id
from alpasift.batcher.data.importing import import_file
from alpasift.batcher.data.stored_rows import stored_examples
from alpasift.batcher.grading.audit_damage import DAMAGE
from alpasift.batcher.grading.audit_pairs import Pairs, Row, plant
from alpasift.batcher.grading.audit_verdict import Counts, Verdict, verdict
from alpasift.batcher.store import Store

Score = Callable[[random.Random, int, str], float]
"""A score from chance, the length of an output, and the kind of its change ("" for an original)."""
EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "instructions.jsonl"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of grader without knowledge; `length` where length moves its scores."""

    name: str
    score: Score
    length: bool = False


def disguised(levels: float, noise: float, sign: int = 1) -> Score:
    """The logarithm of the length, cut to levels, with noise in units of its spread."""
    return lambda chance, chars, kind: sign * math.floor((math.log(chars + 1) + noise * chance.gauss()) * levels)


KINDS = (
    Kind("one value", lambda chance, chars, kind: 3.0),
    Kind("97 % one value, the rest by chance", lambda chance, chars, kind: 3.0 if chance.random() < 0.97 else 4.5),
    Kind("chance, 1,000 values", lambda chance, chars, kind: chance.randrange(1000)),
    Kind("chance, 11 values", lambda chance, chars, kind: chance.randrange(11)),
    Kind("chance, 2 values", lambda chance, chars, kind: chance.random() < 0.5),
    Kind("chance, 2 values, 10 % high", lambda chance, chars, kind: chance.random() < 0.1),
    Kind("length itself", lambda chance, chars, kind: chars, True),
    Kind("length in levels", disguised(2, 0.0), True),
    Kind("length with noise", disguised(4, 0.5), True),
    Kind("shortness with noise", disguised(4, 0.3, -1), True),
)


def knowing(strength: float) -> Score:
    """Chance on half points, damage lowering it by `strength` standard deviations."""
    return lambda chance, chars, kind: round(2 * (chance.gauss() - strength * (kind in DAMAGE))) / 2


def pairs_of(path: Path, rows: int, seed: int = 0) -> Pairs:
    """The pairs that an audit makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "rows.duckdb")
        version = import_file(store, path).version_id
        examples = list(dict.fromkeys(stored_examples(store, version)))
    return plant([Row(example_id(one), one) for one in examples], rows, seed, "5")


def judged(pairs: Pairs, score: Score, chance: random.Random) -> Verdict:
    """The verdict on a grader of these pairs."""
    counts: dict[str, list[int]] = {}
    for taken in pairs.taken:
        chars = len(taken.row.example.output)
        original = score(chance, chars, "")
        for planted in taken.planted:
            long = len(planted.example.output)
            changed = score(chance, long, planted.kind)
            cell = counts.setdefault(planted.kind, [0, 0, 0, 0, 0])
            cell[0 if original > changed else 1 if original == changed else 2] += 1
            cell[3] += chars > long
            cell[4] += chars < long
    return verdict(Counts(kind, *cell) for kind, cell in counts.items())


def false_claims(pairs: Pairs, kind: Kind, each: int, seed: int) -> int:
    """Of how many of `each` graders of a kind something is claimed that is not so."""
    wrong = 0
    for i in range(each):
        found = judged(pairs, kind.score, random.Random(f"{kind.name} {seed} {i}"))
        claims = found.beyond_length if kind.length else [one for one in found.kinds if one.claim != "none"]
        wrong += bool(claims)
    return wrong


def power(pairs: Pairs, strength: float, each: int, seed: int) -> float:
    """The mean share of the kinds of damage that a grader of this strength is said to find."""
    found = sum(
        len(judged(pairs, knowing(strength), random.Random(f"knowing {strength} {seed} {i}")).found)
        for i in range(each)
    )
    return found / each / len(DAMAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--each", type=int, default=200, help="graders of each kind")
    parser.add_argument("--rows", type=int, default=200, help="rows to make pairs of")
    parser.add_argument("--data", type=Path, default=EXAMPLES, help="the file whose rows are taken")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    pairs = pairs_of(given.data, given.rows, given.seed)
    total = sum(len(taken.planted) for taken in pairs.taken)
    print(f"{len(pairs.taken):,} rows of {given.data.name}, {total:,} pairs; left out {pairs.left_out}\n")
    print(f"| grader without knowledge ({given.each} of each) | a false claim |\n|---|---|")
    wrong = 0
    for kind in KINDS:
        found = false_claims(pairs, kind, given.each, given.seed)
        wrong += found
        print(f"| {kind.name} | {found / given.each:.1%} |", flush=True)
    print(f"| all {given.each * len(KINDS):,} | {wrong / given.each / len(KINDS):.1%} |\n")
    print("| damage lowers the score by, rows | kinds found |\n|---|---|")
    for count in (50, 200):
        some = Pairs(pairs.taken[:count], {}, {})
        for strength in (0.25, 0.5, 1.0):
            print(f"| {strength} sd, {len(some.taken)} | {power(some, strength, 50, given.seed):.0%} |", flush=True)


if __name__ == "__main__":
    main()
