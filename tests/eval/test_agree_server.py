"""The whole of --agree between servers that follow a known rule, and servers that misbehave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agree_models import VOCAB, Manners, Rule, rule_server
from cli_helpers import Ran, atom

from atom.bench.history import History
from atom.eval.agree import saved
from atom.eval.agree.types import Position

TEXTS = ["HELLO", "01234567", "<=>?@" * 4, "ABC" * 12, "WORLD:" * 5, "A" * 60]
FEW = ["--prompts", "few.txt", "--max-tokens", "12", "--top-k", "10"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATOM_HISTORY", str(tmp_path / "history.db"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.txt").write_text("\n".join(TEXTS))
    for name in ("ATOM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def off(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
    return logits * 0.8


def agree(capsys: pytest.CaptureFixture[str], reference: str, *more: str) -> Ran:
    return atom(capsys, "eval", "--agree", reference, *more)


@pytest.mark.parametrize("tested_form", ["ids", "echo"])
@pytest.mark.parametrize("form", ["ids", "echo"])
def test_equal_servers_agree(
    form: str, tested_form: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with (
        rule_server(Rule(), Manners(form)) as (a, _),
        rule_server(Rule(), Manners(tested_form)) as (
            b,
            asked,
        ),
    ):
        ran = agree(capsys, a, "--url", b, *FEW, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["verdict"] == "agree"
    assert told["result"]["all"]["agreement"] == 1
    assert told["result"]["all"]["max_kl"] < 1e-9
    assert told["result"]["decode"]["equal"] == 6
    assert told["result"]["paired_by"] == ("ids" if form == tested_form == "ids" else "texts")
    assert told["reference"]["name"] == a
    assert all(body["temperature"] == 0 and body["top_p"] == 1 for body in asked)
    assert all(isinstance(body["prompt"][0], int) for body in asked)


def test_servers_that_differ_fail_and_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with rule_server(Rule()) as (a, _), rule_server(Rule(off)) as (b, _):
        ran = agree(capsys, a, "--url", b, *FEW)
    assert ran.code == 3
    assert "verdict   the two differ" in ran.out
    assert "mean KL 0.0" in ran.out
    assert "default for unknown against unknown precision" in ran.out
    with History(None) as store:
        (run,) = store.find()
    assert run.run_id in ran.out
    assert (run.kind, run.status, run.workload["dataset"]) == ("eval", "slo_missed", "agree")
    assert run.metrics["agree/top1,none"].value == 1
    assert run.metrics["agree/mean_kl,none"].value > 0.02
    assert run.slo["agree/mean_kl,none"] == 0.02
    assert run.provenance["server"]["kind"] == "vllm"


def test_limits_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    with rule_server(Rule()) as (a, _), rule_server(Rule(off)) as (b, _):
        ran = agree(capsys, a, "--url", b, *FEW, "--max-kl", "0.5")
        assert ran.code == 0, ran.err
        assert "asked for by --max-kl" in ran.out


def test_kept_answers_are_a_reference(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The reference may be gone when the other is asked; the figures are the same."""
    kept = tmp_path / "reference.jsonl.zst"
    with rule_server(Rule(off)) as (b, _):
        with rule_server(Rule()) as (a, _):
            both = agree(capsys, a, "--url", b, *FEW, "--json", "--quiet")
            alone = agree(capsys, a, "--reference-only", "--save", str(kept), *FEW)
        assert alone.code == 0, alone.err
        assert f"kept: {kept}" in alone.out
        later = agree(capsys, str(kept), "--url", b, "--json", "--quiet")
        refused = agree(capsys, str(kept), "--url", b, "--num-prompts", "3")
    assert both.code == later.code == 3
    assert json.loads(later.out)["result"] == json.loads(both.out)["result"]
    assert refused.code == 2
    assert "--num-prompts does not go with the kept answers" in refused.err
    assert saved.load(kept).side.name == a


