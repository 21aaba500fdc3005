"""From a request to tokens by a transformers tokenizer: chat template, row text with special tokens off, choices.

Needs a transformers tokenizer; knows nothing of vLLM's engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from alpasift.graders import CHOICE_LINE_TOKENS, Request
from alpasift.graders.local.chat import Layout, layout_of
from alpasift.graders.local.choices import Node, trie_of
from alpasift.graders.local.row_text import TokenNames

NEWLINES = 48
"""Tokens beginning with a newline that are looked at; those of lowest number are the usual ones."""


class Prompts:
    """The prompts of one tokenizer, in a context of so many tokens. `ends` are the tokens that end a choice."""

    def __init__(self, tokenizer: Any, folder: Path, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        added = tokenizer.added_tokens_decoder.values()  # the special ones are left off by the tokenizer itself
        self._names = TokenNames(token.content for token in added if not token.special)
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._tries: dict[tuple[tuple[str, ...], str], Node] = {}
        self._encode_again = lru_cache(maxsize=256)(self.encode)  # the fixed texts stay in it, as they come every time
        alone = tokenizer.convert_ids_to_tokens(self.encode("a", False))
        self._blank = bool(alone) and str(alone[0]).startswith("\u2581")  # it puts a blank in front of a text (Llama 2)
        bare, whole = self.encode("a", False), tokenizer.encode("a")
        self.begin: list[int] = whole[:1] if len(whole) > len(bare) and whole[1 : len(bare) + 1] == bare else []
        self.ends = self._ends(folder)

    def prompt(self, request: Request) -> tuple[list[int] | str, str]:
        """The request's tokens or why there are none ("too_long: ..."), and the template's last text."""
        room = choice_tokens(request) if request.choices else 0
        limit = room if request.choices and request.explain == "no" else request.max_tokens + room
        if request.choices and request.explain == "before":
            limit = max(request.max_tokens - CHOICE_LINE_TOKENS, 1) + CHOICE_LINE_TOKENS + room
        size = sum(len(text) for _, text in request.messages)
        if size > 64 * self.context:  # no need to encode it
            return f"too_long: {size} characters, and the context is {self.context} tokens", ""
        layout = self._layout(tuple(role for role, _ in request.messages))
        tokens = self.chat(request.messages)
        if len(tokens) + limit > self.context:
            return f"too_long: {len(tokens) + limit} tokens, and the context is {self.context}", ""
        return tokens, str(layout[-1])

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """(role, text) messages in the chat template, up to where the answer begins; BOS first if it has one."""
        tokens: list[int] = []
        for i, piece in enumerate(self._layout(tuple(role for role, _ in messages))):
            if isinstance(piece, str):
                tokens += self._encode_again(piece, True, i > 0)
            elif messages[piece][0] == "system":
                tokens += self._encode_again(messages[piece][1], False, i > 0)
            else:
                tokens += self.encode(messages[piece][1], False, i > 0)
        return self.begin + tokens if self.begin and tokens[:1] != self.begin else tokens

    def problem_with_fixed_text(self, request: Request) -> str | None:
        """Why not even the fixed text of requests like this one fits the context, None when it does."""
        *fixed, (role, _) = request.messages
        prompt, _ = self.prompt(replace(request, messages=(*fixed, (role, ""))))
        if not isinstance(prompt, str):
            return None
        size = re.search(r"\d+", prompt)
        return (
            f"the rubric's fixed text and its answer take {size[0] if size else 'more'} tokens and the context holds "
            f"{self.context}; raise --context, choose a model with a longer one, or shorten the rubric"
        )

    def encode(self, text: str, special: bool, within: bool = False) -> list[int]:
        """Token ids of a text. `within`: other text goes before it, so no blank is put in front (Llama 2).

        With `special` off no name of an added token in the text becomes that token, be it called special or not.
        """
        if not special and len(parts := self._names.split(text)) > 1:
            return [token for i, part in enumerate(parts) for token in self._encode(part, False, within or i > 0)]
        return self._encode(text, special, within)

    def _encode(self, text: str, special: bool, within: bool) -> list[int]:
        if within and self._blank:  # the blank then stands in front of a newline, and both are cut off again
            return self._encode("\n" + text, special, False)[len(self._encode("\n", False, False)) :]
        text = text.encode("utf-8", "replace").decode()
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)
        return tokens

    def trie(self, choices: tuple[str, ...], tail: str) -> Node:
        """The choices as they are encoded after the prompt's last text, `tail`."""
        if (choices, tail) not in self._tries:
            before = self.encode(tail, True, True)
            encoded = {}
            for choice in choices:
                joined = self.encode(tail + choice, True, True)
                fits = joined[: len(before)] == before
                encoded[choice] = joined[len(before) :] if fits else self.encode(choice, False, True)
            self._tries[choices, tail] = trie_of(encoded)
        return self._tries[choices, tail]

    def _ends(self, folder: Path) -> list[int]:
        """The tokens that end a choice: those that begin with a newline, and those of end of text."""
        ends = [self.tokenizer.eos_token_id]
        path = folder / "generation_config.json"
        if path.exists():
            more = json.loads(path.read_text("utf-8")).get("eos_token_id")
            ends += more if isinstance(more, list) else [more]
        byte_level = any("Ċ" in str(token) for token in self.tokenizer.convert_ids_to_tokens(self.encode("\n", False)))
        begins = ("Ċ",) if byte_level else ("\n", "<0x0A>")
        newlines = sorted(number for token, number in self.tokenizer.get_vocab().items() if token.startswith(begins))
        return list(dict.fromkeys(e for e in [*newlines[:NEWLINES], *ends] if e is not None))

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        """The template for messages of these roles: its own texts, and the numbers of the messages between them."""
        if roles not in self._layouts:
            self._layouts[roles] = layout_of(roles, self._render)
        return self._layouts[roles]

    def _render(self, messages: list[tuple[str, str]]) -> str:
        """The model's template around the messages; "" where there is none or it refuses."""
        if not self.tokenizer.chat_template:
            return ""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": text} for role, text in messages],
                    tokenize=False,
                    add_generation_prompt=True,
                    enable_thinking=False,
                    # a template that prints the date must not change the answers
                    strftime_now=lambda _: "26 Jul 2024",
                    date_string="26 Jul 2024",
                )
            )
        except Exception:  # noqa: BLE001  a template is a program from the folder: whatever it raises, it is of no use
            return ""


def choice_tokens(request: Request) -> int:
    """Tokens that any choice can take, however it is cut, and one that ends it."""
    return max(len(choice.encode()) for choice in request.choices or ("",)) + 1
