"""Flags of other benchmarks: each means one of ours or is refused by name; none is ignored."""

from __future__ import annotations

import pytest
from cli_helpers import atom

from atom.config import familiar
from atom.config.fields import tool_settings
from atom.errors import AtomError

OURS = {s.flag[2:] for s in tool_settings("bench").values()}
LONG = OURS | {a[2:] for s in tool_settings("bench").values() for a in s.aliases if a[:2] == "--"}

# What the two programs take, by their own help; each must have a meaning here, or a reason.
UPSTREAM = """backend base-url host port endpoint dataset-name dataset-path max-concurrency model
tokenizer best-of use-beam-search num-prompts logprobs request-rate burstiness seed
trust-remote-code disable-tqdm profile save-result save-detailed metadata result-dir result-filename
ignore-eos percentile-metrics metric-percentiles goodput random-input-len random-output-len
random-range-ratio random-prefix-len use-chat-template tokenizer-mode served-model-name lora-modules
num-warmups"""
VLLM = """endpoint-type header label num-warmups append-result ready-check-timeout-sec extra-body
ramp-up-strategy ramp-up-start-rps ramp-up-end-rps top-p top-k min-p temperature frequency-penalty
presence-penalty repetition-penalty insecure plot-timeline sharegpt-output-len custom-output-len
sonnet-input-len sonnet-output-len sonnet-prefix-len hf-split hf-subset hf-output-len
prefix-repetition-prefix-len prefix-repetition-suffix-len prefix-repetition-num-prefixes
prefix-repetition-output-len no-stream no-oversample disable-shuffle skip-min-tokens-check
random-batch-size request-id-prefix"""


@pytest.mark.parametrize("flag", sorted({*UPSTREAM.split(), *VLLM.split()}))
def test_each_flag_of_theirs_has_a_meaning_or_a_reason(flag: str) -> None:
    translated = {*familiar.SPELLINGS, *familiar.SWITCHES, *familiar.VALUES}
    known = flag in LONG or flag in translated
    assert known != (flag in familiar.REFUSED), flag


def test_the_tables_point_at_flags_that_exist_and_shadow_none() -> None:
    assert set(familiar.SPELLINGS.values()) <= OURS
    values = [t for table in familiar.VALUES.values() for t in table.values()]
    for text in [*familiar.SWITCHES.values(), *values]:
        name = text[2:].partition("=")[0].removeprefix("no-")
        assert name in OURS | {"quiet"}, text
    assert not set(familiar.REFUSED) & LONG
    assert not set(familiar.SPELLINGS) & LONG
    assert set(familiar.SEVERAL) <= OURS


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        (["--backend", "openai-chat"], ["--endpoint=chat"]),
        (["--backend=vllm", "-n", "3"], ["--endpoint=completions", "-n", "3"]),
        (["--endpoint", "/v1/chat/completions"], ["--endpoint=chat"]),
        (["--endpoint", "chat"], ["--endpoint=chat"]),
        (["--endpoint", "other"], ["--endpoint=other"]),
        (["--disable-tqdm"], ["--quiet"]),
        (["--sonnet_input_len", "5"], ["--input-len", "5"]),
        (["--metadata", "a=b", "c=d", "r.toml"], ["--metadata=a=b", "--metadata=c=d", "r.toml"]),
        (["--metadata=a=b", "c=d"], ["--metadata=a=b", "--metadata=c=d"]),
        (
            ["--goodput", "ttft:5", "tpot:5.5", "-q"],
            ["--goodput=ttft:5", "--goodput=tpot:5.5", "-q"],
        ),
        (["--goodput"], ["--goodput"]),
        (["--", "--backend", "vllm"], ["--", "--backend", "vllm"]),
        (["r.toml", "--seed", "1"], ["r.toml", "--seed", "1"]),
    ],
)
def test_translation(typed: list[str], means: list[str]) -> None:
    assert familiar.translate(typed) == means


@pytest.mark.parametrize("flag", sorted(familiar.REFUSED))
def test_a_refused_flag_is_one_line_with_its_reason(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = atom(capsys, "bench", f"--{flag}", "1")
    assert (ran.code, ran.out) == (AtomError.exit_code, "")
    assert ran.err == f"atom: error: --{flag} is refused: {familiar.REFUSED[flag]}\n"


def test_an_unknown_backend_is_told_which_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "bench", "--backend", "tgi")
    assert ran.code == 2
    assert "--backend is refused" in ran.err
    assert "openai-chat" in ran.err
