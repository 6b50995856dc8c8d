"""A tool's section of the recipe, its variables and its flags: resolved by the server's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.config import Config, resolve, resolve_tool
from atom.config.bench import BenchConfig
from atom.config.fields import TOOLS, Setting, every_setting, settings, tool_settings, value_of
from atom.config.reference import pages
from atom.errors import ConfigError

BENCH = list(tool_settings("bench").values())


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_schema() -> None:
    assert resolve_tool("bench").config == BenchConfig()


def test_flag_wins_over_environment_wins_over_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[bench]\nrepeats = 1\nduration = 3\nwarmup = 9\n")
    env = {"ATOM_BENCH_REPEATS": "2", "ATOM_BENCH_DURATION": "4"}
    resolved = resolve_tool("bench", path, env, {"repeats": "7"})
    assert resolved.config.statistics.repeats == 7
    assert resolved.config.load.duration == 4.0
    assert resolved.config.load.warmup == 9
    assert resolved.where("repeats") == "--repeats"
    assert resolved.where("duration") == "ATOM_BENCH_DURATION"
    assert resolved.where("warmup") == f"{path}:4: warmup"
    assert resolved.where("timeout_s") == "--timeout-s"


def test_the_server_takes_the_section_checks_it_and_leaves_it_alone(tmp_path: Path) -> None:
    path = recipe(tmp_path, "[model]\nseed = 3\n[bench]\nseed = 4\nmodel = 'x'\n")
    assert resolve(path, {"ATOM_BENCH_SEED": "5"}).model.seed == 3
    assert resolve(path).model.model is None
    assert resolve_tool("bench", path, {"ATOM_SEED": "6"}).config.load.seed == 4
    with pytest.raises(ConfigError, match=r"r\.toml:2: repeats must be at least 1"):
        resolve(recipe(tmp_path, "[bench]\nrepeats = 0\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[bench]\nrepeat = 2\n", r"r\.toml:2: unknown key repeat in \[bench\] \(did you mean rep"),
        ("[bench]\nmax_num_seqs = 2\n", r"max_num_seqs belongs in \[scheduler\], not in \[bench\]"),
        ("[scheduler]\nmax_error_rate = 0.1\n", r"belongs in \[bench\], not in \[scheduler\]"),
        ("[bnch]\n", r"unknown section \[bnch\] \(did you mean bench\?\)"),
        ("[bench]\nrepeats = '2'\n", "repeats must be an integer"),
        ("[bench]\nconcurrency = true\n", "concurrency must be text"),
        ("[bench]\nprofile = 1\n", "profile must be true or false"),
    ],
)
@pytest.mark.parametrize("reader", [resolve, lambda path: resolve_tool("bench", path)])
def test_mistakes_of_a_recipe(tmp_path: Path, text: str, says: str, reader: object) -> None:
    with pytest.raises(ConfigError, match=says):
        reader(recipe(tmp_path, text))  # type: ignore[operator]


def test_a_loose_text_may_be_a_number_or_a_list_of_them(tmp_path: Path) -> None:
    for written, read in [
        ("8", ("8",)),
        ("[1, 2, 4]", ("1", "2", "4")),
        ('"1-16*2"', ("1-16*2",)),
        ("[0.5, 'inf']", ("0.5", "inf")),
    ]:
        path = recipe(tmp_path, f"[bench]\nconcurrency = {written}\n")
        assert resolve_tool("bench", path).config.load.concurrency == read


def test_a_misspelt_variable_is_an_error_for_both() -> None:
    for reader in (resolve, lambda recipe, env: resolve_tool("bench", recipe, env)):
        with pytest.raises(ConfigError, match=r"did you mean ATOM_BENCH_REPEATS\?"):
            reader(None, {"ATOM_BENCH_REPEAT": "2"})


def test_an_unknown_flag_names_the_tool_s_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--repeat: unknown setting \(did you mean repeats\?\)"):
        resolve_tool("bench", None, {}, {"repeat": 2})


def test_equal_names_are_kept_apart() -> None:
    both = set(settings()) & {s.name for s in BENCH}
    assert {"model", "seed", "api_key"} <= both
    env = {"ATOM_SEED": "1", "ATOM_BENCH_SEED": "2"}
    assert resolve(None, env).model.seed == 1
    assert resolve_tool("bench", None, env).config.load.seed == 2


@pytest.mark.parametrize("setting", BENCH, ids=lambda s: s.name)
def test_every_setting_has_a_variable_and_its_own_default(setting: Setting) -> None:
    text = setting.show(setting.default)
    resolved = resolve_tool("bench", None, {setting.env: text})
    assert value_of(resolved.config, setting) == setting.default
    assert setting.env.startswith("ATOM_BENCH_")


def test_secrets_are_masked() -> None:
    for name in ("api_key", "header"):
        setting = tool_settings("bench")[name]
        assert setting.show("x" if name == "api_key" else ("x",)) == "***"


def test_the_reference_holds_every_setting_once() -> None:
    text = pages()
    for setting in BENCH:
        assert f"| `{setting.flag}" in text["flags.md"]
        assert text["environment.md"].count(f"`{setting.env}`") == 1
        assert f"| `{setting.name}` |" in text["recipes.md"]


def test_names_of_variables_are_unique_over_all_trees() -> None:
    names = [s.env for s in every_setting()]
    assert len(names) == len(set(names))
    assert set(TOOLS) == {"deployment", "bench", "eval"}
    assert not {s.section for s in settings().values()} & set(TOOLS)
    assert Config() == resolve(None, {"ATOM_BENCH_MODEL": "x"})
