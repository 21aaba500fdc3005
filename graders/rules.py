"""Rules: what is certainly broken about a row, by its form alone. No model, no network, no cost.

Knows eight defects that one can see without understanding the text, and answers the rubric `rules` only: "1" when
nothing was found, "0" and on the next line the reason and what was seen when something was. It judges nothing else:
an answer that is fluent, well-formed and wrong gets a 1. Its use is to spend no grader's money on rows that no
grader should see, and to show what is in a file.

A row that is broken and passes costs a fraction of a cent later; a good row that is thrown out is gone. So every
rule asks for certainty, and where an innocent row could look the same (a letter that begins "I'm sorry", a list of
words that ends with "the") the rule says nothing. The defects are those that the cleaners of Stanford Alpaca's data
list (github.com/gururise/AlpacaDataCleaned); the patterns were written against random rows of it. Only the graded
pair is looked at, never the turns before it.

Every pattern runs in time linear in the row: none that is searched for begins with an unbounded repetition, and those
about the end see the last 400 characters only.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal

from graders import BackendError, Estimate, Example, Meter, Reply, Request, batched

VERSION = "1"
"""Raise it when any row would be judged differently: it is part of every question's identity."""

JUDGES = (
    "rules looks at form only: empty or cut-off outputs, refusals, leftovers of the generator, inputs a text model "
    "cannot see, stray control characters. It cannot tell right from wrong: a fluent, well-formed and wrong answer "
    "gets a 1."
)
"""What the command line says beside every result of this backend."""

BLOCK = 5_000  # rows of one attempt
PART = 1_000  # replies of one list
SECONDS_EACH = 0.0001  # three to six times what was measured: 9,229 rows of Alpaca in 0.15 to 0.30 s on one core

Rule = Callable[[Example], str | None]

# -- what several rules use -------------------------------------------------------------------------------------

_QUOTES = "\"'“”‘’«»`"
_NO_WORD = re.compile(r"[\W_]+")
_FIRST_WORD = re.compile(r"[^\W\d_]+")
_BRACKETED = re.compile(r"\\?[<\[({].*\S.*\\?[>\])}]?[.,]?", re.DOTALL)


def _words(text: str) -> str:
    """Lower-case words and digits, one blank between them: what is left when spelling does not matter."""
    return _NO_WORD.sub(" ", text).strip().casefold()


def _shown(text: str) -> str:
    """A piece of a row inside a message: one line, quoted, at most 60 characters."""
    line = " ".join(text.split())
    return ascii(line if len(line) <= 60 else line[:57] + "...") if not line.isprintable() else repr(line[:60])


# -- empty_output -----------------------------------------------------------------------------------------------

_ABOUT_SIGNS = re.compile(
    r"punct|symbol|operator|mark|sign|emo|ascii|morse|pattern|character|bracket|separator|delimit|draw|glyph|regex"
    r"|comment|code|dots?\b|dash|blank",
    re.I,
)
_PLACEHOLDERS = {
    "n a", "none", "null", "nil", "todo", "to do", "tbd", "output", "no output", "nooutput", "placeholder", "answer",
    "your answer", "your answer here", "answer here", "insert answer here", "insert output here", "your output here",
    "response", "your response here", "not applicable", "empty", "blank", "noinput", "no input",
}  # fmt: skip
_BARE_PLACEHOLDERS = {"n a", "none", "null", "todo", "tbd", "no output", "nooutput", "noinput", "your answer here"}
_PRODUCES = re.compile(
    r"\W*(?:please |can you |could you )?(?:write|design|create|generate|compose|describe|explain|develop|build|draft"
    r"|summari[sz]e|translate|rewrite|paraphrase|construct|compile|plan|outline|brainstorm|suggest|propose|discuss|tell)\b",
    re.I,
)
_STANDS_FOR_MEDIA = re.compile(
    r"[<\[(](?:an? |the )?(?:image|picture|photo|video|audio|logo|sketch|drawing|illustration|diagram|chart|graph"
    r"|poster|painting|musical piece|music|melody|screenshot|animation)(?:[ /](?:of )?[\w ]{1,30})?[>\])]\.?",
    re.I,
)
_ABOUT_TAGS = re.compile(
    r"\b(?:html|xml|tags?|elements?|markdown|markup|svg|code|placeholders?|template|syntax)\b", re.I
)


