"""How likely tokens are to a model folder, through transformers: `TorchScorer`, a `passages.Scorer`.

On a CUDA card in bfloat16 where the model's folder does not say float32, else on the processor in float32. Passages of
like length are read together, padded on the right, which changes nothing for the tokens before the padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alpasift.graders import BackendError, BackendUnavailable
from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.model_folders import read_model_folder
from alpasift.graders.local.passages import Passage
from alpasift.graders.local.transformers_prompts import Prompts

CONTEXT = 4096
"""Tokens of a row at most; less where the model was trained on less."""
LOGITS = 2**27
"""Logits of one forward pass at most, unless a single passage has more: 512 MiB in float32."""


class TorchScorer:
    """The model in a folder. Raises ModelFilesError, BackendUnavailable, BackendError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        found = read_model_folder(path)
        try:
            torch: Any = import_module("torch")
            transformers: Any = import_module("transformers")
        except ImportError as error:
            raise BackendUnavailable(
                f"{path} is a model folder, which needs packages: pip install 'alpasift[train]'"
            ) from error
        self.path, self.torch, self.stopping = path, torch, False
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        named = found.config.get("dtype") or found.config.get("torch_dtype")
        dtype = "float32" if self.device == "cpu" or named == "float32" else "bfloat16"
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=getattr(torch, dtype),
            )
        except (OSError, ValueError, ImportError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise BackendError(f"{path} cannot be loaded by transformers: {reason}") from error
        self.model.to(self.device).eval()
        trained = getattr(self.model.config, "max_position_embeddings", None)
        self.context = min(trained, CONTEXT) if isinstance(trained, int) and trained > 0 else CONTEXT
        if found.chat_template:
            tokenizer.chat_template = found.chat_template
        self.prompts = Prompts(tokenizer, path, self.context)
        self.begin = self.prompts.begin
        self.template = found.chat_template
        self.fingerprint = {
            "files": sha256_of([path / "config.json", *found.weights]),
            "dtype": dtype,
            "n_ctx": str(self.context),
            "template": hashlib.sha256(self.template.encode()).hexdigest() if self.template else "plain",
        }
        self.facts = {
            "torch": version("torch"),
            "transformers": version("transformers"),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
        }

    def encode(self, text: str, *, within: bool) -> list[int]:
        return self.prompts.encode(text, False, within)

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return self.prompts.chat(messages)

    def logprobs(self, passages: Sequence[Passage]) -> list[list[float] | str]:
        self.stopping = False
        found: dict[int, list[float] | str] = {}
        most = max(1, LOGITS // int(self.model.config.vocab_size))
        group: list[int] = []
        for place in sorted(range(len(passages)), key=lambda at: len(passages[at].tokens)):
            if group and (len(group) + 1) * len(passages[place].tokens) > most:
                found |= self._together(group, passages)
                group = []
            group.append(place)
        found |= self._together(group, passages)
        return [found[place] for place in range(len(passages))]

    def _together(self, group: Sequence[int], passages: Sequence[Passage]) -> dict[int, list[float] | str]:
        if self.stopping:
            return dict.fromkeys(group, "backend_error: stopped")
        torch, width = self.torch, max((len(passages[place].tokens) for place in group), default=0)
        ids = torch.zeros((len(group), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(group):
            tokens = torch.tensor(list(passages[place].tokens))
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        found: dict[int, list[float] | str] = {}
        try:
            with torch.inference_mode():
                logits = self.model(ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False).logits
                for row, place in enumerate(group):
                    start, end = passages[place].start, len(passages[place].tokens)
                    here = logits[row, start - 1 : end - 1].float()  # (answer's tokens, vocabulary)
                    chosen = here.gather(1, ids[row, start:end, None].to(self.device))[:, 0]
                    found[place] = (chosen - here.logsumexp(1)).tolist()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(group) == 1:
                return dict.fromkeys(group, "backend_error: the card has no memory for this row")
            half = len(group) // 2
            return self._together(group[:half], passages) | self._together(group[half:], passages)
        return found

    def stop(self) -> None:
        self.stopping = True

    def close(self) -> None:
        del self.model
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
