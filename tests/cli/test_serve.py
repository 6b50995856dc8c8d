"""`atom serve` hands the resolved tree to the server and passes its exit code on."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from cli_helpers import atom

from atom.config import Config


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The trees that were served, by a server that ends with code 7."""
    configs: list[Config] = []
    module = types.ModuleType("atom.server.run")

    def serve(config: Config) -> int:
        configs.append(config)
        return 7

    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "atom.server.run", module)
    return configs


def test_nothing_given(served: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "serve")
    assert (ran.code, ran.out) == (7, "")
    assert served == [Config()]
    assert ran.err.startswith("atom ")
    assert ran.err.count("\n") == 1


def test_what_differs_is_printed_with_its_source(
    served: list[Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[model]\nmodel = "a/b[red]"\n')
    monkeypatch.setenv("ATOM_API_KEY", "hunter2")
    ran = atom(capsys, "serve", str(path), "--no-enable-prefix-caching")
    (config,) = served
    assert config.model.model == "a/b[red]"
    assert config.server.api_key == ("hunter2",)
    assert not config.engine.enable_prefix_caching
    assert f"model.model = a/b[red]  {path}:2" in ran.err
    assert "engine.enable_prefix_caching = false  --enable-prefix-caching" in ran.err
    assert "server.api_key = ***  ATOM_API_KEY" in ran.err
    assert "hunter2" not in ran.err


def test_a_rehearsal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model is there as long as the server runs, and gone afterwards."""
    seen: list[Path] = []
    module = types.ModuleType("atom.server.run")

    def serve(config: Config) -> int:
        assert config.model.model is not None
        seen.append(Path(config.model.model))
        assert (seen[0] / "config.json").is_file()
        return 0

    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "atom.server.run", module)
    recipe = tmp_path / "r.toml"
    recipe.write_text('[model]\nmodel = "Qwen/Qwen3-8B"\n[parallel]\ntensor_parallel_size = 4\n')
    ran = atom(capsys, "serve", str(recipe), "--tiny", "--device", "cpu")
    assert (ran.code, ran.out) == (0, "")
    assert seen[0].name == "Qwen3-8B-tiny"
    assert not seen[0].exists()
    assert "model.max_model_len = 2048  --tiny" in ran.err
    assert "rehearsal: Qwen3ForCausalLM in the shape of Qwen/Qwen3-8B: 3 of 36 layers" in ran.err
    assert "rehearsal: tensor_parallel_size 4 -> 1" in ran.err


@pytest.mark.parametrize("target", ["owner/name", "some/dir", "file.gguf"])
def test_a_target_that_is_no_recipe_is_a_model(
    target: str, served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    atom(capsys, "serve", target)
    assert served[0].model.model == target


def test_a_bad_setting_never_reaches_the_server(
    served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert atom(capsys, "serve", "--kv-cache-block-size", "17").code == 2
    assert served == []
