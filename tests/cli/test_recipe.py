"""`atom recipe check | show | schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import atom

from atom.config.fields import settings

GOOD = "[scheduler]\nmax_num_seqs = 3\n"
BAD = "[scheduler]\nmax_num_seq = 3\n"


@pytest.fixture
def recipes(tmp_path: Path) -> tuple[str, str]:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(GOOD)
    bad.write_text(BAD)
    return str(good), str(bad)


def test_check(recipes: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = recipes
    ran = atom(capsys, "recipe", "check", good)
    assert (ran.code, ran.err) == (0, "")
    first, *plan = ran.out.splitlines()
    assert first == f"{good}: no [deployment] says on which GPU: give --gpu or --gpu-memory-gb"
    assert [line.split()[0] for line in plan] == ["model", "weights", "cache"]
    assert "SmolLM2-135M-Instruct" in plan[0]
    both = atom(capsys, "recipe", "check", bad, good)
    assert (both.code, both.out) == (2, ran.out)
    ran = both
    assert ran.err.startswith(f"atom: error: {bad}:2: unknown key max_num_seq in [scheduler]")


def test_check_json(recipes: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = recipes
    ran = atom(capsys, "recipe", "check", "--json", good, bad)
    assert (ran.code, ran.err) == (2, "")
    first, second = json.loads(ran.out)
    assert (first["recipe"], first["ok"], first["error"]) == (good, True, None)
    assert (first["plan"]["fits"], first["plan"]["parameters"]) == (None, 134_515_008)
    assert (second["ok"], second["plan"]) == (False, None)
    assert "max_num_seqs" in second["error"]


def test_check_is_of_the_file_alone(
    recipes: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATOM_MAX_NUM_SEQS", "nonsense")
    assert atom(capsys, "recipe", "check", recipes[0]).code == 0
    assert atom(capsys, "recipe", "show", recipes[0]).code == 2


def test_show_names_each_source(
    recipes: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATOM_PORT", "9")
    argv = ["recipe", "show", recipes[0], "--block_size", "32", "--api-key", "hunter2"]
    ran = atom(capsys, *argv)
    assert ran.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines()}
    assert rows["scheduler.max_num_seqs"] == ["3", f"{recipes[0]}:2"]
    assert rows["server.port"] == ["9", "ATOM_PORT"]
    assert rows["engine.kv_cache_block_size"] == ["32", "--kv-cache-block-size"]
    assert rows["scheduler.max_num_batched_tokens"] == ["16384", "default"]
    assert set(rows) == {"setting", *(s.key for s in settings().values())}
    assert "hunter2" not in ran.out

    shown = json.loads(atom(capsys, *argv, "--json").out)
    expected = {"value": 3, "source": "recipe", "where": f"{recipes[0]}:2"}
    assert shown["scheduler"]["max_num_seqs"] == expected
    assert shown["server"]["api_key"]["value"] == "***"
    assert shown["model"]["model"] == {"value": None, "source": "default", "where": None}


@pytest.mark.parametrize("spelling", ["--max-num-seqs", "--max_num_seqs"])
@pytest.mark.parametrize("equals", [True, False])
def test_flags_in_both_cases(
    spelling: str, equals: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"{spelling}=7"] if equals else [spelling, "7"]
    shown = json.loads(atom(capsys, "recipe", "show", "--json", *argv).out)
    assert shown["scheduler"]["max_num_seqs"]["value"] == 7


def test_every_flag_reaches_its_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for setting in settings().values():
        if setting.default is None or setting.default == ():
            continue
        negated = setting.kind is bool and not setting.default
        flag = f"--no-{setting.flag[2:]}" if negated else setting.flag
        value = [] if setting.kind is bool else [setting.show(setting.default)]
        ran = atom(capsys, "recipe", "show", "--json", flag, *value)
        assert ran.code == 0, (flag, ran.err)
        shown = json.loads(ran.out)[setting.section][setting.name]
        assert shown["value"] == setting.default
        assert shown["source"] == "flag"


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "recipe", "schema")
    assert ran.code == 0
    for setting in settings().values():
        assert setting.name in ran.out
    schema = json.loads(atom(capsys, "recipe", "schema", "--json").out)
    assert set(schema["properties"]["engine"]["properties"]) == {
        s.name for s in settings().values() if s.section == "engine"
    }