def empty_output(example: Example) -> str | None:
    """Nothing in the output, or a word that stands where an answer should be."""
    if len(example.output) > 120 and not example.output.isspace():
        return None
    output = example.output.strip()
    if not output:
        return "the output is empty" if not example.output else "the output is blank"
    asked = f"{example.instruction}\n{example.input}"
    if all(unicodedata.category(sign)[0] in "PZC" for sign in output):
        return None if _ABOUT_SIGNS.search(asked) else f"the output is only {_shown(output)}"
    words = _words(output)
    if words in _PLACEHOLDERS and words not in _words(example.instruction):
        bracketed = output[0] in "<[({" and not _ABOUT_TAGS.search(asked)
        bare = words in _BARE_PLACEHOLDERS and (words != "n a" or "/" in output)
        if bracketed or (bare and (_PRODUCES.match(example.instruction) or words in {"no output", "nooutput"})):
            return f"the output is the placeholder {_shown(output)}"
    if output[0] in "<[(" and _STANDS_FOR_MEDIA.fullmatch(output) and not _ABOUT_TAGS.search(asked):
        return f"the output is the placeholder {_shown(output)}"
    return None


# -- no_input_marker --------------------------------------------------------------------------------------------

_NO_INPUT = re.compile(
    r"(?:input )?(?:there is )?(?:no ?inputs?|no (?:additional|further|specific|other|extra) inputs?)"
    r"(?: is| was| are)?(?: required| needed| necessary| provided| given| available| specified| supplied)?"
    r"(?: for this (?:task|instruction|question|prompt))?|(?:this (?:task|instruction) )?(?:does not|doesn t) (?:require|need)"
    r" (?:an |any )?input"
)
_NONE = {"none", "n a", "not applicable", "null", "nil", "nothing", "empty", "blank", "input none", "input n a"}
_ONE_WORD = re.compile(
    r"\b(?:word|translat\w*|terms?|spell\w*|pronoun\w*|synonyms?|antonyms?|abbreviat\w*|acronym\w*)\b", re.I
)
_NAMES_THE_MARKER = re.compile(r"no[ _-]?input", re.I)
_MARKER = re.compile(r"\\?[<\[({][ _]?no[ _-]?inputs?[ _]?\\?[>\])}]", re.I)
_ABOUT_MARKERS = re.compile(
    r"no[ _-]?input|\b(?:markers?|xml|html|tags?|errors?|monitors?|displays?|message (?:says?|means?|reads?))\b", re.I
)


def no_input_marker(example: Example) -> str | None:
    """The input holds one of the many spellings of "there is no input", which a model would be shown as a text.

    The generator of Alpaca's data was asked to write a marker and had a new spelling every few hundred rows.
    """
    given = example.input
    if given and len(given) <= 80 and ("n" in given or "N" in given or given[0] in "<[("):
        words = _words(given)
        if _NO_INPUT.fullmatch(words):
            text = given.strip()
            about = _NAMES_THE_MARKER if text[0] in "<[(\\`" else _ABOUT_MARKERS
            if not about.search(example.instruction):
                return f"the input is {_shown(given)}"
        elif words in _NONE:
            text = given.strip()
            bracketed = text[0] in "<[({" and not _ABOUT_MARKERS.search(example.instruction)
            plain = words in {"none", "not applicable", "input none", "input n a"} or (words == "n a" and "/" in text)
            if bracketed or (text[0] not in "<[({" and plain and not _ONE_WORD.search(example.instruction)):
                return f"the input is {_shown(given)}"
    for field, text in (("input", given), ("output", example.output[:40].lstrip())):
        if text and "nput" in text.casefold() and not _ABOUT_MARKERS.search(example.instruction):
            marker = _MARKER.search(text) if field == "input" else _MARKER.match(text)
            if marker:
                return f"the {field} holds the marker {_shown(marker[0])}"
            if field == "input" and "\n" in text:
                last = text.rstrip().rpartition("\n")[2]
                if len(last) <= 40 and _words(last) in {"noinput", "no input"}:
                    return f"the input ends with {_shown(last)}"
    return None


# -- merged_tasks -----------------------------------------------------------------------------------------------

