"""lm-eval's names without its index, and what a name stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from atom.eval import catalog
from atom.eval.errors import EvalError
from atom.eval.tasks import find_tasks, list_tasks, load_tasks
from atom.eval.tasks.find import nearest

lm_eval_catalog = catalog.lm_eval_catalog


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[catalog.Catalog]:
    """lm-eval's names, read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATOM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield lm_eval_catalog()


@pytest.fixture(autouse=True)
def _known(whole: catalog.Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "lm_eval_catalog", lambda: whole)


def tasks_root() -> Path:
    import lm_eval

    return Path(lm_eval.__path__[0]) / "tasks"


# Against lm-eval's own index


@pytest.mark.parametrize("folder", ["arc", "super_glue", "aclue", "hendrycks_ethics"])
def test_a_folder_is_read_as_lm_eval_reads_it(folder: str) -> None:
    from lm_eval.tasks._index import TaskIndex

    theirs = TaskIndex.build([tasks_root() / folder])
    ours = catalog.read_folder(tasks_root() / folder)
    assert list(ours.keys() - theirs.keys()) == []
    assert list(theirs.keys() - ours.keys()) == []
    kinds = {"PY_TASK": "task", "TASK": "task", "GROUP": "group", "TAG": "tag"}
    for name, entry in theirs.items():
        mine = ours[name]
        assert mine.kind == kinds[entry.kind.name], name
        assert mine.path == (str(entry.yaml_path) if entry.yaml_path else None), name
        if mine.kind == "tag":
            assert mine.members == tuple(sorted(entry.tags)), name
        if mine.kind == "task":
            assert mine.dataset_path == (entry.cfg.get("dataset_path") or ""), name
            assert mine.output_type == (entry.cfg.get("output_type") or ""), name


def test_the_whole_catalogue_is_there_and_kept(
    whole: catalog.Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(whole) > 10_000
    assert whole["hellaswag"].dataset_path == "Rowan/hellaswag"

    def never(root: Path) -> catalog.Catalog:
        raise AssertionError("read again")

    monkeypatch.setattr(catalog, "read_folder", never)
    assert lm_eval_catalog() == whole


def test_a_damaged_cache_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path))
    small = {"a": catalog.Entry("a", "task", "/a.yaml")}
    monkeypatch.setattr(catalog, "read_folder", lambda root: small)
    assert lm_eval_catalog() == small
    (path,) = (tmp_path / "eval").iterdir()
    for damage in ("", "[[1", '{"a": 1}', "[[]]", '[["a"]]'):
        path.write_text(damage)
        assert lm_eval_catalog() == small, damage
        assert json.loads(path.read_text())[0][0] == "a"


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ATOM_CACHE_DIR", str(blocked))
    monkeypatch.setattr(catalog, "read_folder", lambda root: {})
    assert lm_eval_catalog() == {}


def test_the_first_of_two_equal_names_wins_and_includes_are_followed(tmp_path: Path) -> None:
    (tmp_path / "_base").write_text(
        "tag: [t]\ndataset_path: base/set\noutput_type: multiple_choice\n"
    )
    (tmp_path / "a.yaml").write_text("include: _base\ntask: same\n")
    (tmp_path / "b.yaml").write_text("task: same\ndataset_path: other/set\n")
    (tmp_path / "c.yaml").write_text('"task": "quoted" # said so\n"tag":\n- t\n- u\n')
    (tmp_path / "d.yaml").write_text(
        "group: g\ntask:\n  - same\n  - task: quoted\n    num_fewshot: 1\n"
    )
    (tmp_path / "e.yaml").write_text("include: e.yaml\ntask: loop\n")
    (tmp_path / "f.yaml").write_text("task: [broken\n")
    found = catalog.read_folder(tmp_path)
    assert found == {
        "same": catalog.Entry(
            "same", "task", str(tmp_path / "a.yaml"), "multiple_choice", "base/set"
        ),
        "quoted": catalog.Entry("quoted", "task", str(tmp_path / "c.yaml")),
        "g": catalog.Entry("g", "group", str(tmp_path / "d.yaml"), members=("same", "quoted")),
        "t": catalog.Entry("t", "tag", members=("quoted", "same")),
        "u": catalog.Entry("u", "tag", members=("quoted",)),
    }
    assert [entry.name for entry in catalog.leaves(found, "g")] == ["g", "quoted", "same"]


# Names


def test_bundled_names_and_aliases() -> None:
    specs = find_tasks(["lambada", "gsm8k", "lambada_openai", "blimp_subset"])
    assert [(s.name, s.kind, s.source) for s in specs] == [
        ("lambada_openai", "task", "bundled"),
        ("gsm8k", "task", "bundled"),
        ("blimp_subset", "group", "bundled"),
    ]


