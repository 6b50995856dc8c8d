"""`atom eval` on bundled tasks against a server, timed by phase, answers in eval_stock.py's form.

    python benchmarks/eval_ours.py --url http://HOST:PORT --tasks arc_easy copa --limit 40 \
        --out ours.json

The parts of `atom eval` without its settings, display and history, which `eval_speed.py` times as
the whole command. "asked" is from the first to the last question to the server, tokenisation and
all that lies between included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_stock import Answer, Answers, Phases, write_answers

if TYPE_CHECKING:
    from atom.eval.types import EvalOutcome, Sample

ASKING = ("score", "score_rolling", "generate", "tokenize", "special_tokens")


def answer_of(sample: Sample) -> Answer:
    said = sample.answers
    if "logprob" not in said[0]:
        return Answer(sample.prompt, sample.metrics, [], [], [], said[0]["text"])
    return Answer(
        sample.prompt,
        sample.metrics,
        [each["text"] for each in said],
        [each["logprob"] for each in said],
        [each["is_greedy"] for each in said],
    )


def side_of(outcome: EvalOutcome) -> tuple[Answers, dict[str, dict[str, float]]]:
    """Answers by task and document, and the scores."""
    answers: Answers = {}
    for sample in sorted(outcome.samples, key=lambda sample: (sample.task, sample.doc_id)):
        answers.setdefault(sample.task, []).append(answer_of(sample))
    scores = {
        task.task: {name: score.value for name, score in task.metrics.items()}
        for task in outcome.tasks
    }
    return answers, scores


class Span:
    """From the first call of any watched method to the end of the last."""

    def __init__(self, client: Any) -> None:
        self._began: float | None = None
        self.seconds = 0.0
        for name in ASKING:
            setattr(client, name, self._timed(getattr(client, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._began is None:
                self._began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds = time.perf_counter() - self._began

        return timed


def served_model(url: str) -> str:
    """The first model that the server lists."""
    import requests

    models = requests.get(f"{url}/v1/models", timeout=30).json()["data"]
    return str(models[0]["id"])


def run(args: argparse.Namespace) -> None:
    phases = Phases()
    import lm_eval

    from atom.eval.client import connect
    from atom.eval.harness import Options, evaluate
    from atom.eval.tasks import find_tasks
    from atom.eval.types import Endpoint

    phases.end("imports")
    tasks = find_tasks(args.tasks, hub=False)
    phases.end("tasks")
    given = {"batch_size": args.batch_size, "concurrency": args.concurrency}
    endpoint = Endpoint(
        base_url=args.url,
        model=served_model(args.url),
        **{name: value for name, value in given.items() if value is not None},
    )

    def quiet(_: Any) -> None:
        pass

    with connect(
        endpoint, journal=None, tokenizer=None, on_progress=quiet, stop=lambda: False
    ) as client:
        span = Span(client)
        phases.end("model")
        outcome = evaluate(tasks, client, Options(limit=args.limit), quiet)
        phases.end("evaluate")
        phases.times_s["asked"] = span.seconds
    answers, scores = side_of(outcome)
    write_answers(
        args.out,
        answers,
        results=scores,
        times_s=phases.times_s,
        versions={"lm_eval": lm_eval.__version__},
        batch_size=endpoint.batch_size,
        concurrency=endpoint.concurrency,
        model_answers=outcome.answers,
        limit=args.limit,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--url", required=True, help="of the server, without /v1")
    add("--tasks", nargs="+", required=True)
    add("--limit", type=int)
    add("--batch-size", type=int, help="prompts in a request; default: atom's")
    add("--concurrency", type=int, help="requests in flight; default: atom's")
    add("--out", type=Path, required=True)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
