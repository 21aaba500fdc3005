"""How examples are laid out: which go into one optimizer step, and how they share rows without padding. Call `plan`.

    Plan -> Step -> Microbatch -> Pack -> numbers of examples

A step is a number of *examples*, as the papers count it, whatever their length: 128 examples in random order, packed
among themselves. Best-fit decreasing gives the number of rows of `pack_length` that the largest step needs; every step
uses that many. Its examples are spread over them longest first, each into the emptiest row that has room, so that rows
are equally long, padded tails are short, and no card waits for another's longest row.

Arithmetic on lengths only; knows nothing of text, tokens or torch.

Best-fit decreasing: Johnson 1973; for language models Ding et al. 2024, arXiv 2404.10830.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Pack = tuple[int, ...]
"""Examples in one row, by number. Empty where a step has fewer examples than rows."""
Microbatch = tuple[Pack, ...]
"""Rows that pass through the model together on one card."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. Cards 0, 1, ... take the `microbatches` in turn, in this order."""

    epoch: int
    microbatches: tuple[Microbatch, ...]

    @property
    def examples(self) -> int:
        return sum(len(pack) for microbatch in self.microbatches for pack in microbatch)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every step of a training, and its totals.

    microbatches   of each step on each card: the gradient accumulation
    tokens         real tokens over all steps; `padded_tokens` includes the tails that padding adds
    max_tokens     padded tokens of the largest micro-batch, which a card must hold; `longest_row` those of its row
    """

    steps: tuple[Step, ...]
    microbatches: int
    tokens: int
    padded_tokens: int
    max_tokens: int
    longest_row: int

    @property
    def examples(self) -> int:
        return sum(step.examples for step in self.steps)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of at most `capacity`, by best-fit decreasing: the numbers of `lengths` in each.

    The longest first, each into the fullest bin that has room. Raises ValueError for a length above the capacity.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        if length > capacity:
            raise ValueError(f"example {number} has {length} tokens, more than the {capacity} of a pack")
        at = bisect_left(rooms, (length, -1))
        if at == len(rooms):
            bins.append([number])
            insort(rooms, (capacity - length, len(bins) - 1))
        else:
            room, found = rooms.pop(at)
            bins[found].append(number)
            insort(rooms, (room - length, found))
    return bins


def spread(lengths: Sequence[int], rows: int, capacity: int) -> list[list[int]]:
    """Exactly `rows` bins of nearly equal fill: longest first, each into the emptiest bin.

    Falls back on best-fit decreasing where that leaves an example without room; `rows` must then be enough for it.
    """
    bins: list[list[int]] = [[] for _ in range(rows)]
    fills = [(0, number) for number in range(rows)]
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fill, emptiest = fills[0]
        if fill + lengths[number] > capacity:
            tight = best_fit(lengths, capacity)
            return tight + [[] for _ in range(rows - len(tight))]
        bins[emptiest].append(number)
        heapq.heapreplace(fills, (fill + lengths[number], emptiest))
    return bins


def orders(
    count: int, batch: int, seed: int, epochs: float | None, steps: int | None
) -> Iterator[tuple[int, list[int]]]:
    """(epoch, example numbers) of each step. Each epoch is shuffled anew; its last step holds what is left.

    Stops after `steps`, else after `epochs`; a fraction of an epoch ends at the nearest step.
    """
    per_epoch = -(-count // batch)
    wanted = steps if steps is not None else max(1, round((epochs or 1) * per_epoch))
    epoch, done = 0, 0
    while done < wanted:
        order = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(order)
        for start in range(0, count, batch):
            if done == wanted:
                return
            yield epoch, order[start : start + batch]
            done += 1
        epoch += 1


def plan(
    lengths: Sequence[int],
    *,
    pack_length: int | None,
    micro_batch: int = 1,
    batch: int = 128,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    cards: int = 1,
) -> Plan:
    """Lay out a training of examples of these many tokens.

    `pack_length` None puts one example in a row and pads to the longest of its micro-batch, in random order: the
    reference recipe. `micro_batch` is rows a card takes at once. Raises ValueError when there is no example, or one is
    longer than `pack_length`.
    """
    if not lengths:
        raise ValueError("there are no examples to train on")
    drawn = list(orders(len(lengths), batch, seed, epochs, steps))
    if pack_length is None:
        need = max(len(numbers) for _, numbers in drawn)
    else:
        need = max(len(best_fit([lengths[n] for n in numbers], pack_length)) for _, numbers in drawn)
    at_once = micro_batch * cards
    microbatches = -(-need // at_once)
    rows = microbatches * at_once
    planned, tokens, padded, largest, longest = [], 0, 0, 0, 0
    for epoch, numbers in drawn:
        packs = _packs(lengths, numbers, rows, pack_length)
        groups = [tuple(packs[at : at + micro_batch]) for at in range(0, rows, micro_batch)]
        for group in groups:
            fills = [sum(lengths[n] for n in pack) or 1 for pack in group]
            tokens += sum(fills)
            padded += len(group) * max(fills)
            largest, longest = max(largest, len(group) * max(fills)), max(longest, *fills)
        planned.append(Step(epoch, tuple(groups)))
    return Plan(tuple(planned), microbatches, tokens, padded, largest, longest)


def _packs(lengths: Sequence[int], numbers: Sequence[int], rows: int, pack_length: int | None) -> list[Pack]:
    """The examples of a step in `rows` rows: one in each without `pack_length`, else spread over all of them."""
    if pack_length is None:
        return [*((n,) for n in numbers), *([()] * (rows - len(numbers)))]
    members = spread([lengths[n] for n in numbers], rows, pack_length)
    packs = [tuple(numbers[n] for n in sorted(row)) for row in members]
    return sorted(packs, key=lambda pack: -sum(lengths[n] for n in pack))  # equal rows side by side: short tails