def test_hub_takes_lm_evals_own() -> None:
    (spec,) = find_tasks(["gsm8k"], hub=True)
    assert (spec.source, spec.entries[0].dataset_path) == ("lm-eval", "openai/gsm8k")
    with pytest.raises(EvalError, match=r"blimp_subset is a group of bundled tasks.*--hub"):
        find_tasks(["blimp_subset"], hub=True)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("gms8k", "gsm8k"),
        ("arc_esy", "arc_easy"),
        ("lamdba", "lambada"),
        ("hellaswg", "hellaswag"),
        ("GSM8K", "gsm8k"),
        ("blimp_subsets", "blimp_subset"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(slip: str, meant: str) -> None:
    with pytest.raises(EvalError) as told:
        find_tasks([slip])
    assert f"nearest are {meant}" in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2


def test_nothing_like_it_and_nothing_at_all() -> None:
    with pytest.raises(EvalError, match="nothing is spelled like it"):
        find_tasks(["xyzzy_qwerty"])
    with pytest.raises(EvalError, match="no task given; bundled are gsm8k"):
        find_tasks([])
    with pytest.raises(EvalError, match="a task's name is empty"):
        find_tasks([" "])
    with pytest.raises(EvalError, match=r"no_such\.yaml: no such file"):
        find_tasks(["no_such.yaml"])


def test_nearest_puts_the_likeliest_first() -> None:
    assert nearest("arc", ["mmlu_arc", "arc_easy", "arcs", "boolq"])[0] == "arcs"
    assert nearest("q", ["boolq"]) == []


# A user's own


def own_task(folder: Path, name: str = "mine", **more: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.py").write_text(
        "import datasets\n\n\ndef rows(**ignored):\n"
        "    docs = [{'q': f'{n}+1=', 'a': str(n + 1)} for n in range(5)]\n"
        "    return {'test': datasets.Dataset.from_list(docs)}\n"
    )
    lines = {
        "task": name,
        "custom_dataset": "!function rows.rows",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": '"{{q}}"',
        "doc_to_target": '"{{a}}"',
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


def test_own_tasks_come_first_and_may_be_files(tmp_path: Path) -> None:
    path = own_task(tmp_path)
    own_task(tmp_path, "gsm8k")
    (mine,) = find_tasks(["mine"], include_path=tmp_path)
    assert (mine.source, mine.entries[0].path) == ("user", str(path))
    assert find_tasks(["gsm8k"], include_path=tmp_path)[0].source == "user"
    loaded = load_tasks(find_tasks([str(path)]))
    assert len(loaded.tasks["mine"].eval_docs) == 5
    assert loaded.bundled == set()


def test_a_group_of_ones_own(tmp_path: Path) -> None:
    own_task(tmp_path, "one", tag="both")
    own_task(tmp_path, "two", tag="both")
    (tmp_path / "g.yaml").write_text(
        "group: g\ntask: [one, two]\naggregate_metric_list: [{metric: exact_match}]\n"
    )
    loaded = load_tasks(find_tasks(["g"], include_path=tmp_path))
    assert (loaded.order, sorted(loaded.groups)) == (["g", "one", "two"], ["g"])
    assert sorted(load_tasks(find_tasks(["both"], include_path=tmp_path)).tasks) == ["one", "two"]
    with pytest.raises(EvalError, match="one was asked for twice: one holds it"):
        load_tasks(find_tasks(["g", "one"], include_path=tmp_path))


def test_an_include_path_that_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no such folder"):
        find_tasks(["mine"], include_path=tmp_path / "none")
    with pytest.raises(EvalError, match="no YAML file below it"):
        find_tasks(["mine"], include_path=tmp_path)
    (tmp_path / "x.yaml").write_text("dataset_path: json\n")
    with pytest.raises(EvalError, match="defines no task"):
        find_tasks([str(tmp_path / "x.yaml")])


def test_code_of_a_model_is_not_run(tmp_path: Path) -> None:
    own_task(tmp_path, "risky", unsafe_code="true")
    with pytest.raises(EvalError, match="risky runs code that the model wrote"):
        load_tasks(find_tasks(["risky"], include_path=tmp_path))


def test_a_broken_task_says_why_in_one_line(tmp_path: Path) -> None:
    own_task(tmp_path, "broken", custom_dataset="!function rows.nothing")
    with pytest.raises(EvalError, match="broken: lm-eval cannot build it: AttributeError") as told:
        load_tasks(find_tasks(["broken"], include_path=tmp_path))
    assert "\n" not in str(told.value)
    (tmp_path / "rows.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(EvalError, match="needs a_package_nobody_has: pip install"):
        load_tasks(find_tasks(["broken"], include_path=tmp_path))


# Lists


def test_lists() -> None:
    bundled = list_tasks()
    assert [row.name for row in bundled[:3]] == ["gsm8k", "arc_easy", "lambada_openai"]
    assert bundled[1].num_documents == 2376
    assert bundled[2].aliases == ("lambada",)
    assert all(row.source == "bundled" for row in bundled)
    found = list_tasks("gsm8k")
    assert (found[0].name, found[0].source) == ("gsm8k", "bundled")
    cot = next(row for row in found if row.name == "gsm8k_cot")
    assert (cot.source, cot.bundled_rows) == ("lm-eval", True)
    assert {row.name for row in list_tasks("hellaswa?")} == {"hellaswag"}
    assert list_tasks("no such task") == []
