"""Faults planted in a small transformers model are found; and the whole against a real server."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cli_helpers import atom, serving
from test_agree_compare import verdict

from atom.bench.history import History
from atom.eval.agree.compare import compare
from atom.eval.agree.findings import Report
from atom.eval.agree.types import Answers, Continuation, Position, Prompt, Side

FAMILY = "llama2"
VOCAB = 263  # no tokens beyond the tokenizer's
TOP = 20
LENGTHS = (8, 30, 90)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.make_tiny(FAMILY, folder, vocab_size=VOCAB)


@dataclass
class InProcess:
    """A transformers model, asked here."""

    model: Any
    name: str = "model"
    texts: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def side(self) -> Side:
        return Side(name=self.name, model="tiny", kind="atom", precision="float32", top_k=TOP)

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        logits = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        found: torch.Tensor = logits.float().log_softmax(-1)
        return found

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[Position]]:
        return [
            [_position(row, own) for row, own in zip(self.logprobs(ids), ids[1:], strict=False)]
            for ids in texts
        ]

    def continue_(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Continuation]:
        made = []
        for prompt in prompts:
            ids, told = list(prompt), []
            for _ in range(max_tokens):
                row = self.logprobs(ids)[-1]
                ids.append(int(row.argmax()))
                told.append(_position(row, ids[-1]))
            made.append(Continuation("", told, "length"))
        return made


def _position(row: torch.Tensor, own: int) -> Position:
    values, tokens = row.topk(TOP)
    rest = [(t, v) for t, v in zip(tokens.tolist(), values.tolist(), strict=True) if t != own]
    return Position([own, *(t for t, _ in rest)], [float(row[own]), *(v for _, v in rest)])


def asked(model: Any, outputs: list[list[int]] | None = None) -> Answers:
    side = InProcess(model)
    prompts = [
        Prompt("bytes", "", [t % VOCAB for t in tiny.random_prompt(n, seed=n)]) for n in LENGTHS
    ]
    continued = side.continue_([p.ids for p in prompts], 12)
    if outputs is None:
        outputs = [[int(p.tokens[0]) for p in answer.positions] for answer in continued]
    whole = [[*p.ids, *out] for p, out in zip(prompts, outputs, strict=True)]
    return Answers(
        side=side.side,
        prompts=prompts,
        outputs=outputs,
        continued=continued,
        scored=side.score(whole),
        max_tokens=12,
    )


def fault(checkpoint: Path, plant: Callable[[Any], None]) -> Report:
    good = tiny.reference_model(checkpoint)
    bad = copy.deepcopy(good)
    with torch.no_grad():
        plant(bad)
    reference = asked(good)
    return compare(reference, asked(bad, reference.outputs))


def nothing(model: Any) -> None:
    pass


def a_weight_that_is_a_little_off(model: Any) -> None:
    """As of a scale that was rounded: one matrix of one layer, by half a percent."""
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.mul_(1.005)


def a_wrong_rope(model: Any) -> None:
    """The base of the rotary embedding is 2 % off: the further, the worse."""
    rope = model.model.rotary_emb
    exponents = torch.arange(len(rope.inv_freq)) / len(rope.inv_freq)
    rope.inv_freq.copy_(rope.inv_freq / 1.02**exponents)


def swapped_kv_heads(model: Any) -> None:
    """Two query groups of one layer read each other's keys and values."""
    attention = model.model.layers[2].self_attn
    size = attention.head_dim
    for projection in (attention.k_proj, attention.v_proj):
        heads = projection.weight.view(-1, size, projection.weight.shape[-1])
        heads[[0, 1]] = heads[[1, 0]].clone()


def test_a_model_agrees_with_itself(checkpoint: Path) -> None:
    found = fault(checkpoint, nothing)
    assert found.all.agreement == 1
    assert found.all.max_kl < 1e-9
    assert verdict(found).good


@pytest.mark.parametrize("plant", [a_weight_that_is_a_little_off, a_wrong_rope])
def test_small_faults_are_found_though_the_likeliest_tokens_stay(
    plant: Callable[[Any], None], checkpoint: Path
) -> None:
    found = fault(checkpoint, plant)
    assert found.all.agreement > 0.95
    assert "agree/mean_kl,none" in {one.metric for one in verdict(found).missed}


def test_a_wrong_rope_grows_with_the_position(checkpoint: Path) -> None:
    found = fault(checkpoint, a_wrong_rope)
    by = {figures.name: figures.mean_kl for figures in found.by_position}
    assert by["64-255"] > 4 * by["1-15"]


def test_a_swapped_kv_head_is_found(checkpoint: Path) -> None:
    missed = verdict(fault(checkpoint, swapped_kv_heads)).missed
    assert {"agreement", "mean KL"} <= {one.what for one in missed}
    assert all(one.beyond_noise for one in missed if one.what == "mean KL")


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[str]:
    with serving(str(checkpoint), "--dtype", "float32") as url:
        yield url


def test_a_real_server_agrees_with_transformers(
    served: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """And with what transformers said before, kept in a file."""
    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "history.db"))
    texts = tmp_path / "texts.txt"
    texts.write_text("The quick brown fox\n" + "jumps over the lazy dog. " * 9 + "\nHi\n")
    kept = tmp_path / "transformers.jsonl.zst"
    ran = atom(
        capsys, "eval", "--agree", f"hf:{checkpoint},device=cpu", "--url", served, "--json",
        "--prompts", str(texts), "--max-tokens", "8", "--save", str(kept),
        "--max-kl", "1e-6", "--min-agreement", "0.999",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["result"]["all"]["agreement"] == 1
    assert told["result"]["all"]["mean_kl"] < 1e-7
    assert told["tested"]["top_k"] == 20 < told["reference"]["top_k"]
    assert told["result"]["decode"]["equal"] == 3
    assert told["reference"]["precision"] == "float32"
    again = atom(capsys, "eval", "--agree", str(kept), "--url", served, "--json", "--quiet")
    assert json.loads(again.out)["result"]["all"]["places"] == told["result"]["all"]["places"]
    with History(None) as store:
        assert [run.status for run in store.find()] == ["ok", "ok"]


def test_a_server_agrees_with_itself(
    served: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "history.db"))
    (tmp_path / "texts.txt").write_text("Once upon a time\n" * 3)
    ran = atom(
        capsys, "eval", "--agree", served, "--url", served, "--json", "--concurrency", "1",
        "--prompts", str(tmp_path / "texts.txt"), "--max-tokens", "4",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)["result"]
    assert result["all"]["agreement"] == 1
    assert result["all"]["max_kl"] < 1e-9
