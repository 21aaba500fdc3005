"""The id of an example: equal content has one id, whatever the file's name, format or row format.

example_id is `store.hash_id(content)`, that is the first 128 bits of

    sha256(len(content) as 8 bytes, big end first, then content)

where content is the UTF-8 JSON of [system, [[role, text], ...], instruction, input, output], without blanks, with no
escapes but those JSON demands; what is absent is "".
"""

from __future__ import annotations

import orjson

from alpasift.batcher.store import hash_id
from alpasift.graders import Example


def example_id(example: Example) -> str:
    """The id of this content, as a uuid."""
    turns = [(turn.role, turn.content) for turn in example.turns]
    return hash_id(orjson.dumps([example.system, turns, example.instruction, example.input, example.output]))
