"""Are `atom eval`'s scores those of lm-eval's own `hf` backend on the same weights, in float32?

    python benchmarks/eval_parity.py DIR [--limit N] [--gsm8k-limit 50] [--hf hf.json]
        [--via ours|stock] [--url URL] [--json parity.json]

Every bundled task runs twice: by lm-eval's `hf` model in a process of its own (`eval_stock.py`),
and over HTTP against `atom serve DIR`, by `atom eval` (or, --via stock, by lm-eval's own
`local-completions`). Compared are prompts, each log-likelihood, is_greedy, accuracies, and
generated texts. Where two texts part, transformers says how far apart the two tokens are, in
float32 and in float64: a difference below --tie is a tie that rounding decides. The hf side takes
minutes: --hf keeps it in a file and uses it when the settings match. Exit code 1: not equal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from eval_ours import served_model
from eval_stock import BLIMP, DATA, Answer, Answers, read_answers

HERE = Path(__file__).resolve().parent
SCORED = ("arc_easy", "lambada_openai", "copa", *BLIMP)
GENERATED = ("gsm8k",)
Results = dict[str, dict[str, float]]  # task -> "metric,filter" -> value


class Side(NamedTuple):
    """One way of evaluating, over all tasks."""

    answers: Answers
    results: Results


def metrics_of(results: dict[str, dict[str, Any]]) -> Results:
    """lm-eval's table without standard errors and facts."""
    return {
        task: {k: float(v) for k, v in row.items() if "," in k and "_stderr," not in k}
        for task, row in results.items()
    }


