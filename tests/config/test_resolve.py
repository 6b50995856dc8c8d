"""Precedence, types, limits and messages of the settings, over every source."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.config import resolve, resolve_arguments, resolve_with_sources
from atom.config.fields import Setting, flag_name, settings, value_of
from atom.config.schema import Config
from atom.config.support import REFUSALS
from atom.errors import ConfigError

ALL = list(settings().values())
NUMBERS = [s for s in ALL if s.kind in (int, float) and not s.many]
BOOLS = [s for s in ALL if s.kind is bool]


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_schema() -> None:
    assert resolve() == Config()


def test_seed_names_and_defaults() -> None:
    config = Config()
    assert config.scheduler.max_num_batched_tokens == 16384
    assert config.scheduler.max_num_seqs == 512
    assert config.scheduler.scheduler_delay_factor == 0.0
    assert config.engine.gpu_memory_utilization == 0.9
    assert config.engine.kv_cache_block_size is None
    assert config.engine.num_kvcache_blocks == -1
    assert config.compile.level == 3
    assert config.server.port == 8000


def test_flag_wins_over_environment_wins_over_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[scheduler]\nmax_num_seqs = 1\nmax_num_batched_tokens = 10\n")
    env = {"ATOM_MAX_NUM_SEQS": "2", "ATOM_PORT": "1234"}
    resolved = resolve_with_sources(path, env, {"max_num_seqs": "3"})
    assert resolved.config.scheduler.max_num_seqs == 3
    assert resolved.config.scheduler.max_num_batched_tokens == 10
    assert resolved.config.server.port == 1234
    kinds = {name: source.kind for name, source in resolved.sources.items()}
    assert kinds == {
        "max_num_seqs": "flag",
        "max_num_batched_tokens": "recipe",
        "port": "environment",
    }
    assert resolved.sources["max_num_batched_tokens"].where == f"{path}:3"
    assert resolve(path, env).scheduler.max_num_seqs == 2
    assert resolve(path).scheduler.max_num_seqs == 1


def test_flags_that_are_none_are_not_given(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[server]\nport = 1\n")
    assert resolve(path, {}, {"port": None}).server.port == 1


@pytest.mark.parametrize("setting", [s for s in ALL if s.default], ids=lambda s: s.name)
def test_every_setting_takes_its_default_from_a_recipe(setting: Setting, tmp_path: Path) -> None:
    text = setting.show(setting.default)
    quoted = f'"{text}"' if setting.kind is str else text
    path = recipe(tmp_path, f"[{setting.section}]\n{setting.name} = {quoted}\n")
    assert value_of(resolve(path), setting) == setting.default


@pytest.mark.parametrize("setting", ALL, ids=lambda s: s.name)
def test_every_setting_has_a_variable(setting: Setting) -> None:
    text = setting.show(setting.default) or "x"
    if setting.many and setting.kind is int:
        text = ""
    expected = (("x",) if setting.many else "x") if text == "x" else setting.default
    assert value_of(resolve(None, {setting.env: text}), setting) == expected


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.name)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "x", "1e999", "--1", "1_0_", "0x10"])
def test_no_number_takes_nonsense(setting: Setting, text: str) -> None:
    for env, flags in (({setting.env: text}, {}), ({}, {setting.name: text})):
        with pytest.raises(ConfigError, match=r"must be .*got"):
            resolve(None, env, flags)


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.name)
def test_limits_hold(setting: Setting) -> None:
    assert setting.name == "max_queued_requests" or setting.limits, "a number without limits"
    outside = []
    if setting.ge is not None:
        outside.append(setting.ge - 1)
    if setting.gt is not None:
        outside.append(setting.gt)
    if setting.le is not None:
        outside.append(setting.le + 1)
    for number in outside:
        with pytest.raises(ConfigError) as caught:
            resolve(None, {}, {setting.name: setting.kind(number)})
        assert str(caught.value).startswith(setting.flag)
        assert f"{setting.kind(number)}" in str(caught.value)


@pytest.mark.parametrize("setting", BOOLS, ids=lambda s: s.name)
def test_booleans_are_four_words(setting: Setting) -> None:
    words = {"0": False, "false": False, "1": True, "true": True, "TRUE": True}
    for text, value in words.items():
        if value and setting.name in {row.setting for row in REFUSALS}:
            continue
        assert value_of(resolve(None, {setting.env: text}), setting) is value
    for text in ("yes", "2", "on", "t"):
        with pytest.raises(ConfigError, match="true or false"):
            resolve(None, {setting.env: text})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[modle]\n", r"r\.toml:1: unknown section \[modle\] \(did you mean model\?\)"),
        ("\n[scheduler]\nmax_num_seq = 1\n", r"r\.toml:3: .*did you mean max_num_seqs\?"),
        ("[engine]\nmax_num_seqs = 1\n", r"r\.toml:2: .*belongs in \[scheduler\]"),
        ("max_num_seqs = 1\n", r"r\.toml:1: max_num_seqs belongs in \[scheduler\]"),
        ("engine = 1\n", r"r\.toml:1: engine is a section"),
        ("[engine]\nkv_cache_block_size = 17\n", r"r\.toml:2: kv_cache_block_size .* 17"),
        ("[engine]\nkv_cache_block_size = 16.0\n", r"r\.toml:2: .*must be an integer"),
        ('scheduler.max_num_seqs = "4"\n', r"r\.toml:1: max_num_seqs must be an integer"),
        ("[scheduler]\nmax_num_seqs = true\n", r"must be an integer, got True"),
        ("[model]\nload_dummy = 1\n", r"must be true or false"),
        ('[model]\ndtype = "fp32"\n', r"one of auto, bfloat16, float16, float32"),
        ('[model]\nmodel = ""\n', r"must be not empty"),
        ("[server]\ncors_origins = [1]\n", r"text, or a list of them"),
        ("[model]\nmodel = [[[\n", r"not valid TOML"),
        ("[eval]\nrate = 1\n", r"r\.toml:2: unknown key rate in \[eval\]"),
        ("[quantization]\n", r"\[quantization\] is not in this version"),
    ],
)
def test_recipe_mistakes_name_line_and_way_out(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(recipe(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        resolve(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        resolve(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        resolve(tmp_path / "b.toml")


def test_auto_resets_an_optional_setting(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[model]\nmax_model_len = 5\n[engine]\noverlap = true\n")
    config = resolve(path, {"ATOM_OVERLAP": "auto"}, {"max_model_len": "auto"})
    assert config.engine.overlap is None
    assert config.model.max_model_len is None
    path = recipe(tmp_path, '[model]\nmax_model_len = "auto"\n')
    assert resolve(path).model.max_model_len is None
    with pytest.raises(ConfigError, match="must be an integer, got 'auto'"):
        resolve(None, {}, {"max_num_seqs": "auto"})


def test_lists_repeat_or_separate_by_commas(tmp_path: Path) -> None:
    assert resolve(None, {"ATOM_SERVED_MODEL_NAME": "a, b"}).model.served_model_name == ("a", "b")
    flags = {"served_model_name": ["a,b", "c"]}
    assert resolve(None, {}, flags).model.served_model_name == ("a", "b", "c")
    path = recipe(tmp_path, '[model]\nserved_model_name = "a,b"\n')
    assert resolve(path).model.served_model_name == ("a,b",)
    with pytest.raises(ConfigError, match="twice"):
        resolve(None, {}, {"served_model_name": ["a", "a"]})


def test_a_secret_never_shows(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[server]\napi_key = 1234567\n")
    with pytest.raises(ConfigError) as caught:
        resolve(path)
    assert "1234567" not in str(caught.value)
    (key,) = (s for s in ALL if s.secret)
    assert key.show(("hunter2",)) == "***"


def test_arguments_of_a_python_caller() -> None:
    config = resolve_arguments({"max_num_seqs": 4, "model": None}, {"ATOM_SEED": "3"})
    assert (config.scheduler.max_num_seqs, config.model.seed) == (4, 3)
    with pytest.raises(ConfigError, match=r"^max_num_seq: unknown .*max_num_seqs"):
        resolve_arguments({"max_num_seq": 4})
    with pytest.raises(ConfigError, match=r"^max_num_seqs must be an integer, got 1\.5"):
        resolve_arguments({"max_num_seqs": 1.5})


def test_names_flags_and_variables_are_unique() -> None:
    assert len({s.flag for s in ALL}) == len(ALL)
    spellings = [a for s in ALL for a in (s.flag, *s.aliases)]
    variables = [v for s in ALL for v in (s.env, s.env_alias) if v]
    assert len(set(spellings)) == len(spellings)
    assert len(set(variables)) == len(variables)
    assert flag_name("max_num_seqs") == "--max-num-seqs"
