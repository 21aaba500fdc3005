"""The faults that the server has on request: a table of names, and those that are armed and wait for their moment.

Each fault has a name; 1 to 36 are also known by their numbers in docs/faults.md, which says what AlpaSift does about
each. `Rehearsal.misbehave` takes either, and the keywords below with what they are when not given. A fault strikes
the next create [c], the next batch that is looked at for the first time [b], the next cancel [x] or the next request
that fits [r]. `times` is how often, None for always. A share is at least one line, where there is one.

    1  8  9  27  are the client's: it dies, or two clients work at once. Cause them in the server's `hook`, which
                 is called at the moments of `Event`; a ConnectionError in it closes the connection.

    2  upload_answer_lost   [r] an upload is kept, its answer lost      status=None: answered with this status instead
    3  create_answer_lost   [c] a batch is created, the answer lost
    4  create_hangs         [c] the create hangs, is carried out later  seconds=5.0 of real time; or after=None seconds
                                of the server's clock, or lists=None calls that do not show it, with the connection
                                closed at once
    5  create_answers_error [c] it is created, the answer is an error   status=503
    6  create_never_arrives [c] closed, nothing done                    status=None: answered with this status instead
    7  create_makes_two     [c] one create makes two batches            lost=False: whether the answer is lost, too
    10 queue_full           [b] it fails: token_limit_exceeded          limit=90000
    11 out_of_money         [b] it fails: billing_hard_limit_reached    http=False: True is 429 insufficient_quota to
                                the next POST of a kind, where="create" or "chat" or "upload"
    12 file_refused         [b] it fails, though the file is fine       code="invalid_json_line", line=1, message=...
    13 equal_ids_accepted   [b] a custom_id that occurs twice is accepted
    14 all_lines_fail       [b] every line fails                        status=400, code="unsupported_parameter"
    15 empty_error_file     [b] error_file_id is ""                     file=False: True names a file of 0 bytes
    16 late_output_id       [b] the output's id comes late              polls=2 retrieves do not show it
    17 some_lines_fail      [b] some lines fail                         share=0.3, status=400
    18 missing_lines        [b] lines are in neither file, nor in the counts    lines=1, executed=True
    19 repeated_lines       [b] lines are in the output twice           lines=1, same_id=False, same_usage=False:
                                unless both are the same it ran twice and is billed twice
    20 status_zero          [b] lines with a status of 0 and no body    lines=1, status=0, executed=True
    21 empty_body           [b] lines with status 200 and body {}       lines=1, kind="empty" or "no_usage",
                                executed=True
    22 unreadable_lines     [b] lines that cannot be read, but billed   lines=1, kind="json" or "utf8"
    23 stray_lines          [b] results that nobody asked for, billed   lines=1
    24 output_order         [b] the order of results, always so         order="shuffled", "input" or "reversed"
    25 content_unavailable  [r] a result file's content cannot be had   status=502
    26 content_cut_off      [r] a result file is cut off                at=0.5 of it, clean=False: True gives the
                                length of the part, whole_lines=False: True cuts after a line
    28 output_gone          [b] [r] the output file is gone: 404        usage=True: False hides the batch's usage, too
    29 expires              [b] it expires, part of its lines done      share=0.5, unlisted=0 lines in neither file
    30 cancelled_partly     [x] cancelled, part of its lines done       share=0.5, unlisted=0; unasked=False: True is
                                [b], as though somebody else had cancelled it
    31 cancelled_no_output  [x] cancelled, lines done but no output     share=0.5, unasked=False
    32 stuck                [b] it is stuck                             status="in_progress", "validating" or
                                "finalizing", share=0.5 done, until=None or seconds after its creation
    33 stuck_cancelling     [x] it is stuck cancelling                  until=None or seconds after the cancel
    34 cancel_too_late      [x] it completes first, the cancel fails    status=409
    35 odd_objects          [b] odd objects                             status="scheduling", polls=2; missing=True: no
                                optional fields, extra=True: unknown ones, text_body=True: in the output the body is
                                JSON as text
    36 batch_not_found      [r] 404 on a batch, or an empty list        where="retrieve" or "list"

Those without a number, all [r]. `where` is chat, upload, create, retrieve, list, cancel, content, polls (retrieve and
list) or any.

       html                 a web page, with status 200                 where="any"
       rate_limit           429 with Retry-After                        where="any", seconds=1
       unauthorized         401                                         where="any"
       server_error         an error of the server                      where="chat", status=500, executed=False
       lost_answer          done, then the connection closed            where="chat"
       slow                 nothing for a while, then as ever           where="any", seconds=5.0
       file_vanished        a create is told that its file is not there
       overcharge           usage far beyond what was asked, billed     factor=1000; chat, or [b] lines=1
       hostile_usage        usage that cannot be                        kind="negative", "bool", "cached", "text" or
                                "huge"; chat, or [b] lines=1; billed by what it really was
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Fault(StrEnum):
    """The faults of the table at the head of this module."""

    UPLOAD_ANSWER_LOST = "upload_answer_lost"
    CREATE_ANSWER_LOST = "create_answer_lost"
    CREATE_HANGS = "create_hangs"
    CREATE_ANSWERS_ERROR = "create_answers_error"
    CREATE_NEVER_ARRIVES = "create_never_arrives"
    CREATE_MAKES_TWO = "create_makes_two"
    QUEUE_FULL = "queue_full"
    OUT_OF_MONEY = "out_of_money"
    FILE_REFUSED = "file_refused"
    EQUAL_IDS_ACCEPTED = "equal_ids_accepted"
    ALL_LINES_FAIL = "all_lines_fail"
    EMPTY_ERROR_FILE = "empty_error_file"
    LATE_OUTPUT_ID = "late_output_id"
    SOME_LINES_FAIL = "some_lines_fail"
    MISSING_LINES = "missing_lines"
    REPEATED_LINES = "repeated_lines"
    STATUS_ZERO = "status_zero"
    EMPTY_BODY = "empty_body"
    UNREADABLE_LINES = "unreadable_lines"
    STRAY_LINES = "stray_lines"
    OUTPUT_ORDER = "output_order"
    CONTENT_UNAVAILABLE = "content_unavailable"
    CONTENT_CUT_OFF = "content_cut_off"
    OUTPUT_GONE = "output_gone"
    EXPIRES = "expires"
    CANCELLED_PARTLY = "cancelled_partly"
    CANCELLED_NO_OUTPUT = "cancelled_no_output"
    STUCK = "stuck"
    STUCK_CANCELLING = "stuck_cancelling"
    CANCEL_TOO_LATE = "cancel_too_late"
    ODD_OBJECTS = "odd_objects"
    BATCH_NOT_FOUND = "batch_not_found"
    HTML = "html"
    RATE_LIMIT = "rate_limit"
    UNAUTHORIZED = "unauthorized"
    SERVER_ERROR = "server_error"
    LOST_ANSWER = "lost_answer"
    SLOW = "slow"
    FILE_VANISHED = "file_vanished"
    OVERCHARGE = "overcharge"
    HOSTILE_USAGE = "hostile_usage"


NUMBERS: dict[int, Fault] = {
    2: Fault.UPLOAD_ANSWER_LOST,
    3: Fault.CREATE_ANSWER_LOST,
    4: Fault.CREATE_HANGS,
    5: Fault.CREATE_ANSWERS_ERROR,
    6: Fault.CREATE_NEVER_ARRIVES,
    7: Fault.CREATE_MAKES_TWO,
    10: Fault.QUEUE_FULL,
    11: Fault.OUT_OF_MONEY,
    12: Fault.FILE_REFUSED,
    13: Fault.EQUAL_IDS_ACCEPTED,
    14: Fault.ALL_LINES_FAIL,
    15: Fault.EMPTY_ERROR_FILE,
    16: Fault.LATE_OUTPUT_ID,
    17: Fault.SOME_LINES_FAIL,
    18: Fault.MISSING_LINES,
    19: Fault.REPEATED_LINES,
    20: Fault.STATUS_ZERO,
    21: Fault.EMPTY_BODY,
    22: Fault.UNREADABLE_LINES,
    23: Fault.STRAY_LINES,
    24: Fault.OUTPUT_ORDER,
    25: Fault.CONTENT_UNAVAILABLE,
    26: Fault.CONTENT_CUT_OFF,
    28: Fault.OUTPUT_GONE,
    29: Fault.EXPIRES,
    30: Fault.CANCELLED_PARTLY,
    31: Fault.CANCELLED_NO_OUTPUT,
    32: Fault.STUCK,
    33: Fault.STUCK_CANCELLING,
    34: Fault.CANCEL_TOO_LATE,
    35: Fault.ODD_OBJECTS,
    36: Fault.BATCH_NOT_FOUND,
}
"""The faults by their numbers."""

OF_THE_CLIENT = (1, 8, 9, 27)
"""Numbers of faults that no server can have."""

DEFAULTS: dict[Fault, dict[str, Any]] = {
    Fault.UPLOAD_ANSWER_LOST: {"status": None},
    Fault.CREATE_ANSWER_LOST: {},
    Fault.CREATE_HANGS: {"seconds": 5.0, "after": None, "lists": None},
    Fault.CREATE_ANSWERS_ERROR: {"status": 503},
    Fault.CREATE_NEVER_ARRIVES: {"status": None},
    Fault.CREATE_MAKES_TWO: {"lost": False},
    Fault.QUEUE_FULL: {"limit": 90_000},
    Fault.OUT_OF_MONEY: {"http": False, "where": "create"},
    Fault.FILE_REFUSED: {
        "code": "invalid_json_line",
        "line": 1,
        "message": "This line is not parseable as valid JSON.",
    },
    Fault.EQUAL_IDS_ACCEPTED: {},
    Fault.ALL_LINES_FAIL: {"status": 400, "code": "unsupported_parameter"},
    Fault.EMPTY_ERROR_FILE: {"file": False},
    Fault.LATE_OUTPUT_ID: {"polls": 2},
    Fault.SOME_LINES_FAIL: {"share": 0.3, "status": 400},
    Fault.MISSING_LINES: {"lines": 1, "executed": True},
    Fault.REPEATED_LINES: {"lines": 1, "same_id": False, "same_usage": False},
    Fault.STATUS_ZERO: {"lines": 1, "status": 0, "executed": True},
    Fault.EMPTY_BODY: {"lines": 1, "kind": "empty", "executed": True},
    Fault.UNREADABLE_LINES: {"lines": 1, "kind": "json"},
    Fault.STRAY_LINES: {"lines": 1},
    Fault.OUTPUT_ORDER: {"order": "shuffled"},
    Fault.CONTENT_UNAVAILABLE: {"status": 502},
    Fault.CONTENT_CUT_OFF: {"at": 0.5, "clean": False, "whole_lines": False},
    Fault.OUTPUT_GONE: {"usage": True},
    Fault.EXPIRES: {"share": 0.5, "unlisted": 0},
    Fault.CANCELLED_PARTLY: {"share": 0.5, "unlisted": 0, "unasked": False},
    Fault.CANCELLED_NO_OUTPUT: {"share": 0.5, "unasked": False},
    Fault.STUCK: {"status": "in_progress", "share": 0.5, "until": None},
    Fault.STUCK_CANCELLING: {"until": None},
    Fault.CANCEL_TOO_LATE: {"status": 409},
    Fault.ODD_OBJECTS: {"status": "scheduling", "polls": 2, "missing": True, "extra": True, "text_body": True},
    Fault.BATCH_NOT_FOUND: {"where": "retrieve"},
    Fault.HTML: {"where": "any"},
    Fault.RATE_LIMIT: {"where": "any", "seconds": 1},
    Fault.UNAUTHORIZED: {"where": "any"},
    Fault.SERVER_ERROR: {"where": "chat", "status": 500, "executed": False},
    Fault.LOST_ANSWER: {"where": "chat"},
    Fault.SLOW: {"where": "any", "seconds": 5.0},
    Fault.FILE_VANISHED: {},
    Fault.OVERCHARGE: {"factor": 1000, "lines": 1},
    Fault.HOSTILE_USAGE: {"kind": "negative", "lines": 1},
}
"""The keywords of each fault, with what they are when not given."""

OF_LINES = (
    Fault.SOME_LINES_FAIL,
    Fault.MISSING_LINES,
    Fault.REPEATED_LINES,
    Fault.STATUS_ZERO,
    Fault.EMPTY_BODY,
    Fault.UNREADABLE_LINES,
    Fault.STRAY_LINES,
    Fault.OVERCHARGE,
    Fault.HOSTILE_USAGE,
)
"""Faults that strike some lines of a batch."""

OF_A_BATCH = (
    Fault.QUEUE_FULL,
    Fault.OUT_OF_MONEY,
    Fault.FILE_REFUSED,
    Fault.EQUAL_IDS_ACCEPTED,
    Fault.ALL_LINES_FAIL,
    Fault.EMPTY_ERROR_FILE,
    Fault.LATE_OUTPUT_ID,
    *OF_LINES[:7],
    Fault.OUTPUT_ORDER,
    Fault.OUTPUT_GONE,
    Fault.EXPIRES,
    Fault.CANCELLED_PARTLY,
    Fault.CANCELLED_NO_OUTPUT,
    Fault.STUCK,
    Fault.ODD_OBJECTS,
    *OF_LINES[7:],
)
"""Faults that a batch takes on when it is looked at for the first time."""


def fault_of(name: int | str) -> Fault:
    """The fault of a number or a name. Raises ValueError for what the server does not have."""
    if name in OF_THE_CLIENT:
        raise ValueError(f"fault {name} is the client's; cause it in the hook")
    if isinstance(name, int) and name in NUMBERS:
        return NUMBERS[name]
    if name in DEFAULTS:
        return Fault(name)
    there_are = ", ".join([*map(str, NUMBERS), *DEFAULTS])
    raise ValueError(f"unknown fault {name!r}; choose from {there_are}")


@dataclass(slots=True)
class _Arm:
    """A fault that waits for its moment."""

    fault: Fault
    left: int | None
    detail: dict[str, Any]


class ArmedFaults:
    """The faults that wait for their moment, oldest first. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arms: list[_Arm] = []

    def arm(self, name: int | str, times: int | None, detail: Mapping[str, Any]) -> None:
        """Add a fault that strikes `times` times, None for always. Raises ValueError for what is not in the table."""
        fault = fault_of(name)
        unknown = sorted(set(detail) - set(DEFAULTS[fault]))
        if unknown:
            has = ", ".join(DEFAULTS[fault]) or "no keywords"
            raise ValueError(f"fault {name} has no {unknown[0]!r}; it has {has}")
        with self._lock:
            self._arms.append(_Arm(fault, times, {**DEFAULTS[fault], **detail}))

    def clear(self) -> None:
        with self._lock:
            self._arms.clear()

    def take(self, fault: Fault, fits: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any] | None:
        """The keywords of a fault that is armed and fits, used up once; None when there is none."""
        if not self._arms:
            return None
        with self._lock:
            for arm in self._arms:
                if arm.fault != fault or (fits is not None and not fits(arm.detail)):
                    continue
                if arm.left is not None:
                    arm.left -= 1
                    if arm.left <= 0:
                        self._arms.remove(arm)
                return dict(arm.detail)
        return None

    def take_at(self, fault: Fault, route: str) -> dict[str, Any] | None:
        """As `take`, for a fault whose `where` is this route."""
        return self.take(fault, lambda detail: _is_at(detail["where"], route))


def _is_at(where: str, route: str) -> bool:
    return where in ("any", route) or (where == "polls" and route in ("retrieve", "list"))
