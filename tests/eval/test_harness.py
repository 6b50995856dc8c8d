"""The harness against lm-eval's own evaluator, with the same tasks and the same answers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_eval_client import BOS, EOS, FakeClient

from atom.eval.errors import EvalError, ServerGone
from atom.eval.harness import Options, TaskOptions, evaluate, main_metric
from atom.eval.quiet import compiled_once
from atom.eval.scores import task_scores
from atom.eval.tasks import find_tasks, load_tasks
from atom.eval.types import EvalOutcome, GenerateItem, Progress, Score, ScoreItem, TaskResult

RESAMPLES = 40
BUNDLED = ["gsm8k", "arc_easy", "lambada_openai", "copa", "blimp_subset"]


def answer(prompt: str) -> str:
    """Right for every other question of gsm8k, strictly so for a quarter."""
    number = len(prompt) % 4
    return ["", " 18 ... #### 18", " about 3,000 or $5.", " x\nQuestion: more 7"][number]


def run(names: Sequence[str], client: FakeClient | None = None, **options: Any) -> EvalOutcome:
    options.setdefault("bootstrap_iters", RESAMPLES)
    return evaluate(find_tasks(names), client or FakeClient(answer), Options(**options))


def result(outcome: EvalOutcome, name: str) -> TaskResult:
    return next(found for found in outcome.tasks if found.task == name)


def lm_evals(names: Sequence[str], client: FakeClient, **options: Any) -> dict[str, Any]:
    """The same by lm-eval's evaluator; its model asks the client one by one, as lm-eval would."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate as theirs

    class Plain(TemplateLM):  # type: ignore[misc]
        eot_token_id = EOS
        tokenizer_name = ""

        @property
        def prefix_token_id(self) -> int:
            return BOS if client.special_tokens().bos is not None else EOS

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            special = add_special_tokens
            if special is None:
                special = not string.startswith(client.detokenize([self.prefix_token_id]))
            return client.tokenize([string], add_special_tokens=special)[0]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            return [
                tuple(client.score([ScoreItem(c, k)])[0].__reduce__()[1]) for _, c, k in requests
            ]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            texts = [self.tok_encode(request.args[0]) for request in requests]
            return client.score_rolling(texts, self.prefix_token_id)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            texts = []
            for context, settings in (request.args for request in requests):
                ids = self.tok_encode(context)
                text = client.generate([GenerateItem(prompt_ids=ids, max_tokens=256)])[0].text
                for stop in settings["until"]:
                    text = text.split(stop)[0]
                texts.append(text)
            return texts

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return client.chat_prompt(chat_history, add_generation_prompt=add_generation_prompt)

    loaded = load_tasks(find_tasks(names))
    shots = options.pop("num_fewshot", None)
    for task in loaded.tasks.values():
        if task.get_config("num_fewshot") != 0 or shots is None:
            given = shots if shots is not None else task.get_config("num_fewshot") or 0
            task.set_config("num_fewshot", given)
        task.set_fewshot_seed(1234)
    tasks = {"tasks": loaded.tasks, "groups": loaded.groups}
    with compiled_once():
        found: dict[str, Any] = theirs(Plain(), tasks, bootstrap_iters=RESAMPLES, **options)
    return found


