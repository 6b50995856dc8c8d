"""Every setting of the house: name, type, default, limits and one sentence, declared once.

Recipe sections, command-line flags, environment variables, `atom recipe schema` and the
reference in `docs/` are all generated from these dataclasses. The tree is frozen;
`atom.config.resolve` makes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
    env: str | None = None,
    loose: bool = False,
) -> Any:
    """A field with its sentence and limits.

    `aliases` are further flag spellings, e.g. "-tp"; `env` is a further environment variable beside
    ATOM_<NAME>; `secret` values are shown as ***; a `loose` text may be a bare number in a recipe.
    """
    meta = {
        "doc": doc,
        "choices": choices,
        "ge": ge,
        "gt": gt,
        "le": le,
        "aliases": aliases,
        "secret": secret,
        "env": env,
        "loose": loose,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is read."""

    model: str | None = setting(
        None,
        "Hugging Face id, local directory or .gguf file; none: the embedded SmolLM2-135M-Instruct",
    )
    served_model_name: tuple[str, ...] = setting(
        (), "Names under which the API offers the model (default: the model's own)"
    )
    tokenizer: str | None = setting(None, "Where the tokenizer is read from (default: the model)")
    chat_template: str | None = setting(
        None, "A Jinja file that replaces the model's chat template"
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hugging Face id")
    dtype: str = setting(
        "auto",
        "Compute dtype; float32 computes with dequantised weights and is the reference mode",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    max_model_len: int | None = setting(
        None, "Longest prompt plus output, in tokens (default: the model's own limit)", ge=1
    )
    load_dummy: bool = setting(False, "Fill the weights at random instead of reading them")
    generation_config: str = setting(
        "auto",
        "Sampling defaults: auto = the model's generation config, none = OpenAI's defaults",
        choices=("auto", "none"),
    )
    seed: int = setting(0, "Seed of everything that is drawn without a request's own seed", ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """KV cache, device and stepping."""

    device: str = setting("auto", "Where the model runs", choices=("auto", "cpu", "cuda"))
    kv_cache_block_size: int | None = setting(
        None,
        "Tokens per KV block: 1 or a multiple of 16, on CPU also 2, 4 or 8 (default: 16; on CPU 4,"
        " so that more of a prefix is shared, unless num_kvcache_blocks counts the blocks)",
        ge=1,
        aliases=("--block-size",),
    )
    num_kvcache_blocks: int = setting(-1, "KV blocks; -1: sized from memory", ge=-1)
    kv_cache_dtype: str = setting(
        "auto",
        "KV cache type; auto: the compute dtype's best on this device",
        choices=("auto", "bf16", "fp8", "fp16", "fp32"),
    )
    kv_cache_memory_gb: float | None = setting(
        None, "Memory for the KV cache on CPU, in GiB (default: a share of what is free)", gt=0
    )
    gpu_memory_utilization: float = setting(
        0.9, "Share of a GPU's memory that weights, activations and KV cache may fill", gt=0, le=1
    )
    enable_prefix_caching: bool = setting(True, "Reuse the KV of equal prompt prefixes")
    overlap: bool | None = setting(
        None,
        "Launch a step before the last one's tokens are seen (default: on for GPUs, off on CPU)",
    )
    num_threads: int = setting(0, "CPU threads of the model; 0: one per physical core", ge=0)
    check_invariants: bool = setting(False, "Check the block manager's invariants when idle")

    @property
    def block_size(self) -> int:
        """Tokens per KV block; the runner's settled configuration holds what the device chose."""
        return self.kv_cache_block_size or 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs in a step."""

    policy: str = setting(
        "auto",
        "prefill_first: prompts first, in chunks; mixed: decodes first, chunks fill the step; "
        "throughput: prompts fill whole steps however long streams wait, else as mixed; "
        "auto: prefill_first in the server, throughput in LLM",
        choices=("auto", "prefill_first", "mixed", "throughput"),
    )
    max_num_batched_tokens: int = setting(16384, "Most tokens computed in one step", ge=1)
    max_num_seqs: int = setting(512, "Most sequences running at once", ge=1)
    max_prefill_chunk: int = setting(
        0,
        "Most prompt tokens of one step while streams are running; 0: chosen for the device, "
        "and the whole step under throughput",
        ge=0,
        aliases=("--long-prefill-token-threshold",),
    )
    scheduler_delay_factor: float = setting(
        0.0, "Hold a prompt back until it has waited this many times the last prompt step", ge=0
    )
    max_queued_requests: int = setting(
        -1,
        "Requests that may wait before the server answers 429; -1: four times max_num_seqs",
        ge=-1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileConfig:
    """Compilation and graphs."""

    level: int = setting(
        3, "0 eager, 1 torch.compile, 2 compiled once, 3 piecewise and graphs", ge=0, le=3
    )
    enforce_eager: bool = setting(
        False, "Neither compile nor capture: the same as level 0, no graphs"
    )
    cudagraph_mode: str | None = setting(
        None,
        "What is captured as graphs (default: full_and_piecewise at level 3 on one GPU, else none)",
        choices=("none", "piecewise", "full", "full_decode_only", "full_and_piecewise"),
    )
    cudagraph_capture_sizes: tuple[int, ...] = setting(
        (),
        "Sizes of decode steps that are captured, none above max_num_seqs (default: 1 to 8, 12, 24 "
        "and multiples of 16 up to 512)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """How the model is spread."""

    tensor_parallel_size: int = setting(1, "Ranks that share every layer", ge=1, aliases=("-tp",))
    data_parallel_size: int = setting(
        1, "Copies of the engine", ge=1, aliases=("-dp",), env="ATOM_DP_SIZE"
    )
    pipeline_parallel_size: int = setting(
        1, "Ranks that share the layers in sequence", ge=1, aliases=("-pp",)
    )
    enable_expert_parallel: bool = setting(False, "Spread whole experts instead of slices of each")
    master_addr: str = setting("127.0.0.1", "Address where ranks meet", env="ATOM_DP_MASTER_IP")
    master_port: int = setting(
        0, "Port where ranks meet; 0: a free one", ge=0, le=65535, env="ATOM_DP_MASTER_PORT"
    )
    rendezvous_timeout_s: float = setting(
        120.0, "How long ranks wait for each other, in seconds", gt=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP door."""

    host: str = setting("127.0.0.1", "Address to bind")
    port: int = setting(8000, "HTTP port", ge=0, le=65535)
    api_key: tuple[str, ...] = setting(
        (), "Keys that clients must present (ATOM_API_KEY: comma-separated)", secret=True
    )
    max_body_bytes: int = setting(16 * 2**20, "Largest request body", ge=1)
    max_header_bytes: int = setting(16 * 2**10, "Largest request head", ge=1024)
    max_n: int = setting(16, "Largest n", ge=1)
    max_prompts: int = setting(256, "Most prompts in one completion request", ge=1)
    max_stop: int = setting(16, "Most stop strings", ge=0)
    max_stop_bytes: int = setting(256, "Longest stop string, in bytes", ge=1)
    max_logprobs: int = setting(20, "Largest logprobs or top_logprobs", ge=0, le=20)
    max_logit_bias: int = setting(1024, "Most logit_bias entries", ge=0)
    max_request_seconds: float = setting(0.0, "Deadline of one request, in seconds; 0: none", ge=0)
    default_max_tokens: int = setting(
        0, "max_tokens of chat when the client gives none; 0: what the context holds", ge=0
    )
    drain_timeout_s: float = setting(30.0, "How long SIGTERM waits for running requests", ge=0)
    timeout_keep_alive_s: int = setting(
        75, "Idle seconds before a kept-alive connection closes", ge=1
    )
    cors_origins: tuple[str, ...] = setting((), "Origins allowed by CORS; none by default")
    access_log: bool = setting(False, "Log a line per request")
    log_level: str = setting(
        "info", "How much is logged", choices=("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """What POST /start_profile records."""

    torch_profiler_dir: str | None = setting(
        None, "Directory of the profiler's traces; without it the profiler is off"
    )
    profiler_more: bool = setting(
        False, "Record shapes, Python stacks and memory, too; slows the steps"
    )
    mark_trace: bool = setting(
        False,
        "Name the model's modules in traces, and write a trace of graph capture at the start, by "
        "which atom trace knows the kernels of replayed graphs",
    )
    profiler_max_seconds: float = setting(
        60.0, "A profile that nobody stopped ends after so many seconds; they fill memory", gt=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole tree."""

    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


SECTIONS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Config))