_NUMBERED_TASK = re.compile(
    r"(?:^|\n)[ \t#*>]{0,8}(?:task )?(\d{1,3})[ \t]?[.):][ \t]?[*_]{0,2}instructions?[*_]{0,2}[ \t]?:", re.I
)
_TASK_HEADINGS = re.compile(r"(?:^|\n)[ \t#*_]{0,8}(instruction|input|output|response)[*_]{0,2}[ \t]?:[*_]{0,2}", re.I)
_PROMPT_HEADINGS = re.compile(r"(?:^|\n)[ \t]{0,3}#{2,4}[ \t]?(instruction|response)[ \t]?:?[ \t]{0,3}(?=\n|$)", re.I)
_ASKS_FOR_TASKS = re.compile(
    r"\b(?:instructions?|prompts?|few.shot|training (?:data|examples?|set)|datasets?)\b|\btasks?\b.{0,100}\b(?:in|out)puts?\b"
    r"|\b(?:in|out)puts?\b.{0,100}\b(?:tasks?|examples?)\b|\b(?:create|generate|write|design|give|invent) (?:an? |some |\d+ )?(?:\w+ )?tasks?\b",
    re.I | re.S,
)
_END_MARK = re.compile(
    r"//[ ]?(?:EOM|EOF|end of (?:the )?output\.?)[ ]?/{0,2}$|(?:[.!?\n]|^)[ \t]{0,3}<\|(?:endoftext|im_end|eot_id|end)\|>$",
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
            return f"the output ends with the generator's mark {_shown(end[0])}"
    lower = output.lower()
    if "instruction" not in lower or _ASKS_FOR_TASKS.search(example.instruction):
        return None
    task = _NUMBERED_TASK.search(output)
    if task and (task.start() > 0 or "output" in lower):
        return f"a further task begins in the output: {_shown(output[task.start() : task.start() + 90])}"
    names = {match[1].lower() for match in _TASK_HEADINGS.finditer(output)}
    if "instruction" in names and names & {"output", "response"}:
        return "the output holds the headings of a further task, Instruction and Output"
    prompts = {match[1].lower() for match in _PROMPT_HEADINGS.finditer(output)}
    if {"instruction", "response"} <= prompts:
        return "the output holds the headings of a prompt, Instruction and Response"
    return None


# -- repeats_input ----------------------------------------------------------------------------------------------

_MUST_CHANGE = re.compile(
    r"\b(?:translate|summari[sz]e|paraphrase|rephrase|reword|shorten|condense|abridge|expand (?:on|upon)|elaborate"
    r"|continue|translation|summary|paraphrased?)\b",
    re.I,
)
_MAY_REPEAT = re.compile(
    r"\b(?:repeat|copy|verbatim|echo|unchanged|as is|same|quote|reproduce|recite|correct|fix|edit|check|proofread|if|read"
    r"|transcribe|format|type|print|display|output the|return the|capitali[sz]e|punctuat\w*|extract|select|identify|find)\b",
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


# -- refusal ----------------------------------------------------------------------------------------------------

_CANNOT = r"(?:can(?:no|')?t|can not|can’t|am (?:currently )?(?:unable|not able)|(?:do not|don['’]t) have the (?:ability|capability|means)|am not (?:capable|programmed|designed)|won['’]t|will not be able)"
_OPENERS = {"i", "im", "sorry", "unfortunately", "my", "as", "no", "the", "this", "a"}
_DENIALS = ("cannot", "can not", "can't", "can’t", "cant", "unable", "not ", "n't", "n’t", "no output", "by a human")
_AS_AN_AI = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very |so )?sorry,? (?:but )?|sorry,? (?:but )?|unfortunately,? |i apologi[sz]e,? (?:but )?)?"
    r"(?:as an? (?:large |ai |artificial |text.based )*(?:language |intelligence )*(?:model|ai|assistant|chatbot|llm|ai system)\b[^.\n]{0,80}?|"
    r"(?:i['’]?m|i am) (?:only |just )?an? (?:large |ai |text.based )*(?:language )?(?:model|ai|assistant|chatbot)\b[^\n]{0,40}?)"
    r"\bI (?:also )?" + _CANNOT + r"\b",
    re.I,
)
_SORRY_CANNOT = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very |so |really )?(?:sorry|afraid)|sorry|unfortunately|i apologi[sz]e|my apologies)[,.;]?(?: but| that)? ?I "
    + _CANNOT
    + r"(?: to| of)? (?:assist|fulfil|comply|complete (?:this|that|the|your) (?:task|request|instruction)|answer (?:this|that|your)"
    r"|process (?:this|that|your)|provide|generat|creat|browse|access|perform (?:this|that|the|your)|help (?:you )?with (?:this|that|your request)"
    r"|do (?:this|that)\b|engage in|open|view|see|play|draw|show|display)",
    re.I,
)
_TASK_CANNOT = re.compile(
    r"\W*(?:sorry,? (?:but )?)?(?:no output[\s.:,-]+(?:because|as|since|the task|this|it )"
    r"|(?:the|this) (?:task|instruction|request)\b(?=[^\n]*\b(?:model|output|by a human)\b)"
    r"[^\n]{0,160}?\b(?:cannot|can['’]?t|unable|not (?:possible|feasible)|by a human|does not meet the requirements)\b"
    r"|(?:the|this) (?:gpt|language|ai)[- ]?(?:language )?(?:model)? ?(?:cannot|can['’]?t|is unable|is not able))",
    re.I,
)
_PLAIN_CANNOT = re.compile(
    r"\W*(?:i['’]?m sorry,? (?:but )?|sorry,? (?:but )?)?I " + _CANNOT + r"(?: to)? ([a-z]+)\b", re.I
)
_HELPS_ALL_THE_SAME = re.compile(
    r"\b(?:here(?:['’]s| is| are)|instead|in general|generally|that said|nevertheless|for example|but I can|I can (?:tell|give|offer|suggest|describe))\b"
    r"|\bhowever,? (?!(?:if|please|I(?:['’]d| would) be (?:happy|glad)|I(?:['’]m| am) happy))|\n[ \t]{0,3}(?:[-*•]|\d+[.)]) ",
    re.I,
)
_ASKS_FOR_WORDS = re.compile(
    r"\b(?:repl(?:y|ies)|respon(?:d|se)\b.{0,40}(?:to|customer|email)|respond|e-?mail|letter|message|text (?:message|to)|apolog\w*|excuse|declin\w*|refus\w*|reject\w*"
    r"|polite\w*|sa(?:y|ys|id|ying)|role|play|dialog(?:ue)?s?|conversation|chat\w*|customer|script|story|scene|character|monologue|speech|quote"
    r"|sentences?|phrases?|translate|rewrite|rephrase|paraphrase|imagine|pretend|robot|ai|assistant|turn down|sympath\w*|condolences?|note|voicemail)\b",
    re.I | re.S,
)