def assert_equal(ours: EvalOutcome, stock: dict[str, Any]) -> None:
    """Scores, errors and every record."""
    assert {found.task for found in ours.tasks} == set(stock["results"])
    for found in ours.tasks:
        expected = stock["results"][found.task]
        names = {k for k in expected if "," in k and "_stderr," not in k}
        assert set(found.metrics) == names
        for name in names:
            metric, _, chosen = name.partition(",")
            score = found.metrics[name]
            assert score.value == pytest.approx(expected[name], rel=1e-12), name
            error = expected[f"{metric}_stderr,{chosen}"]
            assert score.stderr == (None if error == "N/A" else pytest.approx(error, rel=1e-9))
        if found.kind == "task":
            assert found.num_fewshot == stock["n-shot"][found.task]
            assert found.num_samples == stock["n-samples"][found.task]["effective"]
            assert found.num_documents == stock["n-samples"][found.task]["original"]
    records = {(s.task, s.doc_id): s for s in ours.samples}
    count = 0
    for task, rows in stock["samples"].items():
        for row in rows:
            sample = records[task, row["doc_id"]]
            count += row["filter"] == rows[0]["filter"]
            assert sample.doc_hash == row["doc_hash"]
            assert sample.prompt == row["arguments"][0][0]
            for metric in row["metrics"]:
                if isinstance(row[metric], tuple):
                    continue  # of no meaning by itself
                assert sample.metrics[f"{metric},{row['filter']}"] == row[metric]
            if sample.filtered:
                assert sample.filtered[row["filter"]] == row["filtered_resps"][0]
                assert [a["text"] for a in sample.answers] == row["resps"][0]
            else:
                said = [(a["logprob"], a["is_greedy"]) for a in sample.answers]
                assert said == [tuple(resps[0]) for resps in row["resps"]]
    assert count == len(records)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # lm-eval's resampling


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bundled_tasks_score_as_in_lm_eval(adds_bos: bool) -> None:
    ours, stock = FakeClient(answer, adds_bos=adds_bos), FakeClient(answer, adds_bos=adds_bos)
    assert_equal(run(BUNDLED, ours, limit=6), lm_evals(BUNDLED, stock, limit=6))
    assert sorted(map(repr, ours.scored)) == sorted(map(repr, stock.scored))
    assert [item.prompt_ids for item in ours.asked] == [item.prompt_ids for item in stock.asked]
    assert (ours.asked[0].prompt_ids or [])[:1] == ([BOS] if adds_bos else [ord("Q")])


@pytest.mark.parametrize("multiturn", [True, False])
def test_a_chat_template_is_applied_as_in_lm_eval(multiturn: bool) -> None:
    names = ["gsm8k", "copa"]
    ours = run(
        names,
        limit=4,
        num_fewshot=None,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="Be brief.",
    )
    stock = lm_evals(
        names,
        FakeClient(answer),
        limit=4,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="Be brief.",
    )
    assert_equal(ours, stock)
    assert ours.samples[0].prompt.startswith("<s>[system]Be brief.[user]Question:")
    assert "chat_template_sha" in ours.config
    assert ours.samples[0].prompt.count("[user]") == (6 if multiturn else 1)


def write_tasks(folder: Path) -> None:
    """Kinds of tasks that are not bundled: whole texts, several contexts, several right answers."""
    (folder / "rows.py").write_text(
        """
import datasets

def rows(**ignored):
    docs = [
        {"text": f"Some words {n} of a text.", "options": [f"a{n}", f"bb{n}"], "gold": n % 2,
         "right": ["#### 18", "other"]}
        for n in range(6)
    ]
    return {"test": datasets.Dataset.from_list(docs)}

def whole(doc):
    return doc["gold"]

def choices(doc):
    return [f"Ctx {o} says" for o in doc["options"]]

def pair(items):
    return items
""".strip()
    )
    common = "custom_dataset: !function rows.rows\ntest_split: test\n"
    texts = {
        "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]",
        "inputs": "output_type: multiple_choice\ndoc_to_text: !function rows.whole\n"
        "doc_to_target: '{{text}}'\ndoc_to_choice: !function rows.choices\n"
        "metric_list: [{metric: acc}]",
        "several": "output_type: generate_until\ndoc_to_text: '{{text}}'\n"
        "doc_to_target: '{{right}}'\nmetric_list: [{metric: exact_match}]\n"
        "generation_kwargs: {until: ['zzz']}",
        "mutual": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\n"
        "doc_to_target: '{{gold}}'\ndoc_to_choice: '{{options}}'\n"
        "metric_list: [{metric: acc}, {metric: acc_mutual_info}, {metric: brier_score}]",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}\n")


