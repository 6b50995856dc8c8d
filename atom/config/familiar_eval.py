"""lm-eval's flags that people type, or paste, from habit, in `atom eval`'s spelling.

Each means one of ours or is refused by name with the reason: none is accepted and ignored. Those
whose name is also ours (--num_fewshot, --limit, --gen_kwargs, ...) are not listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from atom.errors import ConfigError

# --model NAME, where it is a backend that speaks to a server, and what it says.
BACKENDS: dict[str, str] = {
    "local-completions": "--endpoint=completions",
    "openai-completions": "--endpoint=completions",
    "local-chat-completions": "--endpoint=chat",
    "openai-chat-completions": "--endpoint=chat",
}
LOCAL_BACKENDS = ("hf", "hf-auto", "huggingface", "vllm", "sglang", "vllm-vlm", "hf-multimodal")

# Keys of --model_args. Kebab-case; "" is our way in any case.
MODEL_ARGS: dict[str, str] = {
    "base-url": "base-url",
    "model": "model",
    "pretrained": "model",
    "num-concurrent": "concurrency",
    "max-retries": "max-retries",
    "batch-size": "batch-size",
    "timeout": "timeout-s",
    "verify-certificate": "verify-tls",
    "tokenizer": "tokenizer",
    "max-gen-toks": "max-gen-tokens",
    "header": "header",
    "eos-string": "",
    "tokenized-requests": "",
    "tokenizer-backend": "",
    "trust-remote-code": "",
    "seed": "",
}

# For the reference page: flag -> what it is here.
MEANINGS: dict[str, str] = {
    **{f"model {name}": f"`{flag}`" for name, flag in BACKENDS.items()},
    "model_args k=v,...": "the flags of these names: "
    + ", ".join(f"`--{ours}`" for ours in dict.fromkeys(MODEL_ARGS.values()) if ours)
    + "; how tokens are sent and special ones added is `atom eval`'s own affair",
    "batch_size auto": "the default of `--batch-size`",
    "log_samples": "always so: samples are kept in the history",
    "chat": "`--endpoint=chat`",
    "apply_chat_template NAME": "`--apply-chat-template`: the server's template, by any name",
}
_SAMPLES = "every sample is kept in the history; atom eval show reads them"
REFUSED: dict[str, str] = {
    "use-cache": "answers are kept as they come in; --resume goes on with them",
    "cache-requests": "prompts are built in seconds; --resume keeps the answers",
    "predict-only": "answers are always kept, beside their scores: atom eval show",
    "device": "the model stays behind a server: atom serve --device",
    "max-batch-size": "it is called --batch-size here",
    "config": "it is called --recipe here: a TOML file with a section [eval]",
    "samples": "--limit takes the first documents of a task",
    "check-integrity": "bundled data is checked whenever it is read",
    "write-out": _SAMPLES,
    "show-config": "--json prints every setting that the scores depend on",
    "verbosity": "--quiet leaves out the progress",
    "wandb-args": "results go to the history and to --output",
    "wandb-config-args": "results go to the history and to --output",
    "trackio-args": "results go to the history and to --output",
    "hf-hub-log-args": "results go to the history and to --output",
    "trust-remote-code": "no code of a data set or a model is executed",
    "confirm-run-unsafe-code": "answers of a model are never executed",
    "temperature": "it goes in --gen-kwargs temperature=0.6",
    "top-p": "it goes in --gen-kwargs top_p=0.95",
    "max-tokens": "it is called --max-gen-tokens here",
}


def translate(argv: Sequence[str]) -> list[str]:
    """A command line with lm-eval's spellings in ours; what is not known passes as it is."""
    words = list(argv)
    made: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*made, word, *words]
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-") if word.startswith("--") else ""
        if name in ("log-samples", "chat") and not equals:
            made += ["--endpoint=chat"] if name == "chat" else []
        elif name in ("apply-chat-template", "fewshot-as-multiturn") and equals:
            made.append(f"--{'no-' if value.lower() in ('false', '0') else ''}{name}")
        elif name in ("model", "model-args", "batch-size", "tasks", "gen-kwargs"):
            values = [value] if equals else _values(name, words)
            made += _meant(name, values) if values else [word]
        else:
            made.append(word)
    return made


def _values(name: str, words: list[str]) -> list[str]:
    """The values after a flag, taken from `words`; lm-eval lets some flags have several."""
    taken = words[:1]
    del words[:1]
    pattern = {"model-args": r"[\w-]+=.*", "gen-kwargs": r"[\w-]+=.*"}.get(name)
    while pattern and words and re.fullmatch(pattern, words[0], re.DOTALL):
        taken.append(words.pop(0))
    return taken


def _meant(name: str, values: list[str]) -> list[str]:
    first = values[0]
    if name == "model":
        if first in LOCAL_BACKENDS:
            raise ConfigError(
                f"--model {first}: the model stays behind a server: atom serve MODEL, then "
                "atom eval TASK, or atom eval TASK --recipe RECIPE"
            )
        return [BACKENDS.get(first, f"--model={first}")]
    if name == "model-args":
        return [flag for value in values for flag in _model_args(value)]
    if name == "batch-size":
        return [] if first.partition(":")[0] == "auto" else [f"--batch-size={first}"]
    return [f"--{name}={','.join(values)}"]


def _model_args(text: str) -> list[str]:
    """`base_url=http://host/v1/completions,num_concurrent=64`, or a JSON object, as flags."""
    if text.strip().startswith("{"):
        try:
            pairs = {str(key): str(value) for key, value in json.loads(text).items()}
        except (ValueError, AttributeError):
            raise ConfigError(f"--model-args {text}: not a JSON object") from None
    else:
        parts = (part.partition("=") for part in text.split(",") if part.strip())
        pairs = {key.strip(): value.strip() for key, _, value in parts}
    flags = []
    for key, value in pairs.items():
        ours = MODEL_ARGS.get(key.replace("_", "-"))
        if ours is None:
            known = ", ".join(sorted(MODEL_ARGS)).replace("-", "_")
            raise ConfigError(f"--model-args {key}: it has no meaning here; known are {known}")
        if ours == "base-url":
            value = re.sub(r"(/v1)?/(chat/)?completions/?$", "", value)
        if ours == "verify-tls":
            no = value.lower() in ("false", "0")
            flags.append("--no-verify-tls" if no else "--verify-tls")
        elif ours:
            flags.append(f"--{ours}={value}")
    return flags


def refusal(flag: str) -> str | None:
    """Why a flag (without dashes) is refused, or None."""
    return REFUSED.get(flag.replace("_", "-"))
