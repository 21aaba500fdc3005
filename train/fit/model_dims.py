"""The dimensions of a model, read from its config.json or from one of the presets in this package.

Call `read_dims`. Parameter counts are exact for models of Llama's kind: llama, mistral, qwen2 and others with the same
keys (checked against transformers on the meta device). Opens no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from alpasift.train.artifacts import TrainError

PRESETS = (
    "llama-7b",
    "llama-13b",
    "llama-2-7b",
    "llama-2-13b",
    "llama-3.1-8b",
    "mistral-7b",
    "qwen2.5-7b",
    "qwen2.5-14b",
)
_TARGETS = {
    "q_proj": "hq",
    "k_proj": "hk",
    "v_proj": "hk",
    "o_proj": "qh",
    "gate_proj": "hi",
    "up_proj": "hi",
    "down_proj": "ih",
}
"""Input and output size of each linear layer: h hidden, q heads x head size, k kv heads x head size, i intermediate."""
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class ModelDims:
    """The dimensions of a decoder of Llama's kind.

    tied        the head shares the embedding's weights
    biases      all bias parameters of the model together
    head_norms  queries and keys have a norm of their own, as in qwen3
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    tied: bool = False
    biases: int = 0
    head_norms: bool = False

    @property
    def q(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Weights of the matrices that NF4 quantises."""
        return self.layers * self.hidden * (2 * self.q + 2 * self.kv + 3 * self.intermediate)

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        return 0 if self.tied else self.embedding

    @property
    def norms(self) -> int:
        return (2 * self.layers + 1) * self.hidden + (2 * self.head_dim * self.layers if self.head_norms else 0)

    @property
    def parameters(self) -> int:
        return self.linear + self.embedding + self.head + self.norms + self.biases

    @property
    def digest(self) -> str:
        """The same for models with equal dimensions, whatever their names: they share measurements. Stored on disk."""
        sizes = {key: value for key, value in asdict(self).items() if key not in ("name", "max_positions")}
        return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16]

    def adapters(self, rank: int, targets: str | Sequence[str] = "all-linear") -> int:
        """Parameters of LoRA at this rank, on "all-linear" or on named layers (q_proj, v_proj). Raises TrainError."""
        named = (targets,) if isinstance(targets, str) else tuple(targets)
        names = tuple(_TARGETS) if targets == "all-linear" else named
        unknown = sorted(set(names) - set(_TARGETS))
        if unknown or not names:
            raise TrainError(
                f"unknown LoRA target {unknown[0] if unknown else ''!r}; choose from all-linear, {', '.join(_TARGETS)}"
            )
        size = {"h": self.hidden, "q": self.q, "k": self.kv, "i": self.intermediate}
        return rank * self.layers * sum(size[side] for name in names for side in _TARGETS[name])


def read_dims(model: str | Path) -> ModelDims:
    """The dimensions of a preset by name, or of a folder with a config.json. Raises TrainError."""
    if str(model) in PRESETS:
        text = (resources.files("alpasift.train.fit") / "presets" / f"{model}.json").read_text("utf-8")
        return dims_from_config(json.loads(text), str(model))
    path = Path(model)
    file = path / "config.json" if path.is_dir() else path
    if file.name != "config.json" or not file.is_file():
        problem = f"{path} has no config.json" if path.is_dir() else f"model folder not found: {model}"
        raise TrainError(f"{problem}; give a folder with a config.json, or one of {', '.join(PRESETS)}")
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise TrainError(f"{file} is not a JSON object")
    return dims_from_config(config, path.absolute().name if path.is_dir() else path.absolute().parent.name)


def dims_from_config(config: Mapping[str, Any], name: str = "the model") -> ModelDims:
    """The dimensions in a config.json. Raises TrainError that names what is missing or not covered by the formulas."""
    kind = str(config.get("model_type", ""))
    given = _checked(config, kind, name)
    hidden, heads, kv_heads = given["hidden_size"], given["num_attention_heads"], given["num_key_value_heads"]
    layers, intermediate = given["num_hidden_layers"], given["intermediate_size"]
    head_dim = int(config.get("head_dim") or hidden // heads)
    q, kv = heads * head_dim, kv_heads * head_dim
    biases = 0
    if config.get("attention_bias", kind == "qwen2"):
        biases += q + 2 * kv + (0 if kind == "qwen2" else hidden)
    if config.get("mlp_bias"):
        biases += 2 * intermediate + hidden
    return ModelDims(
        name,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        given["vocab_size"],
        max_positions=int(config.get("max_position_embeddings") or 2048),
        tied=bool(config.get("tie_word_embeddings", False)),
        biases=biases * layers,
        head_norms=kind == "qwen3",
    )


def _checked(config: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """The config with num_key_value_heads filled in. Raises TrainError for values the formulas cannot use."""
    experts = next((key for key in _EXPERTS if config.get(key)), None)
    if experts:
        raise TrainError(
            f"{name} is a mixture of experts ({experts} {config[experts]}), which the forecast does not support"
        )
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise TrainError(
            f"the config of {name}{f', a {kind},' if kind else ''} has no {', '.join(missing)}; the forecast supports "
            "Llama-like models: llama, mistral, qwen2 and others with the same keys"
        )
    given = {**config, "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"]}
    wrong = [key for key in (*_NEEDED, "num_key_value_heads") if type(given[key]) is not int or given[key] < 1]
    if wrong:
        raise TrainError(f"the config of {name} has {wrong[0]} {given[wrong[0]]!r}; it must be a whole number above 0")
    return given
