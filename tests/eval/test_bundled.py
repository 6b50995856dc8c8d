"""Bundled tasks ask what lm-eval's own ask, on the same rows."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from atom.eval.quiet import compiled_once
from atom.eval.tasks import bundled, find_tasks, load_tasks

# Of the files as they came: "unmodified" is checked, not said.
SHA256 = {
    "arc_easy.jsonl.gz": ("d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5"),
    "blimp_anaphor_number_agreement.jsonl.gz": (
        "05c16b8bfe4feb5b3552dc2c53d1742ce0c91d9a1c896684335bdddd4373cc9b"
    ),
    "blimp_regular_plural_subject_verb_agreement_1.jsonl.gz": (
        "1a18d94062c8e792c0a200a3b00dff0e051a92bb084c05e9b5e5c73bee32a620"
    ),
    "copa.jsonl.gz": ("595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846"),
    "gsm8k_test.jsonl.gz": ("3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    "gsm8k_train.jsonl.gz": ("17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
    "lambada_openai.jsonl.gz": ("411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc"),
}
YAMLS = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "copa": "super_glue/copa/default.yaml",
    "blimp_anaphor_number_agreement": "blimp/anaphor_number_agreement.yaml",
    "blimp_regular_plural_subject_verb_agreement_1": (
        "blimp/regular_plural_subject_verb_agreement_1.yaml"
    ),
}
COUNTS = {
    "gsm8k": 1319,
    "arc_easy": 2376,
    "lambada_openai": 5153,
    "copa": 100,
    "blimp_anaphor_number_agreement": 1000,
    "blimp_regular_plural_subject_verb_agreement_1": 1000,
}


def theirs(name: str) -> Any:
    """lm-eval's task on our rows; splits that are not bundled are those that are."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__path__[0]) / "tasks" / YAMLS[name])
    task = bundled.TASKS[name]

    def rows(**ignored: Any) -> Any:
        splits = bundled.dataset_of(task)()
        some = next(iter(splits.values()))
        return {**dict.fromkeys(task.missing, some), **splits}

    kept = {key: value for key, value in config.items() if key not in ("tag", "group")}
    return ConfigurableTask(config={**kept, "custom_dataset": rows})


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, tuple[Any, Any]]]:
    with compiled_once():
        ours = load_tasks(find_tasks(list(YAMLS))).tasks
        yield {name: (ours[name], theirs(name)) for name in YAMLS}


def asked(task: Any, limit: int, shots: int | None) -> list[tuple[Any, ...]]:
    if shots is not None:
        task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=limit)
    return [(i.request_type, i.doc_id, i.idx, *i.args) for i in task.instances]


def test_files_are_unmodified_and_have_their_licence() -> None:
    folder = resources.files("atom.eval") / "data"
    said = (folder / "LICENSES.md").read_text(encoding="utf-8")
    found = {}
    for path in folder.iterdir():
        if path.name.endswith(".gz"):
            data = path.read_bytes()
            assert data[4:8] == bytes(4), f"{path.name}: gzip -n leaves the time out"
            found[path.name] = hashlib.sha256(gzip.decompress(data)).hexdigest()
            assert path.name in said
    assert found == SHA256


@pytest.mark.parametrize("name", YAMLS)
def test_all_rows_are_there(name: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, _ = pairs[name]
    assert len(ours.eval_docs) == bundled.num_documents(name) == COUNTS[name]


@pytest.mark.parametrize("name", YAMLS)
def test_prompts_targets_and_choices_are_lm_evals(
    name: str, pairs: dict[str, tuple[Any, Any]]
) -> None:
    ours, stock = pairs[name]
    assert asked(ours, 40, None) == asked(stock, 40, None)
    documents = random.Random(0).sample(range(COUNTS[name]), 40)
    for number in documents:
        one, other = ours.eval_docs[number], stock.eval_docs[number]
        assert one == other
        assert ours.doc_to_text(one) == stock.doc_to_text(other)
        assert ours.doc_to_target(one) == stock.doc_to_target(other)


@pytest.mark.parametrize(("name", "shots"), [("gsm8k", 5), ("gsm8k", 3), ("lambada_openai", 2)])
def test_few_shot_examples_are_lm_evals(
    name: str, shots: int, pairs: dict[str, tuple[Any, Any]]
) -> None:
    ours, stock = pairs[name]
    questions = asked(ours, 25, shots)
    assert questions == asked(stock, 25, shots)
    assert len({prompt[3] for prompt in questions}) == 25
    if name == "gsm8k":
        assert questions[0][3].count("Question: ") == shots + 1


@pytest.mark.parametrize("name", YAMLS)
def test_settings_are_lm_evals(name: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, stock = pairs[name]
    for key in (
        "task", "output_type", "generation_kwargs", "filter_list", "repeats", "metadata",
        "target_delimiter", "fewshot_delimiter", "description", "gen_prefix", "fewshot_split",
    ):  # fmt: skip
        assert ours.get_config(key) == stock.get_config(key), key
    assert ours.VERSION == stock.VERSION
    assert ours.OUTPUT_TYPE == stock.OUTPUT_TYPE
    assert ours.aggregation() == stock.aggregation()
    assert ours.higher_is_better() == stock.higher_is_better()
    assert ours._metric_fn_kwargs == stock._metric_fn_kwargs


@pytest.mark.parametrize("name", YAMLS)
def test_answers_are_judged_as_lm_eval_judges_them(
    name: str, pairs: dict[str, tuple[Any, Any]]
) -> None:
    ours, stock = pairs[name]
    chance = random.Random(1)
    for number in range(20):
        doc = ours.eval_docs[number]
        if ours.OUTPUT_TYPE == "generate_until":
            target = doc["answer"].split("#### ")[1]
            answers: list[Any] = [chance.choice([target, f"${target}.", "7", "[invalid]"])]
        else:
            count = len(ours.doc_to_choice(doc)) if ours.OUTPUT_TYPE == "multiple_choice" else 1
            answers = [(-10 * chance.random(), chance.random() < 0.5) for _ in range(count)]
        assert ours.process_results(doc, answers) == stock.process_results(doc, answers)


def test_copas_connecting_word_follows_the_premise_without_a_comma() -> None:
    first = next(iter(bundled.TASKS["copa"].rows("validation")))
    assert first["premise"] == "The man turned on the faucet."
    assert bundled.TASKS["copa"].config["doc_to_text"](first) == (
        "The man turned on the faucet therefore"
    )


def test_other_tasks_of_a_bundled_data_set_need_no_network() -> None:
    loaded = load_tasks(find_tasks(["gsm8k_cot", "lambada_openai_cloze_yaml"]))
    assert loaded.bundled == {"gsm8k_cot", "lambada_openai_cloze_yaml"}
    assert len(loaded.tasks["gsm8k_cot"].eval_docs) == 1319
    assert loaded.tasks["gsm8k_cot"].config.num_fewshot == 8


def test_a_group_is_the_mean_of_its_members() -> None:
    loaded = load_tasks(find_tasks(["blimp_subset"]))
    assert loaded.order == ["blimp_subset", *bundled.BLIMP]
    group = loaded.groups["blimp_subset"]
    rows = {name: {"acc,none": v, "sample_len": n} for name, v, n in zip(
        bundled.BLIMP, (0.25, 0.75), (10, 30), strict=True)}  # fmt: skip
    assert group.aggregate(rows)["acc,none"] == 0.5
