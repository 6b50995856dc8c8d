"""Every setting of `atom bench`: section [bench] of a recipe, ATOM_BENCH_* variables, flags.

Declared like the server's (`atom.config.schema`) and resolved by the same rules, in a tree of its
own, because a benchmark has a model, a seed and a key too. The groups are for the help only. What
the texts mean (`1-16*2`, `ttft_p99=500ms`) is read by `atom.bench.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.config.place import ServerPlace
from atom.config.schema import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchServer(ServerPlace):
    """The server, and how it is spoken to."""

    host: str | None = setting(None, "Its address, instead of --base-url")
    port: int | None = setting(None, "Its port, instead of --base-url", ge=1, le=65535)
    endpoint: str = setting(
        "auto",
        "Which API; auto: completions for token counts and traces, chat for conversations",
        choices=("auto", "completions", "chat"),
    )
    extra_body: str | None = setting(None, "JSON object merged into every request's body")
    ignore_eos: bool | None = setting(
        None,
        "Answers run to their full length (default: on where the length is asked for, off for "
        "data sets whose answers end by themselves)",
    )
    temperature: float = setting(0.0, "Always sent", ge=0)
    continuous_usage: bool = setting(
        True, "Ask for token counts in every chunk, where the server can"
    )
    tokenizer: str | None = setting(
        None, "A tokenizer.json or its directory, to count tokens with (default: ask the server)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLoad:
    """How requests are sent. A list or range makes a sweep."""

    concurrency: tuple[str, ...] = setting(
        (),
        "Closed loop: requests in flight; 8, 1,2,4, 1-8, 1-16*2 or 8-64+8 (default: 16)",
        loose=True,
        aliases=("-c",),
    )
    request_rate: tuple[str, ...] = setting(
        (),
        "Open loop: requests per second; 4, 1,2,4, 1-16*2, inf (all at once), or a ramp 2:20 "
        "or 2:20:exponential",
        loose=True,
        aliases=("-r",),
    )
    max_concurrency: int | None = setting(
        None,
        "With --request-rate: the most in flight (the wait is recorded); alone: --concurrency",
        ge=1,
    )
    burstiness: float = setting(
        1.0, "Shape of the gamma distributed gaps: 1 Poisson, below 1 burstier", gt=0
    )
    arrival: str = setting("poisson", "Gaps of the open loop", choices=("poisson", "constant"))
    num_prompts: int | None = setting(
        None,
        "Requests of one repeat (default: 5 per place, 20 s of arrivals, at least 16)",
        ge=1,
        aliases=("--num-requests", "-n"),
    )
    duration: float | None = setting(
        None, "Seconds of one repeat, instead of a number of requests", gt=0
    )
    warmup: int | None = setting(
        None,
        "Requests before the first repeat of each point, of other prompts (default: one per "
        "place, at most 32)",
        ge=0,
        aliases=("--num-warmups",),
    )
    seed: int | None = setting(
        None,
        "Of prompts and arrivals (default: drawn and recorded, so that a server's prefix cache "
        "has not seen the prompts)",
        ge=0,
    )
    workers: int | None = setting(
        None, "Client processes (default: as many as are needed)", ge=1, le=64
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchWorkload:
    """What is sent."""

    dataset: str = setting(
        "random",
        "random, prefix-repetition, multi-turn; mt_bench, vicuna, self_instruct, sonnet; "
        "sharegpt:FILE, jsonl:FILE, trace:FILE",
        aliases=("--dataset-name",),
    )
    dataset_path: str | None = setting(None, "File of the data set, if it is not said there")
    input_len: int | None = setting(
        None,
        "Tokens of a synthetic prompt, beside its shared prefix (default: 1024)",
        ge=1,
        aliases=("--random-input-len",),
    )
    output_len: int | None = setting(
        None,
        "Tokens of an answer, at most (default: what the data set says, else 128)",
        ge=1,
        aliases=("--random-output-len",),
    )
    range_ratio: float | None = setting(
        None,
        "Spread of both lengths; its meaning is --length-convention (default: exact lengths)",
        ge=0,
        le=1,
        aliases=("--random-range-ratio",),
    )
    length_convention: str | None = setting(
        None,
        "What the spread R means for a length L: vllm L(1-R) to L(1+R), inferencex LR to L, "
        "sglang max(1, LR) to L",
        choices=("vllm", "inferencex", "sglang"),
    )
    prefix_len: int = setting(
        0, "Tokens that prompts share at their beginning", ge=0, aliases=("--random-prefix-len",)
    )
    num_prefixes: int = setting(1, "How many such beginnings there are", ge=1)
    prompt_form: str | None = setting(
        None,
        "How the completions API is given a synthetic prompt (default: ids where they are known)",
        choices=("ids", "text"),
    )
    turns: int | None = setting(
        None,
        "Requests of a conversation; of a file's, at most so many (default: 4 for multi-turn, "
        "else 1)",
        ge=1,
    )
    turns_max: int | None = setting(
        None, "multi-turn: between --turns and this many requests (default: --turns)", ge=1
    )
    think_time_s: float = setting(0.0, "Wait between an answer and the next turn", ge=0)
    think_time: str = setting(
        "constant", "Distribution of that wait", choices=("constant", "exponential")
    )
    time_scale: float = setting(
        1.0, "Trace: its times are multiplied by this; 0.5 replays it twice as fast", gt=0
    )
    block_size: int = setting(512, "Trace: tokens that one of Mooncake's hash ids stands for", ge=1)
    shuffle: bool | None = setting(
        None, "Order of a file's rows by seed (default: on, but for jsonl and trace)"
    )
    too_long: str = setting(
        "skip",
        "A file's rows that do not fit into the context: left out, cut, or refused",
        choices=("skip", "clip", "error"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchStatistics:
    """How often, and what is reported."""

    repeats: int = setting(5, "Repeats of each point; each has prompts of its own", ge=1, le=1000)
    precision: str | None = setting(
        None,
        "Repeat until the confidence interval of output throughput and of median TTFT and TPOT is "
        "this narrow, e.g. 2%",
        loose=True,
    )
    max_repeats: int = setting(20, "The most repeats under --precision", ge=2, le=1000)
    percentile_metrics: tuple[str, ...] = setting(
        ("ttft", "tpot", "itl", "e2el"),
        "Latencies of the result file's flat fields",
        choices=("ttft", "tpot", "itl", "e2el"),
    )
    metric_percentiles: tuple[float, ...] = setting((90.0, 95.0, 99.0), "Percentiles of each")
    max_error_rate: float = setting(
        0.01, "Share of failed requests above which the exit code is 5", ge=0, le=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchObjectives:
    """What must hold."""

    slo: str | None = setting(
        None, "Objectives, e.g. ttft_p99=500ms,tpot_p99=50ms; a miss is exit code 3"
    )
    goodput: tuple[str, ...] = setting(
        (), "Limits of a single request in ms, e.g. ttft:500,tpot:50 (default: those of --slo)"
    )
    find_max: bool = setting(
        False,
        "Search the highest concurrency that meets --slo (with --request-rate LOW-HIGH: the "
        "highest rate)",
    )
    max_runs: int = setting(10, "The most points --find-max may measure", ge=3, le=100)
    gate: bool | None = setting(
        None,
        "Compare with the last runs of the same fingerprint; a confirmed regression is exit code "
        "3 (default: where the history holds four)",
    )
    profile: bool = setting(
        False,
        "One more pass of one request per place under the server's profiler; its figures do not "
        "count",
    )
    auto_profile: bool = setting(
        False, "On a regression add such a pass and keep the trace with the run"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOutput:
    """What is kept, beside the history."""

    label: str | None = setting(None, "A name for these runs, for people")
    metadata: tuple[str, ...] = setting((), "KEY=VALUE kept with the result")
    save_detailed: bool = setting(
        False, "Keep every request's times and its text, and write them to the result file"
    )
    save_result: bool = setting(
        False,
        "Write a result file in the format of benchmark_serving (implied by its name or directory)",
    )
    result_dir: str | None = setting(None, "Directory of result files (default: here)")
    result_filename: str | None = setting(
        None, "Name of the result file (default: SERVER-LOAD-MODEL-TIME.json)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """The serving benchmark, `atom bench`. The server ignores it."""

    server: BenchServer = field(default_factory=BenchServer)
    load: BenchLoad = field(default_factory=BenchLoad)
    workload: BenchWorkload = field(default_factory=BenchWorkload)
    statistics: BenchStatistics = field(default_factory=BenchStatistics)
    objectives: BenchObjectives = field(default_factory=BenchObjectives)
    output: BenchOutput = field(default_factory=BenchOutput)
