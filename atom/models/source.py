"""From what the user typed to files on this machine: which model, where, and its configuration.

Nothing here loads weights or knows which architectures exist; that is the registry's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from atom.config.schema import ModelConfig
from atom.errors import ModelError
from atom.models import hub
from atom.models.embedded import EMBEDDED, embedded_gguf
from atom.models.gguf import GGUFFile
from atom.models.gguf_config import config_from_gguf, generation_config_from_gguf
from atom.models.hf_config import HFConfig, read_json_object, token_ids

# owner/name, then optionally a GGUF file of the repository after ":" or "/"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?:[:/](?P<file>[\w./-]+\.gguf))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on this machine. `path` is a directory (safetensors) or a .gguf file."""

    name: str
    path: Path
    format: Literal["gguf", "safetensors"]
    config: HFConfig
    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_eos: int | None = None  # what the tokenizer's own config calls EOS

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text: what the generation config, the config and the tokenizer say,
        together (some chat models name the end of a turn only in the last)."""
        said = (
            self.generation_config.get("eos_token_id"),
            self.config.get("eos_token_id"),
            self.tokenizer_eos,
        )
        return tuple(dict.fromkeys(i for ids in said for i in token_ids(ids)))


def resolve_source(cfg: ModelConfig) -> ModelSource:
    """Find the model of `cfg`, downloading it if it is a hub id (or the embedded default).

    With `load_dummy` a config.json is enough and no weights are fetched. Raises `ModelError` in
    one line for anything that cannot be found or read.
    """
    if cfg.model is None:
        return _from_gguf(embedded_gguf(), EMBEDDED.name)
    path = Path(os.path.expanduser(cfg.model))
    if cfg.model and os.path.isdir(path):
        return _from_directory(path, path.resolve().name, cfg)
    if os.path.isfile(path):
        if path.suffix != ".gguf":
            raise ModelError(
                f"model {cfg.model} is a file but not a .gguf file; give the directory that holds"
                " config.json and *.safetensors"
            )
        return _from_gguf(path, path.stem)
    return _from_hub(cfg.model, cfg)


def _from_hub(name: str, cfg: ModelConfig) -> ModelSource:
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith("."):
        raise ModelError(
            f"model {name!r} is neither an existing directory or .gguf file nor a Hugging Face id"
            " (owner/name)"
        )
    repo, file = match["repo"], match["file"]
    if file is not None:
        folder = hub.download(repo, cfg.revision, [file])
        if not (folder / file).is_file():
            raise ModelError(f"model {repo} has no file {file}")
        return _from_gguf(folder / file, name)
    patterns = [*hub.JSON_PATTERNS, *hub.TOKENIZER_PATTERNS]
    if not cfg.load_dummy:
        patterns += hub.WEIGHT_PATTERNS
    return _from_directory(hub.download(repo, cfg.revision, patterns), name, cfg)


def _from_gguf(path: Path, name: str) -> ModelSource:
    file = GGUFFile(path)
    return ModelSource(
        name=name,
        path=path,
        format="gguf",
        config=config_from_gguf(file),
        generation_config=generation_config_from_gguf(file),
    )


def _from_directory(path: Path, name: str, cfg: ModelConfig) -> ModelSource:
    if not (path / "config.json").is_file():
        return _only_gguf(path, name)
    if not cfg.load_dummy and not any(path.glob("*.safetensors")):
        others = sorted(p.name for ext in ("*.bin", "*.pt", "*.pth") for p in path.glob(ext))
        hint = f" ({others[0]} is pickled and never read)" if others else ""
        raise ModelError(f"model {name}: there is no *.safetensors in {path}{hint}")
    generation = path / "generation_config.json"
    return ModelSource(
        name=name,
        path=path,
        format="safetensors",
        config=HFConfig.from_file(path / "config.json"),
        generation_config=read_json_object(generation) if generation.is_file() else {},
        tokenizer_eos=_tokenizer_eos(path),
    )


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _AddedTokens(msgspec.Struct):
    """The one part of tokenizer.json that is wanted here; the rest is skipped, not built."""

    added_tokens: list[_AddedToken] = []


def _tokenizer_eos(path: Path) -> int | None:
    """The id of tokenizer_config.json's `eos_token`, looked up among the added tokens."""
    if not (path / "tokenizer_config.json").is_file() or not (path / "tokenizer.json").is_file():
        return None
    eos = read_json_object(path / "tokenizer_config.json").get("eos_token")
    text = eos.get("content") if isinstance(eos, dict) else eos
    if not isinstance(text, str):
        return None
    try:
        found = msgspec.json.decode((path / "tokenizer.json").read_bytes(), type=_AddedTokens)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path / 'tokenizer.json'} cannot be read: {error}") from None
    return next((t.id for t in found.added_tokens if t.content == text), None)


def _only_gguf(path: Path, name: str) -> ModelSource:
    """A directory without config.json: a single GGUF file in it is meant."""
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise ModelError(f"model {name}: there is neither config.json nor a .gguf file in {path}")
    if len(files) > 1:
        names = ", ".join(p.name for p in files)
        raise ModelError(f"model {name}: {path} holds several .gguf files, name one: {names}")
    return _from_gguf(files[0], files[0].stem)
