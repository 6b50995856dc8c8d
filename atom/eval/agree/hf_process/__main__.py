"""A process of its own that runs transformers: requests and answers are JSON lines.

python -m atom.eval.agree.hf_process FOLDER DTYPE DEVICE

{"score": [ids], "top": k} is answered by one [tokens, logprobs] for each token but the first;
{"continue": [ids], "tokens": n, "top": k} by one for each token generated. tokens[0] is the text's
own, or the chosen one. The first line out says what was loaded, or {"error": ...}.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import torch
import transformers


def main() -> int:
    if sys.platform == "linux":  # ends with who started it, whatever ends that
        ctypes.CDLL(None).prctl(1, 15)
    folder, dtype, device = sys.argv[1:4]
    out = sys.stdout
    sys.stdout = sys.stderr  # nothing but our lines may go there
    told: Any = transformers.utils.logging
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        model, facts = _load(folder, dtype, device)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        _say(out, {"error": " ".join(str(error).split())[:300] or type(error).__name__})
        return 1
    _say(out, facts)
    for line in sys.stdin:
        _say(out, _answer(model, json.loads(line)))
    return 0


def _load(folder: str, dtype: str, device: str) -> tuple[Any, dict[str, Any]]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = "auto" if dtype == "auto" else getattr(torch, dtype)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=wanted)
    model = model.to(device).eval()
    config = model.config.get_text_config()
    facts = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device,
        "max_model_len": getattr(config, "max_position_embeddings", None),
        "vocab_size": config.vocab_size,
        "eos": _eos(model),
        "version": transformers.__version__,
    }
    return model, facts


def _eos(model: Any) -> list[int]:
    eos = model.generation_config.eos_token_id
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


@torch.inference_mode()
def _answer(model: Any, asked: dict[str, Any]) -> list[Any]:
    if "score" in asked:
        ids = asked["score"]
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        return _told(logits[:-1], ids[1:], asked["top"])
    return _continued(model, asked["continue"], asked["tokens"], asked["top"])


def _continued(model: Any, ids: list[int], count: int, top: int) -> list[Any]:
    """Greedily, with transformers' own cache; ends after an end token, which is told, too."""
    given, cache, eos = torch.tensor([ids], device=model.device), None, _eos(model)
    told: list[Any] = []
    for _ in range(count):
        out = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        chosen = int(out.logits[0, -1].argmax())
        told += _told(out.logits[0, -1:], [chosen], top)
        if chosen in eos:
            break
        given = torch.tensor([[chosen]], device=model.device)
    return told


def _told(logits: torch.Tensor, own: list[int], top: int) -> list[Any]:
    """logits [n, vocab]; own: the n tokens that count. -> n times [tokens, logprobs]."""
    logprobs = logits.float().log_softmax(-1)
    values, tokens = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    chosen = logprobs.gather(1, torch.tensor(own, device=logprobs.device)[:, None])[:, 0]
    rows = zip(own, chosen.tolist(), tokens.tolist(), values.tolist(), strict=True)
    return [
        [[token, *(t for t in likeliest if t != token)],
         [value, *(v for t, v in zip(likeliest, those, strict=True) if t != token)]]
        for token, value, likeliest, those in rows
    ]  # fmt: skip


def _say(out: Any, value: Any) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
