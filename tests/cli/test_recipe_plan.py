"""The memory plan of `atom recipe check`, and the project's own recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import atom

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    ran = atom(capsys, "recipe", "check", "--json", *argv)
    found: list[dict[str, Any]] = json.loads(ran.out)
    assert ran.code == (0 if all(recipe["ok"] for recipe in found) else 2)
    return found


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The plans of all recipes, each made once."""
    from atom.cli.recipe import _check

    return {path.stem: _check(path, None).as_json() for path in RECIPES}


@pytest.mark.parametrize("name", [path.stem for path in RECIPES])
def test_every_recipe_of_the_project_is_planned_and_fits(
    name: str, own: dict[str, dict[str, Any]]
) -> None:
    found = own[name]
    assert (found["ok"], found["error"], found["no_plan"]) == (True, None, None)
    plan = found["plan"]
    if plan["gpu"]:
        assert plan["fits"] is True
        assert plan["sequences"] >= 1
        spent = plan["weights_bytes"] + plan["activations_bytes"] + plan["runtime_bytes"]
        assert spent + plan["caches_bytes"] <= plan["usable_bytes"] < plan["gpu_bytes"]


def test_what_cannot_be_loaded_is_said(own: dict[str, dict[str, Any]]) -> None:
    unloaded = {name for name, found in own.items() if found["plan"]["not_loaded"]}
    fp8 = {"deepseek-r1", "deepseek-v3.2", "deepseek-v4-flash", "minimax-m2"}
    assert unloaded == fp8 | {"kimi-k2-thinking", "kimi-k2.5"}
    said = own["deepseek-r1"]["plan"]["verdict"]
    assert said.startswith("fits, but cannot be loaded: quantised safetensors (fp8")


def test_kinds_of_caches(own: dict[str, dict[str, Any]]) -> None:
    def kinds(name: str) -> dict[str, float]:
        return {f"{c['name']}/{c['lives']}": c["bytes"] for c in own[name]["plan"]["caches"]}

    assert kinds("deepseek-r1") == {"latent/token": 61 * 576 * 2}
    assert kinds("gpt-oss-120b") == dict.fromkeys(
        ("keys and values/window", "keys and values/token"), 18 * 2 * 8 * 64 * 2
    )
    state = kinds("qwen3-next-80b-a3b")
    assert state["recurrent state/sequence"] == 36 * 32 * 128 * 128 * 4 / 2
    assert state["keys and values/token"] == 12 * 2 * 2 * 256 * 2 / 2
    assert set(kinds("glm-5")) == {"latent/token", "index keys/token"}


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return str(path)


LLAMA_70B = '[model]\nmodel = "meta-llama/Llama-3.1-70B-Instruct"\n[deployment]\ngpu = "H200"\n'


def test_the_plan_of_a_measured_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/guides/memory.md: 54478 blocks were left beside Llama 3.1 8B on an H200."""
    path = recipe(tmp_path, '[model]\nmodel = "meta-llama/Llama-3.1-8B-Instruct"\n')
    (found,) = planned(capsys, path, "--gpu-memory-gb", "139.8")
    assert found["plan"]["kv_tokens"] / 16 == pytest.approx(54478, rel=0.01)


def test_too_small_a_gpu_says_what_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, LLAMA_70B)
    (found,) = planned(capsys, path)
    assert found["ok"] is False
    assert found["plan"]["problem"].startswith("the weights take 131.4 GiB, more than the 125.8")
    assert found["plan"]["advice"].startswith("tensor_parallel_size = 2 (")
    ran = atom(capsys, "recipe", "check", path)
    assert ran.code == 2
    assert f"{path}: does not fit: the weights take 131.4 GiB" in ran.out
    assert planned(capsys, path, "--gpu", "MI355X")[0]["ok"] is True


@pytest.mark.parametrize(
    ("extra", "problem", "advice"),
    [
        ("[parallel]\ntensor_parallel_size = 3\n", "does not divide num_attention", "size = 4"),
        ("[parallel]\ntensor_parallel_size = 2\n[engine]\nkv_cache_block_size = 16\n", "", ""),
    ],
    ids=["ranks", "fits"],
)
def test_problems_of_settings(
    extra: str, problem: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = planned(capsys, recipe(tmp_path, LLAMA_70B + extra))
    assert problem in found["plan"]["problem"]
    assert advice in found["plan"]["advice"]
    assert found["ok"] == (not problem)


def test_long_contexts_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[model]\nmodel = "Qwen/Qwen3-30B-A3B"\n[deployment]\ngpu_memory_gb = 70\n'
    (found,) = planned(capsys, recipe(tmp_path, text))
    assert "fewer than one sequence of max_model_len = 40,960" in found["plan"]["problem"]
    assert found["plan"]["advice"].startswith("max_model_len = 20480 (")


def test_an_unknown_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, '[deployment]\ngpu = "H20O"\n')
    ran = atom(capsys, "recipe", "check", path)
    assert ran.code == 2
    assert "the memory of 'H20O' is not known (did you mean H200?)" in ran.err


def test_a_model_that_is_not_known_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, '[model]\nmodel = "nobody/no-such-model"\n')
    ran = atom(capsys, "recipe", "check", path)
    assert (ran.code, ran.err) == (0, "")
    assert f"{path}: valid; no plan: model nobody/no-such-model is not in the" in ran.out


def test_a_model_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    path = recipe(tmp_path, f'[model]\nmodel = "{folder}"\n[deployment]\ngpu = "L40S"\n')
    assert planned(capsys, path)[0]["plan"]["fits"] is True
    config["architectures"] = ["LamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    (found,) = planned(capsys, path)
    assert "architecture 'LamaForCausalLM' is not supported; near it are Llama" in found["error"]
