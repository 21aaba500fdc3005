"""Grade on this machine with vLLM: `vllm:models/llama-3.1-8b`, or with a LoRA adapter `vllm:BASE+ADAPTER`.

MODEL is a Hugging Face folder with safetensors weights. Nothing is downloaded: a name such as `meta-llama/Llama-3.1-8B`
works only where the model lies in the local cache. Nothing leaves the machine, nothing is paid. An adapter that brings
a chat template with it is prompted with that.

The engine runs in a process of its own, so that nothing vLLM writes reaches the user's terminal, and an engine that
dies is started again while the rest lives:

    VLLM.answer -> blocks -> vllm_supervisor -> vllm_process
                                                   | socket
                                                vllm_worker -> transformers_prompts, vllm_jobs -> LLMEngine

A row is data. It is encoded with special tokens off, so the text "<|im_end|>" in a row is ten characters and ends
nothing; only the chat template's own text may hold special tokens. The fixed text stands first in every prompt, and
vLLM keeps it (prefix caching).

Scores from a GPU are not bit for bit the same in any company of rows: sums in bfloat16 depend on the batch.
Knows nothing of rubrics, datasets or files of results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from alpasift.graders import (
    CHOICE_LINE_TOKENS,
    BackendError,
    BackendKind,
    BackendUnavailable,
    Estimate,
    Meter,
    ModelSize,
    Replies,
    Request,
    only_by,
)
from alpasift.graders.local import vllm_device
from alpasift.graders.local.blocks import answer_in_blocks
from alpasift.graders.local.file_hash import sha256_of
from alpasift.graders.local.processor import core_count, cpu_name
from alpasift.graders.local.vllm_models import Adapter, Model, look_at_spec
from alpasift.graders.local.vllm_process import EngineProcess
from alpasift.graders.local.vllm_supervisor import SupervisedEngine
from alpasift.graders.local.work import free_estimate

SEQUENCES = {"cpu": 64, "cuda": 256}
"""Rows that the engine works on at once."""
HOTTEST = 2.0
"""Temperature that vLLM takes at most."""
_FIXED_SETTINGS = {
    "tokenizer_mode": "hf",
    "trust_remote_code": False,
    "seed": 0,
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "generation_config": "vllm",
    "runner": "generate",
    "logprobs_mode": "raw_logprobs",
}


def open(
    argument: str | None,
    *,
    tensor_parallel: int = 1,
    gpu_memory: float = 0.9,
    context: int | None = None,
    quantization: str | None = None,
) -> VLLM:
    """Open the model in the folder `argument`, or BASE+ADAPTER. The engine starts with the first answer, not here.

    tensor_parallel  cards that share the model
    gpu_memory       share of a card's memory that vLLM may take, above 0 up to 1
    context          tokens of a row and its answer at most; 4096, or what the model was trained on where that is less
    quantization     how vLLM is to quantize the weights, "fp8" for instance; None: as the folder says

    Raises BackendUnavailable when the package, a card or the folder is missing, BackendError when it cannot be used.
    """
    if not argument:
        raise BackendError("vllm needs a model folder: vllm:FOLDER, or vllm:BASE+ADAPTER with a LoRA adapter")
    if not 0 < gpu_memory <= 1:
        raise BackendError(f"--gpu-memory {gpu_memory:g}: must be above 0 and at most 1 (a share of the GPU's memory)")
    if tensor_parallel < 1:
        raise BackendError(f"--tensor-parallel {tensor_parallel}: must be 1 or more")
    model, adapter = look_at_spec(argument, context)
    device = vllm_device.device()
    if device == "cpu" and tensor_parallel > 1:
        raise BackendUnavailable(f"--tensor-parallel {tensor_parallel} needs GPUs; this vLLM is built for the CPU")
    if device == "cuda" and tensor_parallel > vllm_device.cards():
        raise BackendUnavailable(f"--tensor-parallel {tensor_parallel} needs as many GPUs; {vllm_device.cards_seen()}")
    return VLLM(model, adapter, device, tensor_parallel, gpu_memory, quantization)


def missing_requirements() -> str | None:
    """What this machine lacks, None when only a model has to be named."""
    try:
        vllm_device.device()
    except BackendUnavailable as error:
        return str(error)
    return None


class VLLM:
    """One model folder, looked at; its engine runs from the first answer to `close`."""

    paid = False
    leaves_machine = "nothing"

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        device: str,
        tensor_parallel: int,
        gpu_memory: float,
        quantization: str | None,
    ) -> None:
        self.name = f"vllm:{model.folder.name}" + (f"+{adapter.folder.name}" if adapter else "")
        dtype = "float32" if device == "cpu" else model.dtype
        cores = core_count()
        template = (adapter.template if adapter else "") or model.template
        self.fingerprint: Mapping[str, str] = {
            "files": sha256_of(model.files),
            "adapter": sha256_of(adapter.files) if adapter else "none",
            "dtype": dtype,
            "quantization": quantization or model.quantization,
            "max_model_len": str(model.context),
            "template": hashlib.sha256(template.encode()).hexdigest() if template else "plain",
        }
        self.facts: Mapping[str, str] = {
            "vllm": vllm_device.vllm_version(),
            "device": "cpu" if device == "cpu" else vllm_device.card_name(),
            "tensor_parallel": str(tensor_parallel),
            "gpu_memory": f"{gpu_memory:g}",
            "template": "the model's" if template else "plain",
            "machine": f"{cpu_name()}, {cores} cores"
            if device == "cpu"
            else f"{tensor_parallel} x {vllm_device.card_name()}",
            "spec": f"vllm:{model.folder.absolute()}" + (f"+{adapter.folder.absolute()}" if adapter else ""),
        }
        self.size = ModelSize(
            model.parameters,
            self.fingerprint["files"],
            self.facts["machine"],
            cores,
            0 if device == "cpu" else tensor_parallel,
        )
        self.remarks: tuple[str, ...] = ()
        if not template:
            self.remarks = (f"{model.folder.name} has no chat template: messages are sent as plain text",)
        settings: dict[str, Any] = {
            **_FIXED_SETTINGS,
            "model": str(model.folder),
            "dtype": dtype,
            "quantization": quantization,
            "max_model_len": model.context,
            "tensor_parallel_size": tensor_parallel,
            "gpu_memory_utilization": gpu_memory,
            "max_num_seqs": SEQUENCES[device],
            "enforce_eager": device == "cpu",
        }
        if adapter:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter.room}
        process = EngineProcess(settings, str(adapter.folder) if adapter else None, device)
        self.engine = SupervisedEngine(process, model.folder.name)

    def cannot(self, request: Request) -> str | None:
        if request.judged_from_row:
            return only_by(request)
        if request.temperature > HOTTEST:
            return f"vLLM samples at temperatures up to {HOTTEST:g}, not {request.temperature:g}"
        if request.explain == "before" and request.choices and request.max_tokens <= CHOICE_LINE_TOKENS:
            allowed = f"and {request.max_tokens} are allowed"
            return f"reasons before the score need more than {CHOICE_LINE_TOKENS} tokens, {allowed}"
        return None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Tokens by counting characters; no seconds, `size` tells what they depend on."""
        return free_estimate(requests, self.remarks)

    def answer(self, requests: Iterable[Request], meter: Meter) -> Replies:
        yield from answer_in_blocks(requests, meter, self.engine, self.facts)

    def close(self) -> None:
        self.engine.process.close()


def problem_with_model(argument: str | None) -> str | None:
    """Why the folder that an argument names cannot be opened here, None when it can. Looks at files only."""
    if not argument:
        return "has no model; write vllm:FOLDER"
    try:
        look_at_spec(argument)
    except BackendError as error:
        return str(error)
    return None


KIND = BackendKind(
    open=open,
    options=("tensor_parallel", "gpu_memory", "context", "quantization"),
    missing_requirements=missing_requirements,
    problem_with_model=problem_with_model,
)
