"""What was asked of `atom eval`: recipe, variables and flags, lm-eval's command line, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atom.config import familiar_eval, resolve, resolve_tool
from atom.config.fields import table_settings, tool_settings
from atom.config.json_schema import json_schema
from atom.config.reference import pages
from atom.errors import AtomError, ConfigError
from atom.eval.settings import Expectation, Settings, read

RECIPE = """
[eval]
concurrency = 4
limit = 50
[eval.gsm8k]
threshold = 0.4
baseline = 0.41
metric = "exact_match,flexible-extract"
num_fewshot = 3
gen_kwargs = "temperature=0.6,top_p=0.9"
[eval."arc_easy"]
[bench]
repeats = 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def settings(path: Path | None = None, *tasks: str, **flags: Any) -> Settings:
    return read(resolve_tool("eval", path, {}, flags), tasks)


def test_a_recipe_names_its_tasks_and_what_it_expects(recipe: Path) -> None:
    found = settings(recipe)
    assert found.require_tasks() == ("gsm8k", "arc_easy")
    assert found.config.server.concurrency == 4
    assert found.limit == 50
    assert found.per_task["gsm8k"].num_fewshot == 3
    assert found.per_task["gsm8k"].gen_kwargs == {"temperature": 0.6, "top_p": 0.9}
    assert found.per_task["arc_easy"].num_fewshot is None
    (one,) = found.expectations
    assert (one.task, one.metric) == ("gsm8k", "exact_match,flexible-extract")
    assert (one.threshold, one.baseline, one.asked) == (0.4, 0.41, False)
    assert one.where == f"{recipe}:6: threshold"


def test_the_command_s_tasks_go_before_the_flag_s_before_the_recipe_s(recipe: Path) -> None:
    assert settings(recipe, "copa,lambada", "copa").tasks == ("copa", "lambada")
    assert settings(recipe, tasks=["copa"]).tasks == ("copa",)
    with pytest.raises(AtomError, match="no task is named: atom eval gsm8k"):
        settings().require_tasks()


def test_a_flag_goes_before_the_recipe_s_table(recipe: Path) -> None:
    found = settings(recipe, num_fewshot="8", threshold=["gsm8k=50%"])
    assert found.per_task["gsm8k"].num_fewshot is None
    assert found.config.questions.num_fewshot == 8
    (one,) = found.expectations
    # It is the recipe's metric that the flag is about, and the recipe's baseline stays.
    assert (one.metric, one.threshold) == ("exact_match,flexible-extract", 0.5)
    assert (one.baseline, one.asked) == (0.41, True)


def test_the_other_tools_leave_the_section_alone(recipe: Path) -> None:
    assert resolve(recipe).model.model is None
    bench = resolve_tool("bench", recipe)
    assert bench.config.statistics.repeats == 2
    assert bench.tables == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[eval.gsm8k]\ntreshold = 1\n", r"r\.toml:2: unknown key treshold .* mean threshold\?"),
        ("[eval.gsm8k]\nconcurrency = 1\n", r"unknown key concurrency .* belongs in \[eval\]"),
        ("[eval]\nmax_num_seqs = 1\n", r"max_num_seqs belongs in \[scheduler\], not in \[eval\]"),
        ("[eval]\nmetric = 'acc'\n", r"metric belongs in a table of its task: \[eval\.TASK\]"),
        ("[eval.gsm8k]\nthreshold = 'x'\n", r"r\.toml:2: threshold must be a number or auto, got"),
        ("[eval.a]\nlimit = 0\n", r"r\.toml:2: limit 0: write a number of documents"),
        ("[eval.a]\ngen_kwargs = 'x'\n", r"r\.toml:2: gen_kwargs x: write NAME=VALUE"),
        ("[eval.a]\nmetric = 'acc'\n", "metric has no effect without a threshold"),
        ("[bench.x]\na = 1\n", r"unknown key x in \[bench\]"),
    ],
)
def test_mistakes_of_a_recipe_name_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AtomError, match=says):
        settings(path)


