"""Request files: what a file holds up to its limits, what is put back, and what no file can hold."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from pathlib import Path

import pytest

from alpasift.batcher.data.importing import import_file
from alpasift.batcher.engine.manual import export
from alpasift.batcher.engine.run import Run
from alpasift.batcher.store import Store
from alpasift.batcher.tasks.grade import Grade
from alpasift.graders import open_backend
from alpasift.graders.api.request_files import (
    FileLimits,
    LineQueue,
    RequestLine,
    read_request_file,
    request_line,
    sha256_of,
    write_request_file,
)
from alpasift.graders.prompts.rubric import load_rubric
from batch_harness import MODEL, REAL, marked_rows, money
from conftest import write_rows


def line(number: int, *, usd: str = "0.25", tokens: int = 10) -> RequestLine:
    return RequestLine(f"key-{number}", Decimal(usd), tokens, request_line(f"key-{number}", {"model": "m"}))


def queue(*lines: RequestLine) -> LineQueue:
    return LineQueue(iter(lines))


@pytest.mark.parametrize(
    ("limits", "rows", "ended_by"),
    [
        (FileLimits(10), 4, ""),
        (FileLimits(3), 3, "rows"),
        (FileLimits(10, usd=Decimal("0.75")), 3, "money"),
        (FileLimits(10, usd=Decimal("0.74")), 2, "money"),
        (FileLimits(10, tokens=39), 3, "tokens"),
        (FileLimits(10, usd=Decimal(0)), 0, "money"),
    ],
)
def test_a_file_ends_before_the_line_that_would_pass_a_limit(
    tmp_path: Path, limits: FileLimits, rows: int, ended_by: str
) -> None:
    lines = [line(i) for i in range(4)]
    waiting = queue(*lines)
    written = write_request_file(waiting, tmp_path / "requests.jsonl", limits)
    assert (written.keys, written.ended_by) == ([one.key for one in lines[:rows]], ended_by)
    assert written.ceilings == [Decimal("0.25")] * rows and written.ceiling_usd == Decimal("0.25") * rows
    assert written.tokens == 10 * rows
    data = (tmp_path / "requests.jsonl").read_bytes()
    assert data == b"".join(one.data for one in lines[:rows])
    assert (written.bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sha256_of(written.path) == written.sha256
    assert written.path.stat().st_mode & 0o777 == 0o600
    following = waiting.next()
    assert (following.key if following else None) == (f"key-{rows}" if rows < 4 else None)


def test_a_line_that_no_file_can_hold_is_left_out_and_named(tmp_path: Path) -> None:
    waiting = queue(line(0), line(1, tokens=11), line(2))
    written = write_request_file(waiting, tmp_path / "requests.jsonl", FileLimits(10, prompt_tokens=10))
    assert (written.keys, [one.key for one in written.too_long]) == (["key-0", "key-2"], ["key-1"])


def test_lines_come_back_from_a_file_which_is_then_deleted(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    written = write_request_file(queue(line(0), line(1, usd="0.5")), path, FileLimits(10))
    again = LineQueue(iter((line(2),)))
    again.send_again(read_request_file(path, dict(zip(written.keys, written.ceilings, strict=True)), written.tokens))
    found = [again.next(), again.next(), again.next(), again.next()]
    assert [one and (one.key, one.ceiling) for one in found] == [
        ("key-0", Decimal("0.25")),
        ("key-1", Decimal("0.5")),
        ("key-2", Decimal("0.25")),
        None,
    ]
    assert not path.exists()


def test_a_prompt_too_long_for_its_price_is_not_in_a_file_to_carry(tmp_path: Path) -> None:
    store = Store(tmp_path / "t.duckdb").create()
    rows = [*marked_rows(2), {"instruction": "Count.", "input": "", "output": "one two " * 101_000}]
    import_file(store, write_rows(tmp_path / "rows.jsonl", rows))
    version = store.locked_query("select version_id from dataset_versions").rows[0][0]
    backend = open_backend(f"openai_batch:{MODEL}", {"base_url": REAL})
    with Run(store, Grade(load_rubric("accuracy")), backend, str(version), budget=Decimal(5)) as run:
        made = export(run, tmp_path / "carry")
    assert (len(made.files), made.rows) == (1, 2)
    carried = [json.loads(row)["custom_id"] for row in made.files[0].read_text("utf-8").splitlines()]
    assert len(carried) == 2
    assert money(store)["reserved_usd"] == made.ceiling_usd
    assert store.locked_query("select position, reason from graded_rows").rows == [(2, "too_long")]
