from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from gguf_files import embedding, llama_metadata, write_gguf
from huggingface_hub import errors

from atom.config.schema import ModelConfig
from atom.errors import ModelError
from atom.models.source import resolve_source

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "eos_token_id": 2}


def checkpoint(path: Path, *, weights: bool = True, **files: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    if weights:
        (path / "model.safetensors").write_bytes(b"")
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_nothing_given_is_the_embedded_model(embedded_gguf: Path) -> None:
    source = resolve_source(ModelConfig())
    assert source.name == "SmolLM2-135M-Instruct"
    assert (source.path, source.format) == (embedded_gguf, "gguf")
    assert source.config.architecture == "LlamaForCausalLM"
    assert source.eos_token_ids == (2,)


def test_directory(tmp_path: Path) -> None:
    path = checkpoint(
        tmp_path / "my-model", generation_config={"eos_token_id": [7, 2], "temperature": 0.5}
    )
    source = resolve_source(ModelConfig(model=str(path)))
    assert (source.name, source.path, source.format) == ("my-model", path, "safetensors")
    assert source.generation_config["temperature"] == 0.5
    assert source.eos_token_ids == (7, 2)
    plain = resolve_source(ModelConfig(model=str(checkpoint(tmp_path / "plain"))))
    assert plain.generation_config == {}
    assert plain.eos_token_ids == (2,)


@pytest.mark.parametrize("eos", ["<end>", {"content": "<end>"}])
def test_eos_of_the_tokenizer_joins(tmp_path: Path, eos: Any) -> None:
    path = checkpoint(
        tmp_path,
        tokenizer_config={"eos_token": eos},
        tokenizer={"version": "1.0", "added_tokens": [{"id": 9, "content": "<end>", "x": 1}]},
    )
    assert resolve_source(ModelConfig(model=str(path))).eos_token_ids == (2, 9)


@pytest.mark.parametrize("eos", [None, "<other>", 3])
def test_a_tokenizer_without_eos(tmp_path: Path, eos: Any) -> None:
    path = checkpoint(tmp_path, tokenizer_config={"eos_token": eos}, tokenizer={"added_tokens": []})
    assert resolve_source(ModelConfig(model=str(path))).eos_token_ids == (2,)
    (path / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        resolve_source(ModelConfig(model=str(path)))


def test_load_dummy_needs_only_a_config(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m", weights=False)
    assert resolve_source(ModelConfig(model=str(path), load_dummy=True)).config.vocab_size == 10
    with pytest.raises(ModelError, match=r"there is no \*\.safetensors in"):
        resolve_source(ModelConfig(model=str(path)))
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled and never read"):
        resolve_source(ModelConfig(model=str(path)))


def test_gguf_file(tmp_path: Path) -> None:
    metadata = llama_metadata(**{"tokenizer.ggml.eos_token_id": 5})
    path = write_gguf(tmp_path / "some-Q8.gguf", metadata, embedding())
    source = resolve_source(ModelConfig(model=str(path)))
    assert (source.name, source.path, source.format) == ("some-Q8", path, "gguf")
    assert source.eos_token_ids == (5,)
    folder = resolve_source(ModelConfig(model=str(tmp_path)))
    assert folder.path == path
    write_gguf(tmp_path / "other.gguf", metadata, embedding())
    with pytest.raises(ModelError, match=r"several .gguf files, name one: other.gguf, some-Q8"):
        resolve_source(ModelConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("", "neither an existing"),
        ("nothing-here", "neither an existing"),
        ("./nothing/here", "neither an existing"),
        ("/nothing/here", "neither an existing"),
        ("a/b/c", "neither an existing"),
        ("a/../b", "neither an existing"),
        ("owner/na me", "neither an existing"),
        ("owner/name\n", "neither an existing"),
        ("x\0y", "neither an existing"),
        ("x" * 5000, "neither an existing"),
    ],
)
def test_what_cannot_be_a_model(model: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        resolve_source(ModelConfig(model=model))
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a file but not a \.gguf file"):
        resolve_source(ModelConfig(model=str(tmp_path / "model.safetensors")))
    with pytest.raises(ModelError, match=r"neither config\.json nor a \.gguf file"):
        resolve_source(ModelConfig(model=str(tmp_path)))


class FakeHub:
    """Stands for huggingface_hub.snapshot_download: keeps the calls, gives a folder or raises."""

    def __init__(self, folder: Path | None = None, error: Exception | None = None) -> None:
        self.folder, self.error = folder, error
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, **kwargs: Any) -> str:
        self.calls.append({"repo_id": repo_id, **kwargs})
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_hub_id(tmp_path: Path, hub: FakeHub) -> None:
    hub.folder = checkpoint(tmp_path / "snapshot")
    source = resolve_source(ModelConfig(model="owner/name-1.5", revision="main"))
    assert (source.name, source.format) == ("owner/name-1.5", "safetensors")
    [call] = hub.calls
    assert (call["repo_id"], call["revision"]) == ("owner/name-1.5", "main")
    assert "*.safetensors" in call["allow_patterns"]
    assert {"*.bin", "*.pt", "*.py"} <= set(call["ignore_patterns"])


def test_hub_id_with_load_dummy_fetches_no_weights(tmp_path: Path, hub: FakeHub) -> None:
    hub.folder = checkpoint(tmp_path / "snapshot", weights=False)
    resolve_source(ModelConfig(model="owner/name", load_dummy=True))
    assert "*.safetensors" not in hub.calls[0]["allow_patterns"]


@pytest.mark.parametrize("separator", [":", "/"])
def test_gguf_file_of_a_hub_id(tmp_path: Path, hub: FakeHub, separator: str) -> None:
    hub.folder = tmp_path
    write_gguf(tmp_path / "m-Q4.gguf", llama_metadata(), embedding())
    source = resolve_source(ModelConfig(model=f"owner/name{separator}m-Q4.gguf"))
    assert (source.path, source.format) == (tmp_path / "m-Q4.gguf", "gguf")
    assert hub.calls[0]["repo_id"] == "owner/name"
    assert hub.calls[0]["allow_patterns"] == ["m-Q4.gguf"]
    with pytest.raises(ModelError, match=r"owner/name has no file none\.gguf"):
        resolve_source(ModelConfig(model=f"owner/name{separator}none.gguf"))


class _Gated(Exception):
    pass


_Gated.__name__ = "GatedRepoError"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (_Gated("long\ntext"), "is gated: accept its terms on the hub and set HF_TOKEN"),
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached; check the network"),
        (errors.HFValidationError("x"), "neither a file, a directory nor a Hugging Face id"),
        (OSError("disk\nfull"), "cannot download model owner/name: OSError: disk$"),
    ],
)
def test_the_hubs_errors_are_one_line(hub: FakeHub, error: Exception, says: str) -> None:
    hub.error = error
    with pytest.raises(ModelError, match=says) as caught:
        resolve_source(ModelConfig(model="owner/name"))
    assert "\n" not in str(caught.value)


def test_offline_is_respected(tmp_path: Path) -> None:
    """The real client, told to stay offline, with an empty cache."""
    code = (
        "from atom.models.source import *\n"
        "try:\n    resolve_source(ModelConfig(model='owner/name'))\n"
        "except ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "owner/name is not in the Hugging Face cache" in done.stdout
    assert done.stdout.count("\n") == 1


def test_imports_are_light() -> None:
    modules = ("source", "gguf", "gguf_config", "hf_config", "embedded", "hub")
    code = (
        f"import sys, {', '.join('atom.models.' + m for m in modules)}\n"
        "print([m for m in ('torch', 'transformers', 'gguf', 'huggingface_hub.hf_api')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