_ASKS_FOR_A_PART = re.compile(
    r"\b(?:robots?|story|dialog(?:ue)?s?|script|role|pretend|imagine|scene|character|play|gpt|language models?)\b", re.I
)


def refusal(example: Example) -> str | None:
    """The output begins by declining the task, and offers nothing in its place.

    Silent where the task is to write such words: a letter, an excuse, a reply to a customer, a scene with a robot.
    """
    head = example.output[:240]
    opener = _FIRST_WORD.search(head)
    if not opener or opener[0].lower() not in _OPENERS:
        return None
    lower = head.lower()
    if not any(denial in lower for denial in _DENIALS):
        return None
    found, spoken = _TASK_CANNOT.match(head), _ASKS_FOR_A_PART  # nobody says such a sentence in a letter
    if not found:
        found, spoken = _AS_AN_AI.match(head) or _SORRY_CANNOT.match(head), _ASKS_FOR_WORDS
    if not found:
        plain, verb = _PLAIN_CANNOT.match(head), _FIRST_WORD.search(example.instruction)
        found = plain if plain and verb and plain[1].casefold() == verb[0].casefold() else None
    if not found or spoken.search(example.instruction):
        return None
    rest = example.output[found.end() :]
    if len(rest) > 500 or _HELPS_ALL_THE_SAME.search(rest):
        return None
    return f"the output declines: {_shown(head)}"