@pytest.mark.parametrize(
    ("text", "limit"), [("50", 50), ("0.1", 0.1), ("10%", 0.1), ("1", 1), (".5", 0.5), ("3.0", 3)]
)
def test_limits(text: str, limit: float) -> None:
    found = settings(None, "copa", limit=text).limit
    assert found == limit
    assert type(found) is type(limit)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "100%", "0%"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(AtomError, match=r"--limit .*: write a number of documents"):
        settings(None, "copa", limit=text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("temperature=0.6,do_sample=True", {"temperature": 0.6, "do_sample": True}),
        ('{"until": ["a", "b"]}', {"until": ["a", "b"]}),
        ("stop=a,b", {"stop": "a,b"}),
        ("x=none,y=None", {"x": "none", "y": None}),
    ],
)
def test_generation_settings(text: str, found: dict[str, Any]) -> None:
    assert settings(None, "copa", gen_kwargs=text).gen_kwargs == found


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["copa=0.4"], [("copa", None, 0.4)]),
        (["copa=40%", "gsm8k=1"], [("copa", None, 0.4), ("gsm8k", None, 1.0)]),
        (["gsm8k/exact_match,strict-match=0.3"], [("gsm8k", "exact_match,strict-match", 0.3)]),
        (["gsm8k/a,b=0.3,copa=0.5"], [("gsm8k", "a,b", 0.3), ("copa", None, 0.5)]),
        (["0.7"], [("copa", None, 0.7)]),
    ],
)
def test_thresholds(texts: list[str], found: list[Any]) -> None:
    given = settings(None, "copa", threshold=texts).expectations
    assert [(one.task, one.metric, one.threshold) for one in given] == found


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"threshold": ["copa"]}, "--threshold copa=copa: a threshold is a number"),
        ({"threshold": ["copa=high"]}, "--threshold copa=high: a threshold is a number"),
        ({"threshold": ["=1"]}, "--threshold =1: write TASK=VALUE"),
        ({"baseline": ["copa="]}, "--baseline copa=: write TASK=VALUE"),
        ({"header": ["secret"]}, r"--header: write NAME=VALUE \(a value is not shown"),
        ({"tokenizer": "nowhere"}, "--tokenizer nowhere: there is no such file"),
        ({"include_path": "nowhere"}, "--include-path nowhere: there is no such folder"),
        ({"fewshot_as_multiturn": True}, "--fewshot-as-multiturn needs --apply-chat-template"),
        ({"batch_size": "0"}, "--batch-size must be at least 1"),
    ],
)
def test_mistakes_of_flags(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(AtomError, match=says):
        settings(None, "copa", **flags)


def test_a_baseline_may_be_a_run() -> None:
    found = settings(None, "copa", baseline=["copa=20261121-1"]).expectations
    assert found == (Expectation(task="copa", baseline="20261121-1", where="--baseline"),)


def test_variables_and_secrets() -> None:
    resolved = resolve_tool("eval", None, {"ATOM_EVAL_CONCURRENCY": "9", "ATOM_EVAL_TASKS": "a,b"})
    assert resolved.config.server.concurrency == 9
    assert read(resolved).tasks == ("a", "b")
    assert tool_settings("eval")["api_key"].show("x") == "***"
    with pytest.raises(ConfigError, match=r"did you mean ATOM_EVAL_LIMIT\?"):
        resolve_tool("eval", None, {"ATOM_EVAL_LIMITS": "9"})


def test_the_reference_and_the_schema_hold_every_key() -> None:
    text, schema = pages(), json_schema()["properties"]["eval"]
    for name, setting in tool_settings("eval").items():
        assert f"| `{setting.flag}" in text["flags.md"]
        assert text["environment.md"].count(f"`{setting.env}`") == 1
        assert name in schema["properties"]
    for name in table_settings("eval"):
        assert f"| `{name}` |" in text["recipes.md"]
        assert name in schema["additionalProperties"]["properties"]


# lm-eval's command line


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "--model local-completions --model_args "
            "model=m,base_url=http://h:1/v1/completions,num_concurrent=65,max_retries=3,"
            "tokenized_requests=False --tasks gsm8k --num_fewshot 3",
            "--endpoint=completions --model=m --base-url=http://h:1 --concurrency=65 "
            "--max-retries=3 --tasks=gsm8k --num_fewshot 3",
        ),
        (
            "--model local-chat-completions --model_args "
            "base_url=http://h/v1/chat/completions verify_certificate=False --apply_chat_template",
            "--endpoint=chat --base-url=http://h --no-verify-tls --apply_chat_template",
        ),
        ("--model my-model --batch_size auto --log_samples", "--model=my-model"),
        ("--batch_size 4 --batch-size=auto:8 --chat", "--batch-size=4 --endpoint=chat"),
        ("--fewshot_as_multiturn=False gsm8k", "--no-fewshot-as-multiturn gsm8k"),
        ("--gen_kwargs temperature=0 top_p=1 -L 3", "--gen-kwargs=temperature=0,top_p=1 -L 3"),
        ("gsm8k -- --chat", "gsm8k -- --chat"),
    ],
)
def test_lm_eval_s_command_line_is_understood(theirs: str, ours: str) -> None:
    assert familiar_eval.translate(theirs.split()) == ours.split()


def test_model_args_may_be_json() -> None:
    argv = ["--model_args", '{"base_url": "http://h/v1/completions", "timeout": 9}']
    assert familiar_eval.translate(argv) == ["--base-url=http://h", "--timeout-s=9"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--model", "hf"], "--model hf: the model stays behind a server: atom serve MODEL"),
        (["--model_args", "dtype=float16"], "--model-args dtype: it has no meaning here"),
        (["--model_args", "{"], "--model-args {: not a JSON object"),
    ],
)
def test_what_lm_eval_has_and_we_have_not(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        familiar_eval.translate(argv)


@pytest.mark.parametrize("name", sorted(familiar_eval.REFUSED))
def test_refused_flags_are_no_flags_of_ours(name: str) -> None:
    assert familiar_eval.refusal(name.replace("-", "_")) == familiar_eval.REFUSED[name]
    assert name.replace("-", "_") not in tool_settings("eval")


def test_a_header_keeps_the_commas_of_its_value() -> None:
    asked = settings(None, "gsm8k", header=["Accept: a", "b", "X-Key=1"])  # as a list is cut
    assert asked.headers == {"Accept": "a,b", "X-Key": "1"}
