"""How far greedy text agrees between devices and dtypes, on the embedded model or a given one.

    python benchmarks/greedy_agreement.py [--model FILE] [--variants cpu:float32 cuda:auto
        cuda:auto:fp8] [--tokens 64] [--json FILE]

A variant is device:dtype[:kv_cache_dtype]; the first is the reference, and each further one is
compared with it and with the one before. Two measures: free running, the share of tokens before the
texts part and where that is (one token that differs changes all that follow); and teacher forcing,
the share of the reference's tokens that the variant would also have chosen, given the same text
before them, with the gap in log-probability where it would not.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of motion are",
    "A recipe for pancakes: take two eggs,",
    "In 1969, the first humans",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to",
    "The difference between a list and a tuple in Python is",
    "The sun is a star at the centre of",
    "To be, or not to be,",
    "SELECT name FROM users WHERE",
    "The main causes of the first world war were",
    "A haiku about autumn leaves:\n",
    "If x + 3 = 10, then x =",
    "The mitochondria are",
    "Breaking news: scientists have discovered",
    "1, 1, 2, 3, 5, 8,",
    "The quick brown fox",
    "Question: How do plants make food?\nAnswer:",
)


class Answer(NamedTuple):
    """What a variant generates after each prompt."""

    prompts: list[list[int]]
    tokens: list[list[int]]


class Verdict(NamedTuple):
    rank: int  # 1: this engine would have chosen it too
    gap: float  # how far its log-probability is below the best


class Engine:
    def __init__(self, model: str | None, variant: str) -> None:
        from atom.engine.llm import LLM

        device, dtype, kv = [*variant.split(":"), "auto"][:3]
        settings: dict[str, Any] = {"device": device, "dtype": dtype, "kv_cache_dtype": kv}
        self.llm = LLM(model, max_model_len=1024, max_num_seqs=32, **settings)

    def answer(self, prompts: list[list[int]], count: int) -> Answer:
        from atom.engine.sampling_params import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        results = self.llm.generate(prompts, sampling)
        return Answer(prompts, [result.outputs[0].token_ids for result in results])

    def judge(self, answer: Answer) -> list[list[Verdict]]:
        """One verdict for each token of `answer`, given the text before it."""
        from atom.engine.sampling_params import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=1)
        pairs = zip(answer.prompts, answer.tokens, strict=True)
        results = self.llm.generate([prompt + tokens for prompt, tokens in pairs], sampling)
        judged = []
        for prompt, result in zip(answer.prompts, results, strict=True):
            assert result.prompt_logprobs is not None
            records = [r for r in result.prompt_logprobs[len(prompt) :] if r is not None]
            judged.append([Verdict(r.rank, r.logprobs[1] - r.logprobs[0]) for r in records])
        return judged

    def close(self) -> None:
        self.llm.close()
        del self.llm
        gc.collect()


def compare(reference: Answer, other: Answer, judged: list[list[Verdict]]) -> dict[str, Any]:
    """The two measures of `other`, whose engine has judged the reference's tokens."""
    common = []
    for ours, theirs in zip(reference.tokens, other.tokens, strict=True):
        pairs = zip(ours, theirs, strict=True)
        common.append(next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours)))
    length = len(reference.tokens[0])
    verdicts = [verdict for each in judged for verdict in each]
    gaps = sorted(verdict.gap for verdict in verdicts if verdict.rank != 1)
    return {
        "prompts": len(common),
        "tokens_each": length,
        "equal_texts": sum(n == length for n in common),
        "tokens_before_parting": sum(common) / (length * len(common)),
        "median_parting": statistics.median(common),
        "first_parting": min(common),
        "same_choice": sum(v.rank == 1 for v in verdicts) / len(verdicts),
        "gap_median": statistics.median(gaps) if gaps else 0.0,
        "gap_worst": gaps[-1] if gaps else 0.0,
    }


def run(model: str | None, variants: list[str], count: int) -> dict[str, dict[str, Any]]:
    """ "A vs B" -> measures, for each variant against the first and against the one before."""
    answers: list[Answer] = []
    found: dict[str, dict[str, Any]] = {}
    prompts: list[list[int]] = []
    for index, variant in enumerate(variants):
        engine = Engine(model, variant)
        prompts = prompts or [engine.llm.tokenizer.encode(text) for text in PROMPTS]
        answers.append(engine.answer(prompts, count))
        for other in sorted({0, index - 1} - {-1, index}):
            judged = engine.judge(answers[other])
            name = f"{variant} against {variants[other]}"
            found[name] = compare(answers[other], answers[index], judged)
        engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded model, from atom's cache")
    parser.add_argument(
        "--variants", nargs="+", default=["cpu:float32", "cuda:auto", "cuda:auto:fp8"]
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = run(args.model, args.variants, args.tokens)
    head = ("equal texts", "before parting", "median at", "same choice", "gap where not")
    print(f"{'':40}" + "".join(f"{name:>16}" for name in head))
    for name, row in found.items():
        cells = (
            f"{row['equal_texts']}/{row['prompts']}",
            f"{row['tokens_before_parting']:.1%}",
            f"{row['median_parting']:g}/{row['tokens_each']}",
            f"{row['same_choice']:.2%}",
            f"{row['gap_median']:.3f}",
        )
        print(f"{name:40}" + "".join(f"{cell:>16}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