# -- cut_off ----------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]{0,3}```", re.M)
_LAST_WORD = re.compile(
    r"[^\s,;:(]+ (and|or|nor|but|the|an|because|although|whereas|whose|their|its|our|your|my|than|is the|of the)$"
)
_OPEN_SENTENCE = re.compile(r"(?:The|This|Our|It) [^\n,.;:!?]{12,120} (?:is|are|was|were|equals|of|to the)$")
_QUESTION_WORD = re.compile(r"\b(?:wh(?:o|at|ere|ich|om|y)|how|it|there|here|as|than|that)\b", re.I)
_ANNOUNCES = re.compile(
    r"[a-z][^\n]{0,120}\b(?:following|follows|are|is|include|includes|including|below|these|steps|such as)\b[^\n:]{0,60}:$"
)
_ABOUT_FRAGMENTS = re.compile(
    r"\b(?:sort|order|arrange|rearrange|reverse|unscramble|scramble|words?|letters?|fragment|complete|blank|begin\w*|opening|start\w*|first (?:line|half|part)"
    r"|prompt|prefix|cut|truncat\w*|incomplete|unfinished|phrase|cliff\w*|introduc\w*|intro|salutation|greeting|heading|title|template|form|poem|haiku"
    r"|song|lyrics?|verse|code|function|loop|split|half|predict|tokeni[sz]e|extract|identify|find|list)\b",
    re.I,
)
_ALPHA_WORD = re.compile(r"[^\W\d_]+")


def cut_off(example: Example) -> str | None:
    """The output stops in the middle: an open code fence or bracket, unfinished JSON, a sentence that must go on.

    A list, a word or a line without a full stop is no cut. Signatures end in commas and forms in colons, so those
    count only at the end of a long line, and never where the task is about fragments, verse or word order.
    """
    output = example.output
    if "```" in output and len(_FENCE.findall(output)) % 2:
        return "a code fence is opened and never closed"
    tail = output[-400:].rstrip()
    if not tail:
        return None
    last = tail[-1]
    if last in "([{" and tail[-2:-1] in ("", " ", "\n", "=", ","):
        return f"the output ends with an open bracket: {_shown(tail[-40:])}"
    if "json" in example.instruction.casefold() and output.lstrip()[:1] in ("{", "["):
        return _unfinished_json(output)
    if last in '.!?"”)':  # how most outputs end
        return None
    if last in ",:":
        line = tail.rpartition("\n")[2].strip()
        if _ABOUT_FRAGMENTS.search(example.instruction) or len(_ALPHA_WORD.findall(line)) < (9 if last == "," else 5):
            return None
        if last == "," or _ANNOUNCES.search(line):
            return f"the output ends with a {'comma' if last == ',' else 'colon'}: {_shown(line[-50:])}"
        return None
    if not last.isalpha() or not last.islower():
        return None
    line = tail.rpartition("\n")[2].strip()
    if len(line) < 25 or _ABOUT_FRAGMENTS.search(example.instruction):
        return None
    word = _LAST_WORD.search(line)
    if word and line.count(" ") >= 5 and not line.startswith(tuple(_QUOTES)):
        return f"the output ends with {_shown(word[1])}: {_shown(line[-50:])}"
    if "\n" not in output.strip() and _OPEN_SENTENCE.fullmatch(line) and not _QUESTION_WORD.search(line):
        return f"the output's sentence is not finished: {_shown(line[-50:])}"
    return None


def _unfinished_json(output: str) -> str | None:
    text = output.strip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
            return f"the JSON ends before it is complete: {_shown(text[-40:])}"
    except (RecursionError, ValueError):
        return None
    return None


# -- needs_image_or_url -----------------------------------------------------------------------------------------

