"""Hide versions of a rubric: their grades stay, and commands no longer list them or choose them unnamed.

Every edit of a rubric is a version of its own, and trial versions clutter the lists. A hidden one is still found by its
version, NAME@2.
"""

from __future__ import annotations

from collections.abc import Sequence

from alpasift.batcher.grading.lookup import label_of
from alpasift.batcher.store import Store, append, utc_now


def set_hidden(store: Store, rubrics: Sequence[str], hidden: bool) -> list[str]:
    """Hide these rubrics, or list them again; returns the labels of those for which that changed something.

    NAME is the newest version, NAME@1 the first. Raises GradingError for one that has graded nothing here.
    """
    store.existing()
    labels = list(dict.fromkeys(label_of(store, "rubric", name) for name in rubrics))
    with store.transaction() as con:
        known = con.execute("select label, rubric_id::varchar, hidden from rubric_labels").fetchall()
        changed = [(label, rubric_id) for label, rubric_id, now in known if label in labels and now != hidden]
        rows = [(rubric_id, hidden, utc_now()) for _, rubric_id in changed]
        append(con, "hidden_rubrics", ("rubric_id", "hidden", "recorded_at"), rows)
    return [label for label, _ in changed]
