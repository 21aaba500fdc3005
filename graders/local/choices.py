"""The choices of an answer as a trie of their tokens: what may follow where, and how likely each whole choice is.

"4" and "4.5" begin with the same token, so the first position alone cannot tell them apart. At each node the
probabilities of what may follow, "the answer ends here" included, are taken among themselves; that of a choice is their
product along its path. It is the probability that an answer which is held to the choices turns out to be this one, and
the sum over all choices is 1.

    root -- "4" --+-- (ends here)      -> 4        P(4) = P("4" | what may begin) * P(ends | ends or ".")
                  +-- "." -- "5"       -> 4.5

Knows tokens as numbers; nothing of engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Path = tuple[int, ...]
"""The tokens that lead to a node."""


@dataclass(slots=True)
class Node:
    """A place in the trie: the tokens that lead to it, what may follow, the choice that may end here."""

    path: Path
    label: str | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def decides(self) -> bool:
        """Whether more than one thing may happen here."""
        return len(self.children) + (self.label is not None) > 1


def trie_of(encoded: Mapping[str, Sequence[int]]) -> Node:
    """The trie of some choices, each with its tokens."""
    root = Node(())
    for choice, tokens in encoded.items():
        node = root
        for token in tokens:
            known = [child for child in node.children if child.path[-1] == token]
            if not known:
                known = [Node((*node.path, token))]
                node.children += known
            node = known[0]
        node.label = choice
    return root


def depth(node: Node) -> int:
    """The tokens of the longest choice."""
    return max((depth(child) for child in node.children), default=len(node.path))


def inner_nodes(node: Node) -> list[Node]:
    """The nodes from here on at which more than one thing may happen: where probabilities have to be read."""
    here = [node] if node.decides else []
    return [*here, *(found for child in node.children for found in inner_nodes(child))]


def node_at(root: Node, path: Path) -> Node:
    """The node to which these tokens lead."""
    node = root
    for place, token in enumerate(path):
        node = next(child for child in node.children if child.path[place] == token)
    return node


def inner_paths(root: Node | None) -> list[tuple[Path, tuple[int, ...]]]:
    """Paths that pass all of `inner_nodes` below the root, each with the places whose logits no other path reads."""
    if root is None:
        return []
    wanted = [node.path for node in inner_nodes(root) if node.path]
    longest = [path for path in wanted if not any(len(o) > len(path) and o[: len(path)] == path for o in wanted)]
    found: list[tuple[Path, tuple[int, ...]]] = []
    seen: set[Path] = set()
    for path in longest:
        places = tuple(n for n in range(len(path)) if path[: n + 1] in wanted and path[: n + 1] not in seen)
        seen.update(path[: n + 1] for n in places)
        found.append((path, places))
    return found


def logprobs_of(root: Node, noted: Mapping[Path, Sequence[float]], choices: Sequence[str]) -> dict[str, float]:
    """The natural log-probability of each choice among all of them, in their order.

    `noted` holds for the path of each of `inner_nodes` the log-probabilities (or logits) of its children in their order
    and, where a choice may end there, last that of ending.
    """
    total: dict[str, float] = {}

    def visit(node: Node, before: float) -> None:
        steps = _among_themselves(noted[node.path]) if node.decides else [0.0]
        for place, child in enumerate(node.children):
            visit(child, before + steps[place])
        if node.label is not None:
            total[node.label] = before + (steps[len(node.children)] if node.children else 0.0)

    visit(root, 0.0)
    return {choice: total[choice] for choice in choices}


def _among_themselves(values: Sequence[float]) -> list[float]:
    """Log-probabilities, shifted so that their probabilities sum to 1. Where none has any, all are as likely."""
    top = float(max(values))
    if top == -math.inf:
        return [-math.log(len(values))] * len(values)
    norm = top + math.log(sum(math.exp(float(value) - top) for value in values))
    return [float(value) - norm for value in values]