def test_a_damaged_file_of_answers_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept = tmp_path / "reference.jsonl.zst"
    with rule_server(Rule()) as (a, _):
        agree(capsys, a, "--reference-only", "--save", str(kept), *FEW)
        kept.write_bytes(kept.read_bytes()[:-40])
        ran = agree(capsys, str(kept), "--url", a)
    assert ran.code == 2
    assert str(kept) in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("tokens", [0, 24])
def test_kept_answers_survive_the_file(tokens: int, tmp_path: Path) -> None:
    from test_agree_compare import answers

    made = answers(Rule(), tokens=tokens)
    if not tokens:
        made.continued = []  # as where nothing is to be generated
    path = tmp_path / "kept.jsonl.zst"
    saved.save(path, made)
    assert saved.load(path) == made
    assert sorted(tmp_path.iterdir()) == [tmp_path / "few.txt", path]


REFUSALS: dict[str, tuple[Manners, str]] = {
    "only generated tokens": (Manners("generated"), "11 are due|9 are due"),
    "no logprobs": (Manners("none"), "tells no logprobs of the tokens that it generates"),
    "another tokenizer": (Manners(shift=1), "tokenize differently"),
    "small context": (Manners(max_model_len=4), "no prompt fits"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_server_cannot_do_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manners, said = REFUSALS[name]
    with rule_server(Rule()) as (a, _), rule_server(Rule(), manners) as (b, _):
        ran = agree(capsys, a, "--url", b, *FEW, "--quiet")
    assert ran.code == 2
    assert any(one in ran.err for one in said.split("|")), ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_server_without_tokenize_can_be_tested_but_is_no_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    mute = Manners(tokenizes=False)
    with rule_server(Rule()) as (a, _), rule_server(Rule(), mute) as (b, _):
        ran = agree(capsys, a, "--url", b, *FEW)
        assert ran.code == 0, ran.err
        assert "that its tokens are the same is not checked" in ran.out
        ran = agree(capsys, b, "--url", a, *FEW)
    assert ran.code == 2
    assert "has no /tokenize" in ran.err


def test_fewer_alternatives_where_a_server_allows_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with rule_server(Rule()) as (a, _), rule_server(Rule(top_k=5), Manners(most=5)) as (b, asked):
        ran = agree(capsys, a, "--url", b, *FEW, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["reference"]["top_k"], told["tested"]["top_k"]) == (10, 5)
    assert any("top 5 instead of 10 tokens" in note for note in told["notes"])
    assert asked[-1]["prompt_logprobs"] == 5


def test_prompts_beyond_the_tested_context_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with rule_server(Rule()) as (a, _), rule_server(Rule(), Manners(max_model_len=50)) as (b, _):
        ran = agree(capsys, a, "--url", b, *FEW, "--json")
    told = json.loads(ran.out)
    assert ran.code == 0, ran.err
    assert 0 < told["prompts"] < 6
    assert any("are left out" in note for note in told["notes"])


def test_long_prompts_are_cut_to_the_references_context(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with rule_server(Rule(), Manners(max_model_len=40)) as (a, asked):
        ran = agree(capsys, a, "--url", a, *FEW, "--json")
    assert ran.code == 0, ran.err
    assert "were cut to the reference's context" in ran.err
    assert max(len(body["prompt"]) for body in asked) <= 39


def test_passing_failures_are_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    flaky = Manners(fail=lambda number: 503 if number in (2, 9) else None)
    with rule_server(Rule(), flaky) as (a, asked):
        ran = agree(capsys, a, "--url", a, *FEW, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["result"]["all"]["agreement"] == 1
    assert len([body for body in asked if body == asked[2]]) >= 2


def test_a_server_that_is_gone_ends_it_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from atom.eval.agree import ask

    monkeypatch.setattr(ask, "BACKOFF_S", 0.001)
    gone = Manners(fail=lambda number: 503 if number > 3 else None)
    with rule_server(Rule(), gone) as (a, _):
        ran = agree(capsys, a, "--url", a, *FEW, "--quiet")
    assert ran.code == 1
    assert "does not answer any more: HTTP 503: told to fail" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_key_goes_to_the_side_it_is_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOM_API_KEY", "tested-key")
    with (
        rule_server(Rule(), Manners(key="reference-key")) as (a, _),
        rule_server(Rule(), Manners(key="tested-key")) as (b, _),
    ):
        refused = agree(capsys, a, "--url", b, *FEW)
        ran = agree(capsys, a, "--url", b, "--ref-api-key", "reference-key", *FEW, "--json")
    assert refused.code != 0
    assert ran.code == 0, ran.err
    with History(None) as store:
        (run,) = store.find()
    assert "-key" not in json.dumps(run.provenance).replace("api-key", "").replace("api_key", "")


def test_bundled_prompts_are_of_many_kinds_and_always_the_same() -> None:
    from atom.eval.agree import prompts

    texts = prompts.bundled(prompts.DEFAULT_COUNT)
    assert prompts.bundled(200)[: len(texts)] == texts
    kinds = {text.kind for text in texts}
    assert {"gsm8k", "prose", "long", "instruction", "coding", "math"} <= kinds
    assert len({text.text for text in texts}) == len(texts)
    lengths = [len(text.text) for text in texts]
    assert min(lengths) < 200
    assert max(lengths) == max(prompts.LONG_CHARACTERS)


def test_prompts_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "HELLO"}\n"WORLD<>"\n{"text": "ABCDEF"}\n')
    with rule_server(Rule()) as (a, _):
        ran = agree(capsys, a, "--url", a, "--prompts", str(lines), "--max-tokens", "0", "--json")
        told = json.loads(ran.out)
        assert (told["prompts"], told["prompt_tokens"], told["output_tokens"]) == (3, 18, 0)
        assert told["result"]["decode"] is None
        assert [f["name"] for f in told["result"]["by_kind"]] == ["prompts.jsonl"]
        lines.write_text('{"prompt": 3}\n')
        ran = agree(capsys, a, "--url", a, "--prompts", str(lines))
    assert ran.code == 2
    assert "prompts.jsonl:1" in ran.err


WRONG: dict[str, tuple[list[str], str]] = {
    "no reference": (["nothing"], "write a server's URL"),
    "no place to save": (["http://127.0.0.1:9", "--reference-only"], "--save"),
    "name of the file": (["http://127.0.0.1:9", "--save", "x.json"], ".jsonl.zst"),
    "option of hf": (["hf:x,dtype=int3"], "int3"),
    "limit": (["http://127.0.0.1:9", "--min-agreement", "98"], "--min-agreement 98"),
    "two tested sides": (["http://a", "--url", "http://b", "--recipe", "c.toml"], "give one"),
    "no such recipe": (["missing.toml"], "missing.toml"),
    "nobody there": (["http://127.0.0.1:9"], "127.0.0.1:9"),
    "no model": (["hf:/nowhere/at/all"], "/nowhere/at/all"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments, said = WRONG[name]
    ran = agree(capsys, *arguments, "--quiet")
    assert ran.code == (1 if name == "nobody there" else 2)
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_positions_that_a_server_leaves_out_are_no_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server that skips the prompt's own token where it is not among the likeliest."""

    class Forgets(Rule):
        def score(self, texts: Sequence[Sequence[int]]) -> list[list[Position]]:
            rows = super().score(texts)
            return [[Position(p.tokens[1:], p.logprobs[1:]) for p in row] for row in rows]

    with rule_server(Rule()) as (a, _), rule_server(Forgets()) as (b, _):
        ran = agree(capsys, a, "--url", b, *FEW)
    assert ran.code == 2
    assert "does not tell the prompt's token" in ran.err


def test_all_tokens_told_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    wide = Manners(most=VOCAB)
    whole: Any = Rule(top_k=VOCAB)
    with rule_server(whole, wide) as (a, _):
        ran = agree(capsys, a, "--url", a, *FEW, "--top-k", str(VOCAB))
    assert ran.code == 0, ran.err
    assert "lower bound" not in ran.out


def test_a_header_that_is_none_is_refused_without_showing_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = agree(capsys, "http://127.0.0.1:1", "--header", "hunter2")
    assert ran.code == 2
    assert "--header: write NAME=VALUE" in ran.err
    assert "hunter2" not in ran.err + ran.out