_MEDIA = (
    r"(?:images?|pictures?|photos?|photographs?|screenshots?|videos?|diagrams?|charts?|graphs?|paintings?|illustrations?"
    r"|drawings?|cartoons?|logos?|audio|recordings?|video clips?|audio clips?|podcasts?|web ?sites?|web ?pages?|spreadsheets?|pdfs?)"
)
_STEMS = (
    "image", "picture", "photo", "screenshot", "video", "diagram", "chart", "graph", "painting", "illustration", "drawing",
    "cartoon", "logo", "audio", "recording", "podcast", "site", "page", "spreadsheet", "pdf",
)  # fmt: skip
_LINK_ONLY = re.compile(
    r"[<\[({\"']{0,2}[ ]?(?:(?:the |this )?(?:article|video|image|photo|picture|spreadsheet|web ?site|page|song|link|url)?[ ]?"
    r"(?:link|url|is)?[ ]?:?[ ])?(?:image:[ ]?)?(?:https?://|www\.)\S{3,400}[ ]?[>\])}\"']{0,2}\.?",
    re.I,
)
_NEEDS_CONTENT = re.compile(
    r"\b(?:summari[sz]e|summari[sz]es|summari[sz]ing|summary|describe|analy[sz]e|evaluate|review|critique|rate|watch|listen|visit"
    r"|access|paraphrase|article|photo|photograph|picture|image|painting|video|song|trailer|piece|artwork|clip|podcast|caption|transcribe)\b",
    re.I,
)
_ABOUT_LINKS = re.compile(
    r"\b(?:urls?\b.{0,30}\b(?:valid|pars\w*|part|component|format|structure)|domain|hyperlinks?|http requests?|algorithm|shorten|encode|decode|regex|regular expression|parse"
    r"|classif\w+\b.{0,40}\b(?:url|link|website)|(?:type|kind) of (?:article|page|site)|protocol|curl|api|html|css|markdown|cit(?:e|ation)|reference|bibliograph\w*|qr|code|script|program|function|python|javascript|tags?|embed|tweet about|alt text|phishing|query)\b",
    re.I | re.S,
)
_PLACEHOLDER_MEDIA = re.compile(
    r"(?:[\w ]{1,12}:[ ]?)?[<\[(][ ]?(?:an? |the |input: ?)?(?:attached |insert |link to |url of |website )?(?:an? |the )?"
    r"(?:image|picture|photo|photograph|screenshot|video|audio|painting|diagram|chart|graph|url|link|excel file|pdf|file|attachment|article link|attached)"
    r"(?: ?\d{1,2})?(?: (?:attached|here|file|url|link|goes here))?"
    r"(?: (?:of|to|showing|about) (?:an? |the )?(?:[\w-]+ ){0,3}[\w-]+)?[ ]?[>\])]",
    re.I,
)
_EMBEDDED_IMAGE = re.compile(r"!\[[^\]\n]{0,80}\]\([^)\n]{3,400}\)|<img [^>\n]{0,300}>", re.I)
_POINTS_AT_MEDIA = re.compile(
    r"\b(?:this(?: [a-z]+)?|(?<!of )these|(?:the )?(?:attached|following|above|below|provided)(?: [a-z]+)?|the given|look at (?:the|this)(?: [a-z]+)?)"
    r" "
    + _MEDIA
    + r"\b(?! (?:games?|store|library|editor|format|type|production|marketing|design|industry|titles?|names?|ideas?|url|domain))"
    r"|\b(?:the|in|an?) " + _MEDIA + r" (?:below|above|attached|shown|provided here)\b",
    re.I,
)
_TELLS_THE_CONTENT = re.compile(
    r"[:\"“”«][ \n]*\S|\d[^.]{0,40}\d|\bby [A-Z]|\b(?:called|named|titled|entitled|known as|depicts|shows that|contains|has)\b|\n|[?][ ]*\S|,[^,]*,"
)
_MAKES_MEDIA = re.compile(
    r"\b(?:html|css|markdown|code|program|script|python|javascript|java|c\+\+|function|algorithm|query|alt text|prompt|how to"
    r"|how (?:do|would|can|should)|app|software|neural|classifier|network|steps)\b",
    re.I,
)


def needs_image_or_url(example: Example) -> str | None:
    """The task is about a picture, a recording or a page that is not there as text: whatever the answer, it is made up.

    A place holder that describes what it stands for in some words is text enough; so is a link where the task is
    about the link itself.
    """
    instruction, given = example.instruction, example.input.strip()
    if given:
        if len(given) > 600 or not ("<" in given or "[" in given or "(" in given or "www" in given or "://" in given):
            return None
        if _LINK_ONLY.fullmatch(given) and _NEEDS_CONTENT.search(instruction) and not _ABOUT_LINKS.search(instruction):
            return f"the input is only a link: {_shown(given)}"
        if _ABOUT_TAGS.search(instruction) or _MAKES_MEDIA.search(instruction):
            return None
        if _EMBEDDED_IMAGE.fullmatch(given):
            return f"the input is only an image: {_shown(given)}"
        if all(_PLACEHOLDER_MEDIA.fullmatch(line.strip()) for line in given.splitlines() if line.strip()):
            return f"the input only stands for something to look at: {_shown(given)}"
        return None
    lower = instruction.lower()
    if len(instruction) > 300 or not any(stem in lower for stem in _STEMS):
        return None
    points = _POINTS_AT_MEDIA.search(instruction)
    if points and not _MAKES_MEDIA.search(instruction) and not _TELLS_THE_CONTENT.search(instruction.rstrip(" :.\n")):
        return f"the instruction points at something that is not there: {_shown(points[0])}"
    return None


