"""Leftovers of the generator: several tasks in one row, and an output that repeats the input."""

from __future__ import annotations

import re

from alpasift.graders import Example
from alpasift.graders.row_form.text import shown

_NUMBERED_TASK = re.compile(
    r"(?:^|\n)[ \t#*>]{0,8}(?:task )?(\d{1,3})[ \t]?[.):][ \t]?[*_]{0,2}instructions?[*_]{0,2}[ \t]?:", re.I
)
_TASK_HEADINGS = re.compile(r"(?:^|\n)[ \t#*_]{0,8}(instruction|input|output|response)[*_]{0,2}[ \t]?:[*_]{0,2}", re.I)
_PROMPT_HEADINGS = re.compile(r"(?:^|\n)[ \t]{0,3}#{2,4}[ \t]?(instruction|response)[ \t]?:?[ \t]{0,3}(?=\n|$)", re.I)
_ASKS_FOR_TASKS = re.compile(
    r"\b(?:instructions?|prompts?|few.shot|training (?:data|examples?|set)|datasets?)\b|\btasks?\b.{0,100}\b(?:in"
    r"|out)puts?\b"
    r"|\b(?:in|out)puts?\b.{0,100}\b(?:tasks?|examples?)\b|\b(?:create|generate|write|design|give|invent) (?:an? "
    r"|some |\d+ )?(?:\w+ )?tasks?\b",
    re.I | re.S,
)
_END_MARK = re.compile(
    r"//[ ]?(?:EOM|EOF|end of (?:the )?output\.?)[ ]?/{0,2}$|(?:[.!?\n]|^)[ \t]{0,3}<\|(?:endoftext|im_end|eot_id"
    r"|end)\|>$",
    re.I,
)
_SEPARATOR_AT_END = re.compile(r"[.!?)\"”][ \t]{0,3}\n+[ \t]{0,3}(?:###|##|\*{5}|/{3})$")


def merged_tasks(example: Example) -> str | None:
    """The output runs on into the generator's next task, or ends with one of the marks it put between tasks."""
    output = example.output
    tail = output[-400:].rstrip()
    if tail.endswith(("/", "#", "*", "|>", "EOM", "EOF", "output", "output.")):
        end = _END_MARK.search(tail) or _SEPARATOR_AT_END.search(tail)
        if end:
            return f"the output ends with the generator's marker {shown(end[0])}"
    lower = output.lower()
    if "instruction" not in lower or _ASKS_FOR_TASKS.search(example.instruction):
        return None
    task = _NUMBERED_TASK.search(output)
    if task and (task.start() > 0 or "output" in lower):
        return f"another task starts in the output: {shown(output[task.start() : task.start() + 90])}"
    names = {match[1].lower() for match in _TASK_HEADINGS.finditer(output)}
    if "instruction" in names and names & {"output", "response"}:
        return "the output contains the headings of another task, Instruction and Output"
    prompts = {match[1].lower() for match in _PROMPT_HEADINGS.finditer(output)}
    if {"instruction", "response"} <= prompts:
        return "the output contains the headings of a prompt, Instruction and Response"
    return None


_MUST_CHANGE = re.compile(
    r"\b(?:translate|summari[sz]e|paraphrase|rephrase|reword|shorten|condense|abridge|expand (?:on|upon)|elaborate"
    r"|continue|translation|summary|paraphrased?)\b",
    re.I,
)
_MAY_REPEAT = re.compile(
    r"\b(?:repeat|copy|verbatim|echo|unchanged|as is|same|quote|reproduce|recite|correct|fix|edit|check|proofread"
    r"|if|read"
    r"|transcribe|format|type|print|display|output the|return the|capitali[sz]e|punctuat\w*|extract|select"
    r"|identify|find)\b",
    re.I,
)


def repeats_input(example: Example) -> str | None:
    """The output is the instruction, or the input of a task that must change it or answer it, and nothing else.

    A correct sentence handed back by "correct this sentence" is right, and a passage may be the answer to a short
    question: only translating, summarising, rewording, going on with a text and answering a question count.
    """
    output = " ".join(example.output.split()) if len(example.output) <= 2 * _longest(example) else ""
    if len(output) < 20:
        return None
    instruction = example.instruction
    if output == " ".join(instruction.split()) and not _MAY_REPEAT.search(instruction):
        return "the output is the instruction, word for word"
    if output == " ".join(example.input.split()) and not _MAY_REPEAT.search(instruction):
        if _MUST_CHANGE.search(instruction):
            return "the output is the input, word for word"
        if output.endswith("?") and re.search(r"\banswer\b", instruction, re.I):
            return "the output is the question, word for word"
    return None


def _longest(example: Example) -> int:
    return max(len(example.instruction), len(example.input))
