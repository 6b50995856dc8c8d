"""Two sides whose distributions are known: the figures, and planted faults that must be found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agree_models import VOCAB, Change, Rule, encode, full_kl, log_softmax, rule, unchanged

from atom.eval.agree import limits, report
from atom.eval.agree.compare import compare
from atom.eval.agree.findings import Report
from atom.eval.agree.types import Answers, Model, Prompt, Side

PROMPTS = ["01234567", "HELLO:WORLD", "ABC" * 30, "<=>?@" * 8]


def answers(model: Model, reference: Answers | None = None, tokens: int = 24) -> Answers:
    """What a side says; without a reference its own continuations are scored."""
    asked = [Prompt("text", text, encode(text)) for text in PROMPTS]
    continued = model.continue_([p.ids for p in asked], tokens)
    outputs = reference.outputs if reference else model.output_ids(asked, continued)[0]
    whole = [[*p.ids, *out] for p, out in zip(asked, outputs, strict=True)]
    return Answers(
        side=model.side,
        prompts=asked,
        outputs=outputs,
        continued=continued,
        scored=model.score(whole),
        texts=model.texts,
        max_tokens=tokens,
    )


def against(change: Change, top_k: int = 10) -> Report:
    reference = answers(Rule(top_k=top_k))
    return compare(reference, answers(Rule(change, top_k=top_k), reference))


def verdict(found: Report, precision: str = "float32") -> limits.Verdict:
    side = Side(name="", model="", kind="atom", precision=precision)
    return limits.judge(found, limits.choose(side, side, None, None))


def test_a_side_agrees_with_itself() -> None:
    found = against(unchanged)
    assert found.all.agreement == 1
    assert found.all.max_kl == 0
    assert found.decode is not None
    assert (found.decode.equal, found.decode.splits) == (len(PROMPTS), [])
    assert verdict(found).good
    assert report.hints(found, verdict(found)) == []


def shifted(amount: float) -> Change:
    def change(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        return logits + amount * np.sin(np.arange(VOCAB) * (1 + len(context)))

    return change


def test_figures_are_those_of_the_whole_distributions() -> None:
    """With every token told: agreement, mean KL and perplexities by brute force."""
    reference = answers(Rule(top_k=VOCAB))
    tested = answers(Rule(shifted(0.4), top_k=VOCAB), reference)
    found = compare(reference, tested)
    divergences, same, delta = [], [], []
    for prompt, output in zip(reference.prompts, reference.outputs, strict=True):
        ids = [*prompt.ids, *output]
        for i in range(1, len(ids)):
            p = log_softmax(rule(ids[:i]))
            q = log_softmax(shifted(0.4)(ids[:i], rule(ids[:i]), False))
            divergences.append(full_kl(p, q))
            same.append(p.argmax() == q.argmax())
            delta.append(p[ids[i]] - q[ids[i]])
    assert found.exact
    assert found.all.places == len(divergences)
    assert found.all.mean_kl == pytest.approx(np.mean(divergences), rel=1e-9)
    assert found.all.max_kl == pytest.approx(max(divergences), rel=1e-9)
    assert found.all.agreement == pytest.approx(np.mean(same))
    assert found.all.ppl_ratio == pytest.approx(np.exp(np.mean(delta)))
    assert found.disagreements == len(same) - sum(same) > 0
    assert found.agreement.low <= found.all.agreement <= found.agreement.high
    assert found.mean_kl.low <= found.all.mean_kl <= found.mean_kl.high


def test_less_told_is_a_lower_bound_and_says_so() -> None:
    few, all_told = against(shifted(0.4), top_k=5), against(shifted(0.4), top_k=VOCAB)
    assert not few.exact
    assert 0 < few.all.mean_kl <= all_told.all.mean_kl
    assert few.all.agreement == all_told.all.agreement


def test_a_fault_that_argmax_hides_is_found() -> None:
    """Every distribution is a little off and no likeliest token changes: no score would."""

    def flatter(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        return logits * 0.98

    found = against(flatter)
    assert found.all.agreement == 1
    missed = {one.metric for one in verdict(found).missed}
    assert missed == {"agree/mean_kl,none", "agree/decode_mean_kl,none"}


def test_a_broken_decode_path_is_found() -> None:
    """Scoring is right; decoding alone is not."""

    def broken(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        return -logits if decoding and len(context) % 16 == 0 else logits

    found = against(broken)
    assert found.all.agreement == 1
    assert found.decode is not None
    assert found.decode.equal == 0
    judged = verdict(found)
    assert {one.what for one in judged.missed} == {"decode agreement", "decode mean KL"}
    assert "scoring agrees and decoding does not" in " ".join(report.hints(found, judged))
    for split in found.decode.splits:
        assert (len(found_ids(split.prompt)) + split.position) % 16 == 0
        assert split.margin is not None
        assert split.margin > 1


def found_ids(prompt: int) -> list[int]:
    return encode(PROMPTS[prompt])


def test_a_tie_that_rounding_turns_is_told_by_its_margin() -> None:
    def tied(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        order = np.argsort(-logits)
        logits = logits.copy()
        logits[order[1]] = logits[order[0]] + (1e-6 if len(context) == 14 else -1e-6)
        return logits

    def near(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        order = np.argsort(-logits)
        logits = logits.copy()
        logits[order[1]] = logits[order[0]] - 1e-6
        return logits

    reference = answers(Rule(near))
    found = compare(reference, answers(Rule(tied), reference))
    assert found.disagreements == found.ties > 0
    assert found.decode is not None
    assert found.decode.splits
    assert all(abs(split.margin or 1) < 1e-5 for split in found.decode.splits)


def test_what_grows_with_the_position_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wrong rotary embedding or a damaged KV cache does."""

    def later(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        return logits * (1 + 0.004 * len(context))

    reference = answers(Rule(), tokens=120)
    found = compare(reference, answers(Rule(later), reference, tokens=120))
    by = [f.mean_kl for f in found.by_position]
    assert by == sorted(by)
    monkeypatch.setattr(report, "MIN_PLACES", 20)
    hints = report.hints(found, verdict(found))
    assert any(hint.startswith("it grows with the position") for hint in hints)


def test_one_bad_place_is_among_the_worst() -> None:
    def once(context: Sequence[int], logits: np.ndarray, decoding: bool) -> np.ndarray:
        if len(context) == 20 and not decoding and list(context[:3]) == encode("ABC"):
            return -logits
        return logits

    found = against(once)
    worst = found.worst[0]
    assert (worst.prompt, worst.position, worst.part) == (2, 20, "prompt")
    # Scored texts begin with their second token.
    assert (worst.before + worst.token) == ("ABC" * 7)[1:21]
    assert worst.kl == found.all.max_kl > 1
    assert all(other.kl == 0 for other in found.worst[1:])


@pytest.mark.parametrize("as_texts", ["reference", "tested", "both"])
def test_sides_that_tell_no_ids_are_paired_by_text(as_texts: str) -> None:
    reference = answers(Rule())
    tested = answers(Rule(shifted(0.4)), reference)
    by_ids = compare(reference, tested)
    if as_texts != "tested":
        reference.scored = in_texts(reference)
    if as_texts != "reference":
        tested.scored = in_texts(tested)
    found = compare(reference, tested)
    assert found.paired_by == "texts"
    assert found.all == by_ids.all
    assert found.worst == by_ids.worst


def in_texts(side: Answers) -> Any:
    from atom.eval.agree.pairing import in_texts as as_texts

    return as_texts(side.scored, side.texts)


def test_texts_written_otherwise_cannot_be_paired() -> None:
    reference = answers(Rule())
    tested = answers(Rule(), reference)
    tested.texts = {token: f"<{token}>" for token in range(VOCAB)}
    reference.scored = in_texts(reference)
    with pytest.raises(Exception, match="write tokens differently"):
        compare(reference, tested)


def test_no_module_needs_torch() -> None:
    """But for the program that runs transformers."""
    import subprocess
    import sys

    folder = Path(report.__file__).parent
    names = [f"atom.eval.agree.{path.stem}" for path in sorted(folder.glob("*.py"))]
    heavy = "[m for m in ('torch', 'transformers') if m in sys.modules]"
    code = f"import {', '.join(names)}, sys; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
