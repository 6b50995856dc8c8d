"""What the schema can say but this version cannot do, each with its reason, in one place.

Nothing is accepted and silently ignored: what cannot work is refused at resolution, and a setting
of another device is named in a warning once the device is known. When a feature lands, its row
goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atom.config.schema import Config
from atom.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Refusal:
    """`setting` is refused where `applies`, for `reason`; with `device`, it has no effect there."""

    setting: str
    applies: Callable[[Config], bool]
    reason: str
    device: str = ""


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "data_parallel_size",
        lambda c: c.parallel.data_parallel_size > 1,
        "data parallelism is not in this version; start one server per copy",
    ),
    Refusal(
        "pipeline_parallel_size",
        lambda c: c.parallel.pipeline_parallel_size > 1,
        "pipeline parallelism is not in this version; use 1",
    ),
    Refusal(
        "enable_expert_parallel",
        lambda c: c.parallel.enable_expert_parallel,
        "expert parallelism is not in this version",
    ),
    Refusal(
        "master_addr",
        lambda c: c.parallel.master_addr != "127.0.0.1" and c.parallel.tensor_parallel_size == 1,
        "there is one rank, which meets nobody; it needs tensor_parallel_size > 1",
    ),
    Refusal(
        "master_port",
        lambda c: c.parallel.master_port != 0 and c.parallel.tensor_parallel_size == 1,
        "there is one rank, which meets nobody; it needs tensor_parallel_size > 1",
    ),
    Refusal(
        "rendezvous_timeout_s",
        lambda c: c.parallel.rendezvous_timeout_s != 120.0 and c.parallel.tensor_parallel_size == 1,
        "there is one rank, which meets nobody; it needs tensor_parallel_size > 1",
    ),
    Refusal(
        "mark_trace",
        lambda c: c.profile.mark_trace and c.profile.torch_profiler_dir is None,
        "without --torch-profiler-dir nothing is traced; name a directory there",
    ),
)

# Settings of one kind of device. A recipe is written for where it will run, and is checked and
# rehearsed elsewhere, so on the other device they are left aside with a warning.
WITHOUT_EFFECT: tuple[Refusal, ...] = (
    Refusal(
        "gpu_memory_utilization",
        lambda c: c.engine.gpu_memory_utilization != 0.9,
        "it shares out a GPU's memory and the model runs on cpu; use kv_cache_memory_gb",
        device="cpu",
    ),
    Refusal(
        "kv_cache_memory_gb",
        lambda c: c.engine.kv_cache_memory_gb is not None,
        "it is for cpu; on a GPU use gpu_memory_utilization or num_kvcache_blocks",
        device="cuda",
    ),
    Refusal(
        "num_threads",
        lambda c: c.engine.num_threads != 0,
        "it counts the CPU threads of a model on cpu",
        device="cuda",
    ),
    Refusal(
        "cudagraph_mode",
        lambda c: c.compile.cudagraph_mode not in (None, "none"),
        "graphs are captured on a GPU and the model runs on cpu",
        device="cpu",
    ),
    Refusal(
        "cudagraph_capture_sizes",
        lambda c: bool(c.compile.cudagraph_capture_sizes),
        "graphs are captured on a GPU and the model runs on cpu",
        device="cpu",
    ),
)

# Sections that recipes of the whole toolkit will hold.
LATER_SECTIONS: dict[str, str] = {
    "quantization": "quantised GGUF files are read as they are; other formats come later",
    "speculative": "speculative decoding comes later",
}

# Flags of ROCm/ATOM, vLLM and SGLang that people will type. Kebab-case, without the dashes.
_NO_SPECULATION = "speculative decoding is not in this version"
_NO_CODE = "code shipped in a checkpoint is never executed"
REFUSED_FLAGS: dict[str, str] = {
    "trust-remote-code": _NO_CODE + "; supported architectures need none of it",
    "method": _NO_SPECULATION,
    "num-speculative-tokens": _NO_SPECULATION,
    "draft-model": _NO_SPECULATION,
    "speculative-config": _NO_SPECULATION,
    "enable-dp-attention": "data parallel attention is not in this version",
    "enable-tbo": "two-batch overlap is not in this version",
    "all2all-backend": "expert parallelism is not in this version",
    "kv-transfer-config": "KV transfer between servers is not in this version",
    "quantization": "the checkpoint says how it is quantised; no other scheme is in this version",
    "online-quant-config": "online quantisation is not in this version",
    "hf-overrides": "edit the checkpoint's config.json instead",
    "enable-chunked-prefill": "prefill is always chunked; see --max-prefill-chunk",
    "server-port": "there is one HTTP port: --port",
    "swap-space": "preempted sequences are recomputed, nothing is swapped",
}
REFUSED_SHORT_FLAGS: dict[str, str] = {
    "-pcp": "context parallelism is not in this version",
    "-dcp": "context parallelism is not in this version",
}

# Variables of ROCm/ATOM that have no meaning here.
_FUSION = "kernels are chosen per operation when the model is built, see atom doctor; unset it"
REFUSED_ENVIRONMENT: dict[str, str] = {
    "ATOM_DP_RANK": "data parallelism is not in this version; unset it",
    "ATOM_DP_RANK_LOCAL": "data parallelism is not in this version; unset it",
    "ATOM_ENABLE_QK_NORM_ROPE_CACHE_QUANT_FUSION": _FUSION,
    "ATOM_USE_TRITON_GEMM": _FUSION,
    "ATOM_USE_TRITON_MXFP4_BMM": _FUSION,
    "ATOM_ENABLE_DS_INPUT_RMSNORM_QUANT_FUSION": _FUSION,
    "ATOM_ENABLE_DS_QKNORM_QUANT_FUSION": _FUSION,
    "ATOM_ENABLE_ALLREDUCE_RMSNORM_FUSION": _FUSION,
    "ATOM_LLAMA_ENABLE_AITER_TRITON_FUSED_RMSNORM_QUANT": _FUSION,
    "ATOM_LLAMA_ENABLE_AITER_TRITON_FUSED_SILU_MUL_QUANT": _FUSION,
}


def unsupported(config: Config) -> list[Refusal]:
    """The rows that refuse `config`."""
    return [row for row in REFUSALS if row.applies(config)]


def without_effect(config: Config, device: str) -> list[Refusal]:
    """The settings of `config` that do nothing on `device` ("cpu" or "cuda")."""
    return [row for row in WITHOUT_EFFECT if row.device == device and row.applies(config)]


def refuse_unsupported(config: Config, where: Callable[[str], str] = lambda name: name) -> None:
    """Raise `ConfigError` for the first setting that cannot work.

    `where` turns a setting's name into the subject of the message: what the user wrote.
    """
    for row in unsupported(config):
        raise ConfigError(f"{where(row.setting)} is refused: {row.reason}")
