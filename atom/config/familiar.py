"""Flags of `vllm bench serve` and ROCm/ATOM's `benchmark_serving` that people type from habit.

Each is another spelling of one of ours, or is refused by name with the reason: none is accepted and
ignored. Those whose name is also ours are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Another spelling of ours. Kebab-case, without the dashes.
SPELLINGS: dict[str, str] = {
    "prefix-repetition-prefix-len": "prefix-len",
    "prefix-repetition-suffix-len": "input-len",
    "prefix-repetition-num-prefixes": "num-prefixes",
    "prefix-repetition-output-len": "output-len",
    "sonnet-input-len": "input-len",
    "sonnet-output-len": "output-len",
    "sonnet-prefix-len": "prefix-len",
    "sharegpt-output-len": "output-len",
    "custom-output-len": "output-len",
    "hf-output-len": "output-len",
    "random-num-prefixes": "num-prefixes",
    "max-in-flight": "max-concurrency",
    "requests": "num-prompts",
    "rate": "request-rate",
}

# A switch without a value that is one of ours.
SWITCHES: dict[str, str] = {
    "disable-tqdm": "--quiet",
    "insecure": "--no-verify-tls",
    "use-chat-template": "--endpoint=chat",
}

# A flag whose value chooses between ours.
VALUES: dict[str, dict[str, str]] = {
    "backend": {
        "vllm": "--endpoint=completions",
        "openai": "--endpoint=completions",
        "atom": "--endpoint=completions",
        "sglang": "--endpoint=completions",
        "sglang-oai": "--endpoint=completions",
        "lmdeploy": "--endpoint=completions",
        "scalellm": "--endpoint=completions",
        "llama.cpp": "--endpoint=completions",
        "openai-chat": "--endpoint=chat",
        "vllm-chat": "--endpoint=chat",
        "sglang-oai-chat": "--endpoint=chat",
    },
    "endpoint-type": {
        "openai": "--endpoint=completions",
        "vllm": "--endpoint=completions",
        "openai-chat": "--endpoint=chat",
        "chat": "--endpoint=chat",
        "completions": "--endpoint=completions",
    },
    "endpoint": {
        "/v1/completions": "--endpoint=completions",
        "/v1/chat/completions": "--endpoint=chat",
        "auto": "--endpoint=auto",
        "completions": "--endpoint=completions",
        "chat": "--endpoint=chat",
    },
}

# Flags that take several values after them, there; each is given its own flag. The pattern keeps
# a recipe that follows from being taken for a value.
SEVERAL: dict[str, str] = {
    "metadata": r"[^-=][^=]*=.*",
    "goodput": r"\w+:\d+(\.\d+)?",
    "header": r"[A-Za-z][\w-]*=.*",
}

_GREEDY = "greedy decoding with --temperature 0 is what is measured; sampling goes in --extra-body"
_NO_CODE = "no code of a model is ever executed; --tokenizer takes a tokenizer.json"
_RAMP = "a ramp is written --request-rate FROM:TO, or FROM:TO:exponential"
_BODY = "further fields of a request go in --extra-body '{\"...\": ...}'"
REFUSED: dict[str, str] = {
    "best-of": "OpenAI has withdrawn best_of; each request has one answer",
    "use-beam-search": "OpenAI's API has no beam search; a server's own goes in --extra-body",
    "trust-remote-code": _NO_CODE,
    "tokenizer-mode": _NO_CODE,
    "served-model-name": "--model is the name that the server knows; --tokenizer is a path",
    "lora-modules": "a LoRA is a model to the API: --model NAME, one run for each",
    "logprobs": _BODY,
    "top-p": _BODY,
    "top-k": _BODY,
    "min-p": _BODY,
    "frequency-penalty": _BODY,
    "presence-penalty": _BODY,
    "repetition-penalty": _BODY,
    "request-id-prefix": "requests are told apart by the result's own numbers; see --save-detailed",
    "no-stream": "times to a token are known of streams alone",
    "append-result": "the history keeps every run; atom bench export writes them together",
    "plot-timeline": "atom dashboard build draws the history",
    "plot-dataset-stats": "--dry-run prints the lengths",
    "num-warmup-requests": "it is called --warmup here",
    "no-oversample": "no prompt is ever sent twice in a repeat",
    "skip-min-tokens-check": "the lengths that came out are always reported",
    "disable-shuffle": "it is called --no-shuffle here",
    "random-batch-size": "a request has one prompt",
    "hf-split": "data sets are files here: --dataset jsonl:FILE; nothing is downloaded",
    "hf-subset": "data sets are files here: --dataset jsonl:FILE; nothing is downloaded",
    "hf-name": "data sets are files here: --dataset jsonl:FILE; nothing is downloaded",
    "blazedit-min-distance": "there is no blazedit data set; --dataset jsonl:FILE",
    "blazedit-max-distance": "there is no blazedit data set; --dataset jsonl:FILE",
    "spec-bench-output-len": "there is no spec-bench data set; --dataset jsonl:FILE",
    "spec-bench-category": "there is no spec-bench data set; --dataset jsonl:FILE",
    "ramp-up-strategy": _RAMP,
    "ramp-up-start-rps": _RAMP,
    "ramp-up-end-rps": _RAMP,
    "rate-type": "the load is --concurrency (closed loop) or --request-rate (open loop)",
    "target": "it is called --base-url here",
    "max-seconds": "it is called --duration here, in seconds",
    "max-requests": "it is called --num-prompts here",
    "flush-cache": "each repeat has prompts of its own, so no cache needs flushing",
    "apply-chat-template": "--endpoint chat applies the server's own template",
    "pd-separated": "profile the servers one by one with --profile",
    "profile-batch-size": "the server decides what a profile holds; --profile starts and stops it",
    "warmup-requests": "it is called --warmup here",
}


def translate(argv: Sequence[str]) -> list[str]:
    """A command line with habits' spellings in ours; what is not known passes as it is.

    A value of `VALUES` that is not known there passes too: the flag is then unknown and refused,
    or refused with its choices.
    """
    words = list(argv)
    made: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*made, word, *words]
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-") if word.startswith("--") else ""
        if name in SPELLINGS:
            made.append(f"--{SPELLINGS[name]}{equals}{value}")
        elif name in SWITCHES and not equals:
            made.append(SWITCHES[name])
        elif name in VALUES:
            value = value if equals or not words else words.pop(0)
            made.append(VALUES[name].get(value, f"--{name}={value}"))
        elif name in SEVERAL:
            made += [word] if equals or not words else [f"{word}={words.pop(0)}"]
            while words and re.fullmatch(SEVERAL[name], words[0]):
                made.append(f"--{name}={words.pop(0)}")
        else:
            made.append(word)
    return made


def refusal(flag: str, value: str = "") -> str | None:
    """Why a flag (without dashes) is refused, or None."""
    name = flag.replace("_", "-")
    if name in ("backend", "endpoint-type"):
        known = ", ".join(VALUES[name])
        said = f" {value}" if value else ""
        return (
            f"a server{said} is spoken to by OpenAI's API alone; --endpoint completions or chat "
            f"says which part (known here: {known})"
        )
    return REFUSED.get(name)