def compare_task(ours: Sequence[Answer], theirs: Sequence[Answer], limit: float) -> dict[str, Any]:
    """Both sides of one task. `limit`: the largest difference of two equal log-likelihoods."""
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    pairs = list(zip(ours, theirs, strict=True))
    row: dict[str, Any] = {
        "documents": len(pairs),
        "prompts_differ": sum((a.prompt, a.choices) != (b.prompt, b.choices) for a, b in pairs),
    }
    if theirs[0].text is not None:
        parted = [index for index, (a, b) in enumerate(pairs) if a.text != b.text]
        return {**row, "texts_equal": 1 - len(parted) / len(pairs), "parted": parted}
    deltas = np.array(
        [abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    )
    flips = [g != h for a, b in pairs for g, h in zip(a.greedy, b.greedy, strict=True)]
    return {
        **row,
        "loglikelihoods": len(deltas),
        "delta_max": float(deltas.max()),
        "delta_p99": float(np.quantile(deltas, 0.99)),
        "over": int((~(deltas <= limit)).sum()),
        "greedy_differ": sum(flips),
        "worst": worst(pairs),
    }


def worst(pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, Any]:
    """The continuation whose log-likelihoods differ most."""
    places = [
        (abs(x - y), doc, choice)
        for doc, (a, b) in enumerate(pairs)
        for choice, (x, y) in enumerate(zip(a.logprobs, b.logprobs, strict=True))
    ]
    _, doc, choice = max(places)
    ours, theirs = pairs[doc]
    return {
        "doc_id": doc,
        "choice": choice,
        "ours": ours.logprobs[choice],
        "theirs": theirs.logprobs[choice],
    }


def scores_differ(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """Names of metrics that are not the same; perplexities may differ by one in a thousand."""
    found = sorted(set(ours) ^ set(theirs))
    for name in sorted(set(ours) & set(theirs)):
        room = 1e-3 * abs(theirs[name]) if name.startswith("perplexity") else 1e-12
        if abs(ours[name] - theirs[name]) > room:
            found.append(name)
    return found


class Explainer:
    """What transformers says at the place where two generated texts part."""

    def __init__(self, path: Path) -> None:
        import transformers

        load = transformers.AutoModelForCausalLM.from_pretrained
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self._models = {name: load(path, dtype=name).eval() for name in ("float32", "float64")}

    def explain(self, prompt: str, ours: str, theirs: str) -> dict[str, Any]:
        """The two tokens and the gap of their logits: positive, where `theirs` is the larger."""
        head = self._tokenizer(prompt)["input_ids"]
        a, b = (self._ids(text) for text in (ours, theirs))
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if common is None:  # one ended where the other went on
            common = min(len(a), len(b))
        logits = {name: self._logits(name, head + a[:common]) for name in self._models}
        # A text that ends here ended with a token that it does not show: the likeliest one.
        first, second = (
            ids[common] if common < len(ids) else int(logits["float64"].argmax()) for ids in (a, b)
        )
        return {
            "tokens_before": common,
            "ours": self._tokenizer.decode([first]),
            "theirs": self._tokenizer.decode([second]),
            "gap": {name: float(row[second] - row[first]) for name, row in logits.items()},
            "largest_of_all": {
                name: int(row.argmax()) in (first, second) for name, row in logits.items()
            },
        }

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _logits(self, name: str, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self._models[name](torch.tensor([ids]), logits_to_keep=1).logits[0, -1]


def explain_all(
    path: Path, ours: Sequence[Answer], theirs: Sequence[Answer], parted: Sequence[int]
) -> list[dict[str, Any]]:
    if not parted:
        return []
    explainer = Explainer(path)
    found = []
    for doc in parted:
        a, b = ours[doc], theirs[doc]
        assert a.text is not None
        assert b.text is not None
        found.append({"doc_id": doc, **explainer.explain(b.prompt, a.text, b.text)})
    return found


def run_script(script: str, tasks: Sequence[str], flags: Sequence[str]) -> Side:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.json"
        command = [sys.executable, str(HERE / script), "--tasks", *tasks, "--out", str(out), *flags]
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        answers, facts = read_answers(out)
    return Side(answers, metrics_of(facts["results"]))


def run_stock(
    args: argparse.Namespace, tasks: Sequence[str], limit: int | None, *model: str
) -> Side:
    """`eval_stock.py` in a process of its own."""
    flags = ["--path", str(args.path), "--data", str(args.data), *model]
    flags += ["--threads", str(args.threads)] if args.threads else []
    flags += ["--limit", str(limit)] if limit else []
    return run_script("eval_stock.py", tasks, flags)


def run_ours(url: str, tasks: Sequence[str], limit: int | None) -> Side:
    """`eval_ours.py` in a process of its own."""
    flags = ["--url", url, *(["--limit", str(limit)] if limit else [])]
    return run_script("eval_ours.py", tasks, flags)


@contextmanager
def server(args: argparse.Namespace, log: Path) -> Iterator[str]:
    """`atom serve DIR` in float32, or the one at --url."""
    from atom.bench.server_process import RecipeServer

    if args.url:
        yield args.url
        return
    flags = ["--dtype", "float32", "--num-threads", str(args.threads or 0), *args.server_args]
    with RecipeServer(args.path, log, args=flags) as running:
        yield running.url


def hf_side(args: argparse.Namespace, groups: Sequence[tuple[Sequence[str], int | None]]) -> Side:
    """lm-eval's `hf` model; from the file --hf if it holds the same."""
    key = {"path": args.path.name, "groups": [[list(tasks), limit] for tasks, limit in groups]}
    if args.hf and args.hf.exists():
        answers, facts = read_answers(args.hf)
        if facts["key"] == key:
            return Side(answers, facts["results"])
        raise SystemExit(f"--hf {args.hf}: made with {facts['key']}, wanted {key}; remove it")
    model = ("--model", "hf", "--batch-size", args.hf_batch_size)
    side = joined([run_stock(args, tasks, limit, *model) for tasks, limit in groups])
    if args.hf:
        args.hf.write_text(
            json.dumps({"key": key, "results": side.results, "answers": side.answers}) + "\n"
        )
    return side


def our_side(args: argparse.Namespace, groups: Sequence[tuple[Sequence[str], int | None]]) -> Side:
    with tempfile.TemporaryDirectory() as folder, server(args, Path(folder) / "log") as url:
        if args.via == "ours":
            return joined([run_ours(url, tasks, limit) for tasks, limit in groups])
        model = ["--model", "local-completions", "--url", url, "--name", served_model(url)]
        model += ["--concurrency", "4", "--batch-size", "8"]
        scored = [run_stock(args, tasks, limit, *model) for tasks, limit in groups]
        return joined(scored)


def joined(sides: Sequence[Side]) -> Side:
    return Side(
        {k: v for side in sides for k, v in side.answers.items()},
        {k: v for side in sides for k, v in side.results.items()},
    )


def print_table(rows: dict[str, dict[str, Any]], limit: float) -> None:
    head = f"{'task':46}{'docs':>6}{'values':>8}{'max |d|':>10}{'p99 |d|':>10}"
    print(head + f"{f'> {limit:g}':>8}{'greedy':>8}{'texts':>8}  metrics (ours, hf)")
    for task, row in rows.items():
        cells = f"{task:46}{row['documents']:>6}"
        if "texts_equal" in row:
            cells += " " * 44 + f"{row['texts_equal']:>8.1%}"
        else:
            cells += f"{row['loglikelihoods']:>8}{row['delta_max']:>10.1e}{row['delta_p99']:>10.1e}"
            cells += f"{row['over']:>8}{row['greedy_differ']:>8}{'':8}"
        scores = [
            f"{name.removesuffix(',none')} {ours:.4f} {theirs:.4f}"
            for name, (ours, theirs) in row["scores"].items()
        ]
        print(f"{cells}  {'; '.join(scores)}" + ("" if row["ok"] else "  NOT EQUAL"))
        if row["prompts_differ"]:
            print(f"    {row['prompts_differ']} prompts differ")
        for found in row.get("explained", ()):
            gap = found["gap"]
            print(
                f"    document {found['doc_id']}: after {found['tokens_before']} tokens "
                f"{found['ours']!r}, hf {found['theirs']!r}; the logits' gap is "
                f"{gap['float32']:+.1e} in float32, {gap['float64']:+.1e} in float64"
            )


def judge(task: str, ours: Side, theirs: Side, args: argparse.Namespace) -> dict[str, Any]:
    row = compare_task(ours.answers[task], theirs.answers[task], args.max_delta)
    a, b = ours.results[task], theirs.results[task]
    row["scores"] = {name: (a[name], b[name]) for name in sorted(set(a) & set(b))}
    row["scores_differ"] = scores_differ(a, b)
    if "parted" in row:
        pair = ours.answers[task], theirs.answers[task]
        row["explained"] = explain_all(args.path, *pair, row["parted"])
        row["unexplained"] = [
            e["doc_id"] for e in row["explained"] if abs(e["gap"]["float64"]) > args.tie
        ]
        equal = row["texts_equal"] >= args.min_equal and not row["unexplained"]
    else:
        equal = not row["over"] and not row["greedy_differ"] and not row["scores_differ"]
    row["ok"] = equal and not row["prompts_differ"]
    return row


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("path", type=Path, metavar="DIR", help="HF folder with the weights and the tokenizer")
    add("--tasks", nargs="+", choices=(*SCORED, *GENERATED), default=(*SCORED, *GENERATED))
    add("--limit", type=int, help="documents of each scored task")
    add("--gsm8k-limit", type=int, default=50)
    add("--hf", type=Path, help="file that keeps the hf side")
    add("--hf-batch-size", default="8")
    add("--via", choices=("ours", "stock"), default="ours")
    add("--url", help="a running server of the same weights in float32")
    add("--server-args", nargs="*", default=[], help="more flags of atom serve")
    add("--threads", type=int)
    add("--data", type=Path, default=DATA)
    add("--max-delta", type=float, default=1e-3, help="of two log-likelihoods")
    add("--min-equal", type=float, default=0.98, help="share of generated texts")
    add("--tie", type=float, default=1e-3, help="largest gap of two logits that is a tie")
    add("--json", type=Path)
    args = parser.parse_args(argv)
    args.path = args.path.resolve()
    wanted: list[tuple[Sequence[str], int | None]] = [
        ([task for task in SCORED if task in args.tasks], args.limit),
        ([task for task in GENERATED if task in args.tasks], args.gsm8k_limit),
    ]
    groups = [(tasks, limit) for tasks, limit in wanted if tasks]
    theirs, ours = hf_side(args, groups), our_side(args, groups)
    rows = {task: judge(task, ours, theirs, args) for tasks, _ in groups for task in tasks}
    print_table(rows, args.max_delta)
    if args.json:
        args.json.write_text(json.dumps({"via": args.via, "tasks": rows}, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
