"""Rows that need an image, a file or a page that a text model cannot see."""

from __future__ import annotations

import re

from alpasift.graders import Example
from alpasift.graders.row_form.text import ABOUT_TAGS, shown

_MEDIA = (
    r"(?:images?|pictures?|photos?|photographs?|screenshots?|videos?|diagrams?|charts?|graphs?|paintings?"
    r"|illustrations?"
    r"|drawings?|cartoons?|logos?|audio|recordings?|video clips?|audio clips?|podcasts?|web ?sites?|web ?pages?"
    r"|spreadsheets?|pdfs?)"
)
_STEMS = (
    "image",
    "picture",
    "photo",
    "screenshot",
    "video",
    "diagram",
    "chart",
    "graph",
    "painting",
    "illustration",
    "drawing",
    "cartoon",
    "logo",
    "audio",
    "recording",
    "podcast",
    "site",
    "page",
    "spreadsheet",
    "pdf",
)
_LINK_ONLY = re.compile(
    r"[<\[({\"']{0,2}[ ]?(?:(?:the |this )?(?:article|video|image|photo|picture|spreadsheet|web ?site|page|song"
    r"|link|url)?[ ]?"
    r"(?:link|url|is)?[ ]?:?[ ])?(?:image:[ ]?)?(?:https?://|www\.)\S{3,400}[ ]?[>\])}\"']{0,2}\.?",
    re.I,
)
_NEEDS_CONTENT = re.compile(
    r"\b(?:summari[sz]e|summari[sz]es|summari[sz]ing|summary|describe|analy[sz]e|evaluate|review|critique|rate"
    r"|watch|listen|visit"
    r"|access|paraphrase|article|photo|photograph|picture|image|painting|video|song|trailer|piece|artwork|clip"
    r"|podcast|caption|transcribe)\b",
    re.I,
)
_ABOUT_LINKS = re.compile(
    r"\b(?:urls?\b.{0,30}\b(?:valid|pars\w*|part|component|format|structure)|domain|hyperlinks?|http requests?"
    r"|algorithm|shorten|encode|decode|regex|regular expression|parse"
    r"|classif\w+\b.{0,40}\b(?:url|link|website)|(?:type|kind) of (?:article|page|site)|protocol|curl|api|html"
    r"|css|markdown|cit(?:e|ation)|reference|bibliograph\w*|qr|code|script|program|function|python|javascript"
    r"|tags?|embed|tweet about|alt text|phishing|query)\b",
    re.I | re.S,
)
_PLACEHOLDER_MEDIA = re.compile(
    r"(?:[\w ]{1,12}:[ ]?)?[<\[(][ ]?(?:an? |the |input: ?)?(?:attached |insert |link to |url of "
    r"|website )?(?:an? |the )?"
    r"(?:image|picture|photo|photograph|screenshot|video|audio|painting|diagram|chart|graph|url|link|excel file"
    r"|pdf|file|attachment|article link|attached)"
    r"(?: ?\d{1,2})?(?: (?:attached|here|file|url|link|goes here))?"
    r"(?: (?:of|to|showing|about) (?:an? |the )?(?:[\w-]+ ){0,3}[\w-]+)?[ ]?[>\])]",
    re.I,
)
_EMBEDDED_IMAGE = re.compile(r"!\[[^\]\n]{0,80}\]\([^)\n]{3,400}\)|<img [^>\n]{0,300}>", re.I)
_POINTS_AT_MEDIA = re.compile(
    r"\b(?:this(?: [a-z]+)?|(?<!of )these|(?:the )?(?:attached|following|above|below|provided)(?: [a-z]+)?"
    r"|the given|look at (?:the|this)(?: [a-z]+)?)"
    r" "
    + _MEDIA
    + r"\b(?! (?:games?|store|library|editor|format|type|production|marketing|design|industry|titles?|names?"
    r"|ideas?|url|domain))"
    r"|\b(?:the|in|an?) " + _MEDIA + r" (?:below|above|attached|shown|provided here)\b",
    re.I,
)
_TELLS_THE_CONTENT = re.compile(
    r"[:\"“”«][ \n]*\S|\d[^.]{0,40}\d|\bby [A-Z]|\b(?:called|named|titled|entitled|known as|depicts|shows that"
    r"|contains|has)\b|\n|[?][ ]*\S|,[^,]*,"
)
_MAKES_MEDIA = re.compile(
    r"\b(?:html|css|markdown|code|program|script|python|javascript|java|c\+\+|function|algorithm|query|alt text"
    r"|prompt|how to"
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
            return f"the input is only a link: {shown(given)}"
        if ABOUT_TAGS.search(instruction) or _MAKES_MEDIA.search(instruction):
            return None
        if _EMBEDDED_IMAGE.fullmatch(given):
            return f"the input is only an image: {shown(given)}"
        if all(_PLACEHOLDER_MEDIA.fullmatch(line.strip()) for line in given.splitlines() if line.strip()):
            return f"the input is only a placeholder for media: {shown(given)}"
        return None
    lower = instruction.lower()
    if len(instruction) > 300 or not any(stem in lower for stem in _STEMS):
        return None
    points = _POINTS_AT_MEDIA.search(instruction)
    if points and not _MAKES_MEDIA.search(instruction) and not _TELLS_THE_CONTENT.search(instruction.rstrip(" :.\n")):
        return f"the instruction refers to something missing: {shown(points[0])}"
    return None
