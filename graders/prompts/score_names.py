"""What a score is called: which words before a number say that it is the score of this rubric.

Knows words of some twenty languages; nothing of numbers or lines. A name counts only if every word of it is known here:
"the accuracy score of the response" names the score, "the minimum score" and "clarity score" do not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

Name = Literal["own", "general", "total", "vague"]
"""own: the rubric's dimension; general: a score; total: a sum of several; vague: an answer, which may be the row's."""

_GENERAL = {
    *("score", "scores", "rating", "grade", "points", "grading", "scoring"),
    *("bewertung", "punktzahl", "wertung", "punkte", "gesamtpunktzahl", "gesamtbewertung"),
    *("puntuación", "puntuacion", "puntaje", "calificación", "calificacion", "nota", "valoración"),
    *("pontuação", "pontuacao", "avaliação", "classificação"),
    *("punteggio", "voto", "valutazione", "évaluation", "note"),
    *("оценка", "балл", "баллы", "рейтинг", "оцінка"),
    *("ocena", "punktacja", "hodnocení", "skóre", "betyg", "poäng", "beoordeling", "cijfer"),
    *("puan", "skor", "nilai", "điểm", "βαθμολογία", "ציון", "คะแนน"),
    *("التقييم", "الدرجة", "درجة", "النتيجة", "امتیاز", "नمره", "स्कोर", "अंक"),
    *("스코어", "점수", "평점", "평가", "총점"),
    *("pontszám", "értékelés", "pisteet", "arvosana", "karakter", "poengsum", "scor", "punctaj", "puntuació", "ocjena"),
    *("স্কোর", "மதிப்பெண்", "స్కోర్", "അങ്കം", "ქულა", "գնահատական", "baho", "alama", "hinne", "vērtējums", "įvertinimas"),
}
_TOTAL = {"overall", "total", "sum", "altogether"}
_VAGUE = {"answer", "result", "evaluation", "assessment", "verdict", "judgment", "judgement", "final", "level"}
_AROUND = {
    *("the", "my", "this", "that", "its", "of", "for", "to", "in", "so", "thus", "hence", "therefore"),
    *("response", "answer's", "output", "row", "pair", "final", "numeric", "numerical", "given", "assigned"),
    *(
        "suggested",
        "proposed",
        "resulting",
        "grounded",
        "awarded",
        "earned",
        "appropriate",
        "assistant's",
        "response's",
    ),
    *(
        "la",
        "le",
        "el",
        "die",
        "der",
        "das",
        "final",
        "finale",
        "globale",
        "gesamt",
        "итоговая",
        "общая",
        "моя",
        "최종",
    ),
}
_EAST = re.compile(
    r"(?:最终|最終|总\u4f53|總體|综合|綜合|整\u4f53|我的|"
    r"我给出的|该|回答|的|本)*"
    r"(?P<dimension>准确性|准确度|準確性|正確性|正確さ"
    r"|有用性|有帮助性|质量|品质|品質)?的?"
    r"(?P<score>评分|評分|分数|分數|得分|打分|总分|總分"
    r"|评分结果|スコア|評\u4fa1|得点|点数|评级)?"
    r"(?P<verb>是|为|為|は)?"
)
_EASTERN_SCORE = re.compile("评分|評分|分数|分數|得分|打分|总分|總分|スコア|評価|得点|点数|评级|점수|평점|평가|총점")
_EAST_DIMENSIONS = {
    "accuracy": ("准确性", "准确度", "準確性", "正確性", "正確さ"),
    "helpfulness": ("有用性", "有帮助性"),
    "quality": ("质量", "品质", "品質"),
}
_WORDS = re.compile(r"[^\W\d_]+(?:['\u2019][a-z]+)?")
_VERBS = {"is", "at", "of", "are", "est", "ist", "es", "\u00e8", "\u00e9"}
_MOST_WORDS = 9


@lru_cache(maxsize=4096)
def name_of(text: str, dimension: str, name: str) -> tuple[Name, str] | None:
    """What this text before a number names, and the verb at its end ("is", or ""); None where it names no score.

    `dimension` and `name` are the rubric's.
    """
    text = _letters(text)
    words = [word.replace("\u2019", "'") for word in _WORDS.findall(text)]
    words = _without_beginning(words)
    if not words or len(words) > _MOST_WORDS or re.search(r"[^\w\s'\u2019:=>.-]", text):
        return None
    verb = words.pop() if len(words) > 1 and words[-1] in _VERBS else ""
    if len(words) == 1 and not words[0].isascii() and (east := _EAST.fullmatch(words[0])):
        found = _eastern(east, dimension)
        return (found, verb or ("is" if east["verb"] else "")) if found else None
    own = _words_of(dimension) | (_words_of(name) if name != "rules" else set())
    kind = _kind(words, own)
    return (kind, verb) if kind else None


def mentions_score(text: str) -> bool:
    """Whether a text holds a word for a score, in any of the languages."""
    folded = _letters(text)
    return not _general().isdisjoint(_WORDS.findall(folded)) or bool(_EASTERN_SCORE.search(folded))


@lru_cache(maxsize=1)
def _general() -> frozenset[str]:
    return frozenset(map(_letters, _GENERAL))


def _letters(text: str) -> str:
    """The text in lower case without the marks that scripts set around a letter."""
    composed = unicodedata.normalize("NFC", text.casefold())
    if composed.isascii():
        return composed
    return "".join(sign for sign in composed if not unicodedata.category(sign).startswith("M"))


def _without_beginning(words: list[str]) -> list[str]:
    """Without "here is" and the article: "Score A" is no score."""
    for begins in (["here", "is"], ["here's"], ["here", "are"], ["a"], ["an"]):
        if words[: len(begins)] == begins:
            words = words[len(begins) :]
    return words


def _words_of(text: str) -> set[str]:
    return set(_WORDS.findall(_letters(text)))


def _kind(words: Sequence[str], own: set[str]) -> Name | None:
    general = _general()
    known = own | general | _TOTAL | _VAGUE | _AROUND
    if any(word not in known for word in words):
        return None
    if any(word in own for word in words):
        return "own"
    if "level" in words and any(word in general for word in words):
        return None  # a grade level is of a school
    if any(word in general for word in words):
        return "total" if any(word in _TOTAL for word in words) else "general"
    if "overall" in words:
        return "total"
    if any(word in _TOTAL for word in words):
        return "vague"
    if any(word in ("response", "output", "row", "pair") for word in words):
        return None  # what the row answers
    return "vague" if any(word in _VAGUE for word in words) else None


def _eastern(found: re.Match[str], dimension: str) -> Name | None:
    if found["dimension"]:
        return "own" if found["dimension"] in _EAST_DIMENSIONS.get(dimension, ()) else None
    return "general" if found["score"] else None