# -- control_characters -----------------------------------------------------------------------------------------

_JUNK = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffd\ud800-\udfff]"
)
_JOINERS = "\u200c\u200d"
_DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")


def control_characters(example: Example) -> str | None:
    """Characters that no reader sees and no writer typed: control codes, replacement marks, zero-width junk.

    Joiners are kept inside emoji and in scripts that are written with them, direction marks in texts that hold a
    script written from right to left.
    """
    for field, text in (("instruction", example.instruction), ("input", example.input), ("output", example.output)):
        if text.isascii() and text.isprintable():
            continue
        for match in _JUNK.finditer(text):
            sign = match[0]
            if sign in _JOINERS and _joins(text, match.start()):
                continue
            if sign in _DIRECTIONS and _RIGHT_TO_LEFT.search(text):
                continue
            return f"the {field} holds U+{ord(sign):04X} at character {match.start()}"
    return None


def _joins(text: str, at: int) -> bool:
    before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
    if before >= "\U00002000" and not before.isspace() and text[at] == "\u200d":
        return after > "\u2000"  # between the parts of one emoji
    return any(
        "\u0590" <= sign <= "\u1cff" for sign in (before, after)
    )  # Arabic, the scripts of India, Khmer, Mongolian


# -- all of them ------------------------------------------------------------------------------------------------

RULES: tuple[tuple[str, Rule], ...] = (
    ("empty_output", empty_output),
    ("no_input_marker", no_input_marker),
    ("merged_tasks", merged_tasks),
    ("repeats_input", repeats_input),
    ("refusal", refusal),
    ("cut_off", cut_off),
    ("needs_image_or_url", needs_image_or_url),
    ("control_characters", control_characters),
)
"""(reason, function) in the order they are asked; the first that finds something gives the row its reason."""


def judge(example: Example) -> str:
    """The reply to the rubric `rules`: "1", or "0" and on the next line the reason and what was seen."""
    for reason, rule in RULES:
        detail = rule(example)
        if detail is not None:
            return f"0\n{reason}: {detail}"
    return "1"


class Rules:
    """The backend `rules`."""

    remarks: tuple[str, ...] = ()

    name = "rules"
    fingerprint: Mapping[str, str] = {"rules": VERSION}
    facts: Mapping[str, str] = {}
    paid = False
    leaves_machine = "nothing"

    def refuses(self, rubric: str) -> str | None:
        if rubric == "rules":
            return None
        return f"rules judges only form and cannot answer {rubric!r}; grade with --rubric rules, or take a model"

    def cannot(self, request: Request) -> str | None:
        return "rules gives a verdict and no log-probabilities" if request.want_logprobs else None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        count, free = sum(1 for _ in requests), Decimal(0)
        return Estimate(count, free, free, free, free, count * SECONDS_EACH, 0, 0)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Iterator[list[Reply]]:
        for block in batched(requests, BLOCK):
            attempt = meter.open([request.key for request in block], Decimal(0))
            for start in range(0, len(block), PART):
                part = block[start : start + PART]
                yield [self._reply(attempt, str(start + i), request) for i, request in enumerate(part)]
            meter.close(attempt)

    def _reply(self, attempt: str, request_id: str, request: Request) -> Reply:
        refused = self.refuses(request.rubric)
        if refused:
            return Reply(attempt, request.key, request_id, "rejected_free", error=refused)
        text = judge(request.example)
        return Reply(attempt, request.key, request_id, "answered", text, finish_reason="stop", model="rules")

    def close(self) -> None:
        pass


def open(argument: str | None) -> Rules:
    """Raises BackendError when an argument is given: there is nothing to choose."""
    if argument is not None:
        raise BackendError(f"the grader rules takes no argument, not {argument!r}; write --grader rules")
    return Rules()
