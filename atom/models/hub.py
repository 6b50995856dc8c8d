"""The one door to the Hugging Face hub: chosen files of a snapshot, never code, never pickles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atom.errors import ModelError

JSON_PATTERNS = ("*.json",)
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "*.jinja",
    "config.json",
)
WEIGHT_PATTERNS = ("*.safetensors",)
NEVER = ("*.bin", "*.pt", "*.pth", "*.py", "*.pkl", "*.ckpt", "*.h5", "*.msgpack")


def download(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The local folder of a snapshot holding the files that match `patterns`.

    `HF_HUB_OFFLINE`, `HF_TOKEN` and `HF_HOME` are respected. Raises `ModelError` in one line.
    """
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo_id, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(NEVER)
        )
    except Exception as error:  # the hub's client and everything below it: all mean "no files"
        raise ModelError(_explain(repo_id, revision, error)) from None
    return Path(found)


def _explain(repo_id: str, revision: str | None, error: Exception) -> str:
    """Why the hub gave nothing, by the class of the client's error, and what to do."""
    name = repo_id if revision is None else f"{repo_id} at {revision}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return f"model {name} is gated: accept its terms on the hub and set HF_TOKEN"
    if "RevisionNotFoundError" in kinds:
        return f"model {repo_id} has no revision {revision!r}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no model {name} on the hub, or it is private (then set HF_TOKEN)"
    if "HFValidationError" in kinds:
        return f"{repo_id!r} is neither a file, a directory nor a Hugging Face id (owner/name)"
    if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
        return (
            f"model {name} is not in the Hugging Face cache and the hub cannot be reached;"
            " check the network and HF_HUB_OFFLINE, or give a local directory"
        )
    first = str(error).strip().splitlines() or [""]
    return f"cannot download model {name}: {type(error).__name__}: {first[0]}"
