"""Provenance: complete, without secrets; fingerprints: equal for the same experiment alone."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atom._version import __version__
from atom.bench.history import collect, fingerprint, hardware, provenance, redact

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--api-key", SECRET, "--concurrency", "8"],
        ["bench", f"--api-key={SECRET}"],
        ["bench", f"--api_key={SECRET}"],
        ["bench", "-H", f"Authorization: Bearer {SECRET}"],
        ["bench", "--header", f"X-Mine: {SECRET}"],
        ["bench", f"--header=X-Mine: {SECRET}"],
        ["bench", "--base-url", f"https://me:{SECRET}@host:8000/v1"],
        ["bench", "--metadata", f"db_password={SECRET}"],
        ["bench", "--hf-token", SECRET],
        ["bench", "--note", f"Bearer {SECRET}"],
        ["bench", "--note", "hf_abcdefghijklmnopqrst" + SECRET],
    ],
)
def test_no_secret_of_a_command_line_is_kept(arguments: list[str]) -> None:
    found = redact.argv(arguments)
    assert len(found) == len(arguments)
    assert SECRET not in json.dumps(found)
    assert redact.REDACTED in json.dumps(found)
    kept = collect(argv=arguments, server={"kind": "atom", "url": f"http://u:{SECRET}@h/"})
    assert SECRET not in json.dumps(kept)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--max-num-batched-tokens", "4096", "--ignore-eos"],
        ["bench", "--tokenizer", "org/name", "--metadata", "tokens=5", "max_tokens=7"],
        ["bench", "--base-url", "http://127.0.0.1:8000", "--request-rate", "2.5"],
        ["bench", "--slo", "ttft_p99=500ms"],
    ],
)
def test_what_is_no_secret_stays(arguments: list[str]) -> None:
    assert redact.argv(arguments) == arguments


RECIPE = f"""
[model]
path = "org/tiny"   # a comment
max_tokens = 5
[server]
api_key = [
  "{SECRET}",  # the first
  '{SECRET}2',
]
port = 8000
"""


def test_a_recipe_loses_its_keys_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    found = collect(recipe=path, argv=[])["recipe"]
    assert found["name"] == "mine"
    assert SECRET not in json.dumps(found)
    assert found["text"] == RECIPE.replace(f'"{SECRET}"', '"<redacted>"').replace(
        f"'{SECRET}2'", '"<redacted>"'
    )
    path.write_text(RECIPE.replace(SECRET, "another"))
    assert collect(recipe=path, argv=[])["recipe"]["sha256"] == found["sha256"]
    path.write_text(RECIPE.replace("8000", "8001"))
    assert collect(recipe=path, argv=[])["recipe"]["sha256"] != found["sha256"]


@pytest.mark.parametrize(
    "source", ['api_key = "s3cr3t\\u002dvalue"', f'api_key = """{SECRET}"""', "api_key = "]
)
def test_a_recipe_that_hides_its_key_well_is_left_out(source: str) -> None:
    assert "s3cr3t" not in redact.recipe(source)


def test_a_recipe_that_is_gone_is_said(tmp_path: Path) -> None:
    found = collect(recipe=tmp_path / "gone.toml", argv=[])["recipe"]
    assert found["problem"] == "No such file or directory"


def test_the_environment_is_kept_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOM_API_KEY", SECRET)
    monkeypatch.setenv("ATOM_NATIVE", "avx2")
    monkeypatch.setenv("UNRELATED", "x")
    found = collect(argv=[])["environment"]
    assert found["ATOM_API_KEY"] == redact.REDACTED
    assert found["ATOM_NATIVE"] == "avx2"
    assert "UNRELATED" not in found


@dataclass
class Info:
    kind: str = "atom"
    version: str = __version__
    model: str = "m"


def test_what_is_collected() -> None:
    found = collect(seed=7, base_url="http://127.0.0.1:8000", server=Info(), argv=["bench", "a b"])
    assert found["command"] == "atom bench 'a b'"
    assert found["atom"]["version"] == __version__
    assert found["server"]["model"] == "m"
    assert found["seed"] == 7
    assert found["hardware"]["cpu"]
    assert found["hardware"]["usable_cpus"] > 0
    assert found["packages"]["aiohttp"]
    assert socket.gethostname() not in json.dumps(found["host"])
    json.dumps(found, allow_nan=False)


def test_hardware_of_another_machine_is_not_ours() -> None:
    found = collect(base_url="https://gpu-box.example:8000", argv=[])
    assert "cpu" not in found["hardware"]
    assert found["hardware"]["num_gpus"] is None
    assert found["client"]["cpu"]
    assert collect(base_url="http://b", num_gpus=4, argv=[])["hardware"]["num_gpus"] == 4
    other = collect(base_url="http://other-box:8000", argv=[])["hardware"]["machine"]
    assert other != found["hardware"]["machine"]


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:80", True),
        (None, True),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0:8000", True),
        ("https://127.example.org", False),
        (f"http://{socket.gethostname()}:8000", True),
    ],
)
def test_whose_machine_it_is(url: str | None, local: bool) -> None:
    assert provenance.is_local(url) is local


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout_and_whether_it_is_dirty(tmp_path: Path) -> None:
    git(tmp_path, "init")
    package = tmp_path / "atom"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert provenance._commit(str(package)) == {}, "in a checkout, but not of it (a venv in it)"
    git(tmp_path, "add", "atom/__init__.py")
    git(tmp_path, "commit", "-m", "one")
    provenance._commit_cached.cache_clear()
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance._commit(str(package)) == {"commit": head, "dirty": False}
    (package / "__init__.py").write_text("x = 1")
    provenance._commit_cached.cache_clear()
    assert provenance._commit(str(package)) == {"commit": head, "dirty": True}


def test_only_a_server_from_this_checkout_has_its_commit() -> None:
    def commit(**changed: Any) -> Any:
        server = {"kind": "atom", "version": __version__, **changed}
        return provenance._server(server, changed.get("url"), None, {"version": __version__, **own})

    own = {"commit": "c" * 40, "dirty": True}
    assert commit()["commit"] == "c" * 40
    assert commit()["dirty"] is True
    assert "commit" not in commit(kind="vllm")
    assert "commit" not in commit(version="9.9")
    assert "commit" not in commit(url="http://elsewhere:8000")
    assert commit(commit="own")["commit"] == "own"


BASE: dict[str, Any] = {
    "model": "m",
    "load": {"mode": "closed", "concurrency": 8, "duration_s": None},
    "workload": {"dataset": "random", "input_len": 1024, "seed": 1, "file_hash": "h"},
    "provenance": {
        "server": {"kind": "atom", "version": "1", "commit": "c1"},
        "recipe": {"sha256": "r", "path": "a.toml"},
        "hardware": {"num_gpus": 2, "gpus": [{"name": "H200", "used_mib": 5}] * 2, "cpu": "x"},
        "driver": "NVIDIA 1",
        "time": "2026",
        "argv": ["bench"],
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(BASE))
    at = tree
    *way, key = path.split("/")
    for step in way:
        at = at[step]
    at[key] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("workload/seed", 2),
        ("workload/path", "elsewhere.json"),
        ("workload/realised", {"mean": 3}),
        ("load/seed", 5),
        ("load/concurrency", 8.0),
        ("load/num_requests", None),
        ("provenance/server/version", "2"),
        ("provenance/server/commit", "c2"),
        ("provenance/recipe/path", "b.toml"),
        ("provenance/time", "2027"),
        ("provenance/argv", ["bench", "--quiet"]),
        ("provenance/hardware/cpu", "y"),
        ("provenance/hardware/gpus", [{"name": "H200", "used_mib": 9}] * 8),
        ("provenance/packages", {"torch": "9"}),
    ],
)
def test_the_same_experiment_has_the_same_fingerprint(path: str, value: Any) -> None:
    assert fingerprint(**changed(path, value)) == fingerprint(**BASE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", "n"),
        ("load/concurrency", 9),
        ("load/mode", "open"),
        ("load/num_requests", 80),
        ("workload/input_len", 1025),
        ("workload/file_hash", "i"),
        ("workload/prefix_len", 5),
        ("provenance/server/kind", "vllm"),
        ("provenance/recipe/sha256", "s"),
        ("provenance/recipe", None),
        ("provenance/driver", "NVIDIA 2"),
        ("provenance/hardware/num_gpus", 4),
        ("provenance/hardware/gpus", [{"name": "MI355X"}] * 2),
    ],
)
def test_another_experiment_has_another_fingerprint(path: str, value: Any) -> None:
    assert fingerprint(**changed(path, value)) != fingerprint(**BASE)


def test_on_a_cpu_the_cpu_counts() -> None:
    def of(**machine: Any) -> str:
        return fingerprint(**changed("provenance/hardware", machine))

    one = of(num_gpus=0, gpus=[], cpu="Xeon", usable_cpus=2.0)
    assert one == of(num_gpus=0, gpus=[], cpu="Xeon", usable_cpus=2, memory_bytes=5)
    assert one != of(num_gpus=0, gpus=[], cpu="Xeon", usable_cpus=4)
    assert one != of(num_gpus=0, gpus=[], cpu="Epyc", usable_cpus=2)
    assert of(machine="a", num_gpus=None) != of(machine="b", num_gpus=None)


def test_the_fingerprint_is_what_it_was() -> None:
    """Stored histories rely on it: a change here breaks every baseline."""
    assert fingerprint(**BASE) == "26c7c39839c6"
    assert fingerprint(model="m", load={}, workload={}, provenance={}) == "e14cec56ca33"


# What the makers' tools print.

NVIDIA = """\
NVIDIA H200, 143771, 120000, 570.86.15, 700.00, 1980
NVIDIA H200, 143771, 4, 570.86.15, [N/A], 1980
"""
AMD = [
    {
        "gpu": number,
        "asic": {"market_name": "AMD Instinct MI355X", "target_graphics_version": "gfx950"},
        "vram": {"size": {"value": 294896, "unit": "MB"}},
        "driver": {"name": "amdgpu", "version": "6.12.12"},
    }
    for number in range(2)
]
AMD_USED = [
    {"gpu": 0, "mem_usage": {"used_vram": {"value": 200000, "unit": "MB"}}},
    {"gpu": 1, "mem_usage": {"used_vram": {"value": 300, "unit": "MB"}}},
]
ROCM = {
    "card0": {
        "Card Series": "AMD Instinct MI300X",
        "VRAM Total Memory (B)": "206141652992",
        "VRAM Total Used Memory (B)": "150141652992",
        "GFX Version": "gfx942",
    },
    "system": {"Driver version": "6.8.5"},
}


def tools(**answers: str) -> hardware.Ask:
    """A machine where these tools exist; underscores stand for dashes."""

    def ask(command: Sequence[str]) -> str | None:
        if command[:2] == ["amd-smi", "metric"]:
            return answers.get("used")
        return answers.get(command[0].replace("-", "_"))

    return ask


def test_nvidia() -> None:
    found = hardware.find_gpus(tools(nvidia_smi=NVIDIA))
    assert found.driver == "NVIDIA 570.86.15"
    assert found.devices[0] == {
        **{"name": "NVIDIA H200", "memory_mib": 143771.0, "used_mib": 120000.0},
        **{"power_limit_w": 700.0, "max_clock_mhz": 1980.0},
    }
    assert "power_limit_w" not in found.devices[1]
    assert hardware.gpus_in_use(found.devices) == 1


def test_amd() -> None:
    for answer in (AMD, {"gpu_data": AMD}):
        noisy = f"WARNING: something\n{json.dumps(answer)}"
        found = hardware.find_gpus(tools(amd_smi=noisy, used=json.dumps(AMD_USED)))
        assert found.driver == "amdgpu 6.12.12"
        assert [gpu["name"] for gpu in found.devices] == ["AMD Instinct MI355X"] * 2
        assert found.devices[0]["memory_mib"] == 294896.0
        assert hardware.gpus_in_use(found.devices) == 1
    found = hardware.find_gpus(tools(rocm_smi=json.dumps(ROCM)))
    assert found.devices[0]["name"] == "AMD Instinct MI300X"
    assert found.devices[0]["memory_mib"] == round(206141652992 / 2**20)
    assert hardware.gpus_in_use(found.devices) == 1


@pytest.mark.parametrize("answer", ["", "No devices were found", "{", "[]", "[1]", '{"a": 1}'])
def test_tools_that_say_nothing_useful(answer: str) -> None:
    asked = tools(nvidia_smi=answer, amd_smi=answer, rocm_smi=answer, used=answer)
    assert hardware.find_gpus(asked) == hardware.Gpus([], "", "")


def test_a_tool_that_fails_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.find_gpus().devices == []