def test_other_kinds_of_tasks_score_as_in_lm_eval(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    names = ["rolling", "inputs", "several", "mutual"]
    paths = [str(tmp_path / f"{name}.yaml") for name in names]
    ours = run(paths, FakeClient(lambda prompt: " #### 18"[1:] if "2" in prompt else "no"))
    client = FakeClient(lambda prompt: " #### 18"[1:] if "2" in prompt else "no")
    stock = lm_evals(paths, client)
    for name in names:
        found = {**stock, "results": {name: stock["results"][name]}}
        found["samples"] = {name: [] if name == "rolling" else stock["samples"][name]}
        chosen = [s for s in ours.samples if s.task == name and name != "rolling"]
        alone = EvalOutcome(**{**as_fields(ours), "tasks": [result(ours, name)], "samples": chosen})
        assert_equal(alone, found)
    mutual = result(ours, "mutual").metrics
    assert list(mutual) == ["acc,none", "brier_score,none", "acc_mutual_info,none"]
    sample = next(s for s in ours.samples if s.task == "inputs")
    assert (sample.gold, sample.target) == (0, "Ctx a0 says")
    assert sample.answers[1]["context"] == "Ctx bb0 says"
    assert result(ours, "several").metrics["exact_match,none"].value == pytest.approx(1 / 6)
    rolling = next(s for s in ours.samples if s.task == "rolling")
    assert rolling.target == "Some words 0 of a text."


def as_fields(outcome: EvalOutcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__struct_fields__}


def test_resampled_errors_are_lm_evals() -> None:
    from lm_eval.api.metrics import bootstrap_stderr, median, perplexity

    from atom.eval.scores import standard_error

    values = [-0.1 * n for n in range(37)]
    expected = bootstrap_stderr(perplexity, values, 3000)
    assert standard_error(perplexity, values, 3000) == pytest.approx(expected, rel=1e-12)
    expected = bootstrap_stderr(median, values, 1000)
    assert standard_error(median, values, 3000) == pytest.approx(expected, rel=1e-12)
    assert standard_error(perplexity, values, 0) is None
    assert standard_error(perplexity, values[:1], 3000) is None


# What is asked, and how


def test_shares_get_wilsons_interval_and_others_their_error() -> None:
    found = result(run(["lambada_openai"], limit=50), "lambada_openai").metrics
    acc, perplexity = found["acc,none"], found["perplexity,none"]
    assert (acc.value, acc.low) == (0, 0)
    assert acc.high == pytest.approx(0.0713, abs=1e-3)
    assert perplexity.stderr is not None
    assert not perplexity.higher_is_better


def test_a_perplexitys_interval_is_symmetric_in_its_logarithm() -> None:
    from lm_eval.api.metrics import perplexity

    task = SimpleNamespace(
        task_name="t",
        aggregation=lambda: {"perplexity": perplexity},
        higher_is_better=lambda: {"perplexity": False},
    )
    values = [-1.0, -2.0, -3.0, -2.0] * 25
    score = task_scores(task, {("perplexity", "none"): values}, 2000, [])["perplexity,none"]
    assert score.low is not None
    assert score.high is not None
    # The error of the mean of the logarithms, which the resampled one comes near.
    error = math.log(score.high / score.value) / 1.959964
    assert error == pytest.approx(math.sqrt(0.5 / 100), rel=0.05)
    assert score.low * score.high == pytest.approx(score.value**2)
    wild = task_scores(task, {("perplexity", "none"): [-1.0, -90.0]}, 1000, [])
    assert wild["perplexity,none"].low is None


def test_generation_settings_reach_the_request() -> None:
    client = FakeClient(lambda prompt: "x" * 300)
    outcome = run(["gsm8k"], client, limit=2)
    item = client.asked[0]
    assert (item.max_tokens, item.temperature, item.seed) == (256, 0.0, None)
    assert item.until == ["Question:", "</s>", "<|im_end|>"]
    found = result(outcome, "gsm8k")
    assert (found.truncated, found.generation["max_gen_toks"]) == (2, 256)
    assert [s.finish_reason for s in outcome.samples] == ["length", "length"]
    assert outcome.samples[0].output_tokens == 256

    client = FakeClient(answer)
    run(
        ["gsm8k"],
        client,
        limit=2,
        max_gen_tokens=32,
        gen_kwargs={"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": "\n"},
        seed=7,
    )
    item = client.asked[0]
    assert (item.max_tokens, item.temperature, item.seed) == (32, 0.5, 7)
    assert (item.until, item.extra) == (["\n"], {"top_p": 0.9})


def test_repeats_are_sampled_with_seeds_of_their_own(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    path = tmp_path / "several.yaml"
    path.write_text(
        path.read_text().replace("{until: ['zzz']}", "{until: [zzz], temperature: 0.7}")
        + "repeats: 3\n"
    )
    client = FakeClient(answer)
    outcome = run([str(path)], client, limit=2)
    assert [item.seed for item in client.asked] == [1234, 1235, 1236] * 2
    assert len(outcome.samples[0].answers) == 3


def test_the_chat_endpoint_gets_messages() -> None:
    client = FakeClient(answer)
    outcome = run(["gsm8k"], client, limit=2, chat=True, num_fewshot=1)
    roles = [message["role"] for message in client.asked[0].messages or []]
    assert roles == ["user", "assistant", "user"]
    assert client.asked[0].prompt_ids is None
    assert result(outcome, "gsm8k").num_fewshot == 1
    with pytest.raises(EvalError, match=r"arc_easy compares log-probabilities.*--chat"):
        run(["arc_easy"], client, chat=True)


def test_without_a_tokenizer_prompts_go_as_text_and_it_is_said() -> None:
    client = FakeClient(answer, has_tokenizer=False)
    outcome = run(["gsm8k"], client, limit=2)
    assert (client.asked[0].prompt or "").startswith("Question:")
    assert any("prompts were sent as text" in note for note in outcome.notes)
    with pytest.raises(EvalError, match="no /tokenize"):
        run(["copa"], client, limit=2)


def test_a_server_that_goes_is_no_missing_tokenizer() -> None:
    class Gone(FakeClient):
        def tokenize(self, texts: Any, *, add_special_tokens: bool = False) -> Any:
            raise ServerGone("it went")

    with pytest.raises(ServerGone):
        run(["gsm8k"], Gone(), limit=1)


def test_a_template_without_system_messages_loses_them_and_says_so() -> None:
    class Strict(FakeClient):
        def chat_prompt(self, messages: Any, *, add_generation_prompt: bool) -> str:
            if messages[0]["role"] == "system":
                raise EvalError("no system messages")
            return super().chat_prompt(messages, add_generation_prompt=add_generation_prompt)

    options = {"apply_chat_template": True, "system_instruction": "Be brief.", "limit": 3}
    outcome = run(["copa"], Strict(), **options)
    assert outcome.samples[0].prompt.startswith("<s>[user]The man")
    assert outcome.notes == ["the model's chat template takes no system message: it was left out"]


def test_thinking_is_cut_away_but_kept_in_the_record() -> None:
    client = FakeClient(lambda prompt: "hm 7 Question: </think>\n #### 18 Question: 3")
    outcome = run(["gsm8k"], client, limit=1, think_end_token="</think>")
    (said,) = outcome.samples[0].answers
    assert said == {"text": "#### 18 ", "raw": "hm 7 Question: </think>\n #### 18 Question: 3"}
    assert outcome.samples[0].filtered == {"strict-match": "18", "flexible-extract": "18"}


def test_seeds_choose_the_examples() -> None:
    prompts = [run(["gsm8k"], limit=3, seed=seed).samples for seed in (None, 1234, 5)]
    assert prompts[0] == prompts[1]
    assert prompts[0][0].prompt != prompts[2][0].prompt


def test_limits_are_counts_or_shares() -> None:
    assert result(run(["copa"], limit=0.071), "copa").num_samples == 8  # rounded up, as lm-eval
    assert result(run(["copa"], limit=7.0), "copa").num_samples == 7
    assert result(run(["copa"]), "copa").num_samples == 100


def test_one_task_may_differ() -> None:
    outcome = run(
        ["gsm8k", "copa", "blimp_subset"],
        limit=5,
        per_task={
            "gsm8k": TaskOptions(num_fewshot=2, limit=3),
            "blimp_subset": TaskOptions(limit=4),
            "blimp_anaphor_number_agreement": TaskOptions(limit=2),
        },
    )
    sizes = {found.task: found.num_samples for found in outcome.tasks if found.kind == "task"}
    assert list(sizes.values()) == [3, 5, 2, 4]
    assert result(outcome, "gsm8k").num_fewshot == 2
    assert outcome.config["per_task"]["gsm8k"]["limit"] == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_fewshot": -1}, "--num-fewshot must be 0 or more, got -1"),
        ({"limit": 0}, "--limit must be above 0"),
        ({"limit": 2.5}, "a count must be whole"),
        ({"max_gen_tokens": 0}, "--max-gen-toks must be 1 or more"),
        ({"per_task": {"copa": TaskOptions(limit=-1)}}, "copa: --limit"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(EvalError, match=said):
        Options(**wrong)


def test_examples_that_are_not_bundled_are_refused_and_odd_ones_noted() -> None:
    with pytest.raises(EvalError, match=r"arc_easy: its few-shot examples.*--num-fewshot 0.*--hub"):
        run(["arc_easy"], num_fewshot=5)
    notes = run(["blimp_subset", "lambada_openai"], limit=1, num_fewshot=1).notes
    assert any("always evaluated without examples" in note for note in notes)
    assert any("its few-shot examples come from those that are evaluated" in n for n in notes)


def test_the_same_questions_have_the_same_hash() -> None:
    hashes = [
        result(run(["gsm8k"], **options), "gsm8k").prompt_hash
        for options in ({"limit": 3}, {"limit": 3}, {"limit": 4}, {"limit": 3, "num_fewshot": 4})
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_progress_is_shown_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    evaluate(find_tasks(["copa"]), FakeClient(), Options(), seen.append)
    assert {p.phase for p in seen} == {"building prompts", "computing scores"}
    assert [p.done for p in seen if p.phase == "building prompts"] == [0, 64, 100]
    assert {(p.total, p.detail) for p in seen} == {(100, "copa")}
    assert capfd.readouterr() == ("", "")


def test_the_metric_for_a_threshold() -> None:
    one = Score(0.5, None, None, None)
    strict, lenient = "exact_match,strict-match", "exact_match,flexible-extract"
    assert main_metric("gsm8k", {strict: one, lenient: one}) == lenient
    assert main_metric("other", {"perplexity,none": one, "acc,none": one}) == "acc,none"
    assert main_metric("other", {"rouge,none": one}) == "rouge,none"
    assert main_metric("other", {}) == ""


def test_torch_is_not_loaded() -> None:
    import subprocess

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fake_eval_client import FakeClient\n"
        "from atom.eval.harness import Options, evaluate; from atom.eval.tasks import find_tasks\n"
        "assert 'lm_eval' not in sys.modules and 'datasets' not in sys.modules\n"
        "evaluate(find_tasks(['copa', 'gsm8k']), FakeClient(), Options(limit=2))\n"
        "print([m for m in ('torch', 'transformers', 'evaluate') if m in sys.modules])"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
