"""Workloads that are read: formats, order, limits, and what is said about broken files."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from workload_helpers import FakeTokens, digest, words_of, write_lines

from atom.bench.errors import BenchError
from atom.bench.types import Job
from atom.bench.workloads import (
    WorkloadSpec,
    arrival_times,
    make_workload,
    needs_tokens,
    parse_dataset,
    trace_arrivals,
)


def workload(tokens: FakeTokens | None = None, seed: int = 7, **fields: Any) -> Any:
    return make_workload(WorkloadSpec(**fields), tokens or FakeTokens(), seed)


def jobs_of(count: int = 8, **fields: Any) -> list[Job]:
    return list(islice(workload(**fields).jobs(), count))


def refusal(**fields: Any) -> str:
    with pytest.raises(BenchError) as caught:
        workload(**fields)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Own JSONL


def test_jsonl_rows_are_sent_as_they_stand(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": "one", "max_tokens": 5, "label": "a"},
        "",
        {"text": "two", "output_tokens": 6, "id": 17},
        {"token_ids": [4, 5, 6]},
        {"turns": ["x", {"prompt": "y", "max_tokens": 3, "delay_s": 1.5}], "max_tokens": 9},
        {"prompt": "z", "extra_body": {"top_p": 0.5}},
    ]
    path = write_lines(tmp_path / "own.jsonl", rows)
    one, two, ids, turns, extra = jobs_of(5, dataset="jsonl", path=path)
    assert (one.turns[0].prompt, one.turns[0].max_tokens, one.label) == ("one", 5, "a")
    assert (two.turns[0].prompt, two.turns[0].max_tokens, two.label) == ("two", 6, "17")
    assert (ids.turns[0].prompt, ids.turns[0].input_len) == ([4, 5, 6], 3)
    assert ids.turns[0].max_tokens == 128
    assert [t.prompt for t in turns.turns] == ["x", "\n\ny"]
    assert [(t.max_tokens, t.delay_s) for t in turns.turns] == [(9, 0), (3, 1.5)]
    assert extra.turns[0].extra_body == {"top_p": 0.5}


def test_jsonl_for_chat(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": "p"}, {"messages": messages}])
    first, second = jobs_of(2, dataset="jsonl", path=path, endpoint="chat", output_len=4)
    assert first.turns[0].messages == [{"role": "user", "content": "p"}]
    assert second.turns[0].messages == messages
    assert second.turns[0].max_tokens == 4


def test_jsonl_repeats_from_the_first_row_and_says_so(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": p} for p in "abc"])
    read = workload(dataset="jsonl", path=path, limit=7)
    assert [job.turns[0].prompt for job in islice(read.jobs(2), 5)] == ["c", "a", "b", "c", "a"]
    assert read.notes == [
        "7 requests from 3 rows: prompts repeat, and a prefix cache will know them"
    ]
    assert (
        "every repeat sends the same 3 rows"
        in workload(dataset="jsonl", path=path, limit=3).notes[0]
    )
    common = workload(dataset="jsonl", path=path, limit=1, shuffle=True).notes
    assert "1 requests from 3 rows: repeats may have prompts in common" in common[0]
    assert workload(dataset="jsonl", path=path).notes == []
    assert read.describe()["rows"] == 3
    assert read.describe()["file"] == "own.jsonl"


def test_shuffled_rows_are_all_taken_in_the_seeds_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": str(n)} for n in range(40)])
    orders = []
    for seed in (1, 2, 1):
        made = workload(dataset="jsonl", path=path, shuffle=True, seed=seed)
        orders.append([job.turns[0].prompt for job in islice(made.jobs(), 40)])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0], key=int) == [str(n) for n in range(40)]


@pytest.mark.parametrize("first", [0, 1, 77, 123456789])
def test_repeats_take_different_rows(tmp_path: Path, first: int) -> None:
    """Or the second repeat's prompts would be in the server's prefix cache."""
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": str(n)} for n in range(1000)])
    taken: Counter[str] = Counter()
    for seed in range(first, first + 5):
        made = workload(dataset="jsonl", path=path, shuffle=True, seed=seed)
        taken.update(job.turns[0].prompt for job in islice(made.jobs(), 142))
    assert len(taken) == 5 * 142
    assert workload(dataset="jsonl", path=path, shuffle=True, limit=142).notes == []
    assert workload(dataset="jsonl", path=path, shuffle=True, limit=143).notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "malformed"),
        ("[1]", "not a JSON object"),
        ('{"max_tokens": 3}', "there is none of them"),
        ('{"prompt": "a", "turns": ["b"]}', "there is prompt and turns"),
        ('{"prompt": "a", "max_token": 3}', "'max_token' (did you mean max_tokens?)"),
        ('{"prompt": "a", "max_tokens": "3"}', "Expected `int | null`, got `str`"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "--endpoint chat"),
        ('{"token_ids": []}', "at least one number"),
        ('{"token_ids": [1, -2]}', "none below 0"),
        ('{"token_ids": [1, 2, 3], "max_tokens": 98}', "exceed the context of 100"),
        ('{"turns": []}', "turns is empty"),
        ('{"turns": [{"prompt": "a", "delay_s": -1}]}', "turns[0].delay_s is -1"),
        ('{"turns": [{"max_tokens": 1}]}', "turns[0]: give either prompt or messages"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "own.jsonl", ['{"prompt": "fine"}', "", line])
    text = refusal(dataset="jsonl", path=path, max_len=100)
    assert text.startswith(f"{path}, line 3: ")
    assert message in text


def test_chat_has_no_token_ids_and_needs_roles(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"token_ids": [1]}])
    assert "--endpoint completions" in refusal(dataset="jsonl", path=path, endpoint="chat")
    path = write_lines(tmp_path / "own.jsonl", [{"messages": [{"role": "user"}]}])
    assert "role and content" in refusal(dataset="jsonl", path=path, endpoint="chat")


def test_unused_keys_are_told_once(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d", "topic": 1}]
    path = write_lines(tmp_path / "own.jsonl", rows)
    assert workload(dataset="jsonl", path=path).notes == [f"{path}: keys not used: answer, topic"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "does not exist" in refusal(dataset="jsonl", path=str(tmp_path / "no"))
    assert "is a directory" in refusal(dataset="jsonl", path=str(tmp_path))
    empty = tmp_path / "empty"
    empty.write_text("\n\n")
    for dataset in ("jsonl", "trace", "sharegpt"):
        assert refusal(dataset=dataset, path=str(empty)) == f"{empty} is empty"
    latin = tmp_path / "latin"
    latin.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    assert "line 2: not UTF-8" in refusal(dataset="jsonl", path=str(latin))


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [j.turns[0].prompt for j in jobs_of(2, dataset="jsonl", path=str(path))] == ["a", "b"]


# ShareGPT


def conversation(*lengths: int, first: str = "human") -> dict[str, Any]:
    """Alternating turns of so many words."""
    sides = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    said = [
        {"from": sides[n % 2], "value": " ".join([f"w{n}"] * length)}
        for n, length in enumerate(lengths)
    ]
    return {"id": "x", "conversations": said}


def test_sharegpt_takes_what_vllm_takes(tmp_path: Path) -> None:
    """Every combination of lengths at the limits, against the rule itself."""
    sizes = [3, 4, 1023, 1024, 1025, 2044, 2045]
    pairs = [(a, b) for a in sizes for b in sizes]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([conversation(a, b) for a, b in pairs]))
    kept = [(a, b) for a, b in pairs if 4 <= a <= 1024 and b >= 4 and a + b <= 2048]
    made = workload(dataset="sharegpt", path=str(path), limit=len(kept))
    jobs = list(islice(made.jobs(), len(kept)))
    found = [(len(job.turns[0].prompt.split()), job.turns[0].max_tokens) for job in jobs]
    assert sorted(found) == sorted(kept)
    left_out = f"{len(pairs) - len(kept)} of {len(pairs)} conversations left out by their length"
    assert made.notes[-1] == left_out


def test_sharegpt_fits_the_model(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s", [conversation(10, 50), conversation(10, 51)])
    fields = {"dataset": "sharegpt", "path": path, "endpoint": "chat", "max_len": 92}
    (job,) = list(islice(workload(**fields, limit=2).jobs(), 1))
    assert job.turns[0].max_tokens == 50  # 10 + 50 + 32 for the template
    assert "fits with its answer in 59" in refusal(**{**fields, "max_len": 91})


def test_sharegpt_starts_with_a_question_and_alternates(tmp_path: Path) -> None:
    rows = [
        conversation(5, 6, 7, 8, first="gpt"),
        {
            "conversations": [
                {"from": "system", "value": "be good"},
                *conversation(9, 9)["conversations"],
            ]
        },
        {"conversations": [{"from": "human", "value": "a a a a"}] * 2},
        {"conversations": []},
    ]
    path = write_lines(tmp_path / "s", rows)
    jobs = jobs_of(2, dataset="sharegpt", path=path, turns=5, shuffle=False)
    assert [t.max_tokens for t in jobs[0].turns] == [7]
    assert [t.max_tokens for t in jobs[1].turns] == [9]


def test_sharegpt_turns(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s", [conversation(5, 6, 7, 8, 9, 10)])
    fields = {"dataset": "sharegpt", "path": path, "endpoint": "chat"}
    (job,) = jobs_of(1, **fields, turns=2, think_time_s=1.0)
    assert [t.max_tokens for t in job.turns] == [6, 8]
    assert [t.delay_s for t in job.turns] == [0, 1]
    (job,) = jobs_of(1, **fields, turns=9, output_len=100)
    assert [t.max_tokens for t in job.turns] == [100, 100, 100]
    (job,) = jobs_of(1, **fields, turns=9, max_len=32 + 5 + 6 + 7 + 8)
    assert len(job.turns) == 2


def test_sharegpt_counts_no_more_than_is_needed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s", [conversation(5, 5)] * 1000)
    tokens = FakeTokens()
    made = workload(tokens, dataset="sharegpt", path=path, limit=100)
    assert tokens.asked == 2 * 128
    list(islice(made.jobs(), 100))
    assert tokens.asked == 2 * 128
    list(islice(made.jobs(), 1001))  # more than was announced: counted on the way
    assert tokens.asked == 2000


def test_sharegpt_jobs_do_not_depend_on_how_many_were_taken(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s", [conversation(4 + n, 4) for n in range(300)])
    few = workload(dataset="sharegpt", path=path, limit=2)
    many = workload(dataset="sharegpt", path=path, limit=300)
    assert list(islice(few.jobs(150), 40)) == list(islice(many.jobs(150), 40))
    assert few.describe() == many.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "is no ShareGPT file: JSON is malformed"),
        ('[{"conversations": 3}]', "$[0].conversations"),
        ('[{"conversations": [{"from": "human"}]}]', "missing required field `value`"),
        ('[{"prompt": "a"}]', 'no entry has conversations in which "from": "human"'),
        ('{"conversations": []}\n{"conversations": 1}', "line 2: "),
    ],
)
def test_broken_sharegpt_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    found = refusal(dataset="sharegpt", path=str(path))
    assert message in found
    assert str(path) in found


# Traces


def mooncake(*rows: tuple[float, int, int, list[int]]) -> list[dict[str, Any]]:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_equal_hash_ids_are_equal_tokens(tmp_path: Path) -> None:
    rows = mooncake(
        (0, 1030, 7, [0, 1, 2]), (500, 1400, 8, [0, 1, 9]), (2500, 100, 1, [5]), (2500, 512, 1, [0])
    )
    path = write_lines(tmp_path / "t.jsonl", rows)
    made = workload(dataset="trace", path=path)
    jobs = list(made.jobs())
    a, b, c, d = (job.turns[0].prompt for job in jobs)
    assert [len(p) for p in (a, b, c, d)] == [1030, 1400, 100, 512]
    assert a[:1024] == b[:1024]
    assert a[1024:] != b[1024:1030]
    assert d == a[:512]
    assert sum(x == y for x, y in zip(c, a, strict=False)) < 5
    assert [job.turns[0].max_tokens for job in jobs] == [7, 8, 1, 1]
    assert made.length == 4
    assert made.arrivals() == [job.arrival_s for job in jobs] == [0, 0.5, 2.5, 2.5]
    assert arrival_times(trace_arrivals(made, 2.0), 0) == [0, 1, 5, 5]
    assert made.describe()["shared_block_share"] == pytest.approx(1 - 5 / 8)
    again = workload(dataset="trace", path=path, seed=8)
    assert next(again.jobs()).turns[0].prompt[:16] != a[:16]


def test_chat_keeps_the_sharing(tmp_path: Path) -> None:
    """The template's tokens are missing at the end of a prompt, where nothing is shared."""
    path = write_lines(tmp_path / "t", mooncake((0, 1030, 7, [0, 1, 2]), (0, 1536, 8, [0, 1, 9])))
    a, b = jobs_of(2, dataset="trace", path=path, endpoint="chat")
    first, second = (words_of(job.turns[0].messages[0]["content"]) for job in (a, b))
    assert len(first) == 1030 - 32
    assert len(second) == 1536 - 32
    assert first == second[: len(first)]


def test_block_size_is_a_parameter(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t", mooncake((0, 20, 1, [0, 1]), (0, 32, 1, [0, 2])))
    a, b = jobs_of(2, dataset="trace", path=path, block_size=16)
    assert a.turns[0].prompt[:16] == b.turns[0].prompt[:16]
    assert "more than 2 hash_ids of 8 tokens" in refusal(dataset="trace", path=path, block_size=8)


def test_azure_times_have_seven_digits_and_zones(tmp_path: Path) -> None:
    rows = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9951690,396,109",
        "2023-11-16 19:15:51+01:00,40,1",
        "2023-11-16T18:15:52.5Z,41,2",
    ]
    path = write_lines(tmp_path / "azure.csv", rows)
    made = workload(dataset="trace", path=path)
    assert made.arrivals() == pytest.approx([0, 4.314579, 4.31941, 5.81941])
    jobs = list(made.jobs())
    assert [(len(j.turns[0].prompt), j.turns[0].max_tokens) for j in jobs] == [
        (374, 44),
        (396, 109),
        (40, 1),
        (41, 2),
    ]
    assert made.describe()["trace"] == "Azure"


def test_burstgpt_leaves_failures_out(tmp_path: Path) -> None:
    rows = [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,ChatGPT,472,18,490,Conversation log",
        "45,ChatGPT,0,0,0,Conversation log",
        "118.5,GPT-4,417,276,693,Conversation log",
    ]
    made = workload(dataset="trace", path=write_lines(tmp_path / "b.csv", rows))
    assert made.arrivals() == [0, 113.5]
    assert [job.label for job in made.jobs()] == ["line 2", "line 4"]
    assert made.notes == ["1 requests of the trace left out: without prompt or answer"]


def test_rows_in_disorder_are_sorted_by_time(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t", mooncake((9000, 9, 1, [0]), (3000, 3, 1, [1])))
    made = workload(dataset="trace", path=path)
    assert made.arrivals() == [0, 6]
    assert [job.label for job in made.jobs()] == ["line 2", "line 1"]


def test_too_long_requests(tmp_path: Path) -> None:
    rows = mooncake((0, 900, 200, [0, 1]), (1000, 300, 100, [0]), (2000, 100, 900, [3]))
    path = write_lines(tmp_path / "t", rows)
    fields = {"dataset": "trace", "path": path, "max_len": 1000}
    skipped = workload(**fields)
    assert [job.label for job in skipped.jobs()] == ["line 2", "line 3"]
    assert skipped.arrivals() == [0, 1]
    assert skipped.notes == [
        "1 requests of the trace left out: longer than the context of 1000 tokens"
    ]
    cut = workload(**{**fields, "max_len": 400}, too_long="clip")
    sizes = [(job.turns[0].input_len, job.turns[0].max_tokens) for job in cut.jobs()]
    assert sizes == [(200, 200), (300, 100), (100, 200)]
    assert cut.notes == ["2 requests of the trace cut to fit the context of 400 tokens"]
    assert "line 1: 900 and 200 tokens exceed" in refusal(**fields, too_long="error")
    assert "none of its 3 requests" in refusal(**{**fields, "max_len": 90})


def test_requests_shorter_than_the_template(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t", mooncake((0, 9, 1, [0]), (0, 33, 1, [0]), (0, 34, 1, [0])))
    made = workload(dataset="trace", path=path, endpoint="chat")
    assert [job.turns[0].input_len for job in made.jobs()] == [33, 33, 34]
    assert made.notes == [
        "1 requests of the trace shorter than the 33 tokens that are possible; sent with so many"
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"timestamp": 0}'], "line 1: Object missing required field `input_length`"),
        (["{", "{"], "line 1: Input data was truncated"),
        (mooncake((0, 600, 1, [0])), "line 1: input_length 600 is more than 1 hash_ids"),
        (mooncake((0, 6, 1, [0]), (0, -6, 1, [0])), "line 2: -6 and 1 tokens"),
        (["a,b,c", "1,2,3"], "no trace that is known"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,2"], "line 2: 'yesterday' is no"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46,1"], "line 2: 2 fields"),
        (["Timestamp,Request tokens,Response tokens", "1,x,2"], "line 2: invalid literal"),
        (["Timestamp,Request tokens,Response tokens"], "has no requests"),
    ],
)
def test_broken_traces_are_named(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = write_lines(tmp_path / "t", lines)
    text = refusal(dataset="trace", path=path)
    assert message in text
    assert text.startswith(path)


# Bundled sets


@pytest.mark.parametrize(
    ("name", "rows", "labels"), [("mt_bench", 80, 8), ("vicuna", 80, 9), ("self_instruct", 252, 71)]
)
def test_bundled_sets_are_whole(name: str, rows: int, labels: int) -> None:
    made = make_workload(WorkloadSpec(dataset="prompts", path=name), None, 3)
    jobs = list(islice(made.jobs(), rows))
    assert len({job.turns[0].prompt for job in jobs}) >= rows - 2
    assert len(Counter(job.label for job in jobs)) == labels
    assert next(made.jobs(rows)).turns == jobs[0].turns
    assert made.describe()["rows"] == rows


def test_mt_bench_has_second_turns() -> None:
    fields = {"dataset": "prompts", "path": "mt_bench", "endpoint": "chat", "turns": 2}
    jobs = jobs_of(80, **fields, think_time_s=1.0, think_time="exponential")
    assert all(len(job.turns) == 2 for job in jobs)
    assert len({job.turns[1].delay_s for job in jobs}) == 80
    assert all(len(job.turns) == 1 for job in jobs_of(80, dataset="prompts", path="mt_bench"))


def test_sonnets_are_lines_with_a_few_words() -> None:
    lines = {
        line
        for job in jobs_of(9, dataset="prompts", path="sonnet", input_len=200)
        for line in job.turns[0].prompt.split("\n")[1:-1]
    }
    assert "Shall I compare thee to a summer's day?" in lines
    job = jobs_of(1, dataset="prompts", path="sonnet", input_len=200)[0]
    assert job.turns[0].prompt.startswith("Text:\n")
    assert len(job.turns[0].prompt.split("\n")[-1].split()) < 15
    short = jobs_of(1, dataset="prompts", path="sonnet", input_len=5)[0]
    assert len(words_of(short.turns[0].prompt)) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mt_bench", "5a8797e31fdd405c"),
        ("vicuna", "3141cc87ece0bc03"),
        ("self_instruct", "e9d869ca050257ca"),
    ],
)
def test_bundled_sets_are_the_same_bytes_everywhere(name: str, expected: str) -> None:
    assert digest(jobs_of(100, dataset="prompts", path=name)) == expected


# Parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("random", ("random", None)),
        ("prefix_repetition", ("prefix-repetition", None)),
        ("mt_bench", ("prompts", "mt_bench")),
        ("prompts:vicuna", ("prompts", "vicuna")),
        ("trace:/a/b:c.csv", ("trace", "/a/b:c.csv")),
    ],
)
def test_data_sets_are_named(text: str, expected: tuple[str, str | None]) -> None:
    assert parse_dataset(text) == expected


def test_unknown_data_sets_name_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"did you mean sharegpt\?"):
        parse_dataset("sharegtp")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "randon"}, "did you mean random"),
        ({"endpoint": "chats"}, "did you mean chat"),
        ({"input_len": 0}, "input_len is 0; it must be at least 1"),
        ({"output_len": -1}, "output_len is -1"),
        ({"prefix_len": -1}, "prefix_len is -1"),
        (
            {"think_time_s": float("nan"), "dataset": "multi-turn", "turns": 2},
            "think_time_s is nan",
        ),
        ({"dataset": "multi-turn", "turns": 3, "turns_max": 2}, "turns_max is 2"),
        ({"turns_max": 2}, "turns_max goes with multi-turn"),
        ({"dataset": "multi-turn"}, "at least 2 turns"),
        ({"turns": 2}, "turns means nothing for random"),
        ({"num_prefixes": 2}, "needs a prefix_len"),
        ({"dataset": "prefix-repetition"}, "needs a prefix_len"),
        ({"time_scale": 2}, "time_scale means nothing for random; it goes with trace"),
        ({"path": "x"}, "reads no file"),
        ({"dataset": "jsonl"}, "needs a file"),
        ({"dataset": "prompts"}, "needs the name of a set: mt_bench"),
        ({"dataset": "prompts", "path": "vicunia"}, "did you mean vicuna"),
        ({"dataset": "prompts", "path": "vicuna", "input_len": 9}, "input_len means nothing"),
        ({"endpoint": "chat", "prompt_form": "ids"}, "token ids cannot be sent to the chat"),
        ({"dataset": "multi-turn", "turns": 2, "prompt_form": "ids"}, "use text"),
        ({"range_ratio": 0.8}, "vllm: 204 to 1844, inferencex: 819 to 1024, sglang: 819 to 1024"),
        ({"range_ratio": 1.0}, "inferencex: 1024 to 1024"),
        ({"range_ratio": 1.0, "length_convention": "vllm"}, "at least 0 and below 1"),
        ({"range_ratio": 1.1, "length_convention": "sglang"}, "from 0 to 1"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError) as caught:
        WorkloadSpec(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_is_counted_needs_tokens(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f", ["{}"])
    assert needs_tokens(WorkloadSpec())
    assert needs_tokens(WorkloadSpec(dataset="trace", path=path))
    assert needs_tokens(WorkloadSpec(dataset="prompts", path="sonnet"))
    assert not needs_tokens(WorkloadSpec(dataset="prompts", path="vicuna"))
    assert not needs_tokens(WorkloadSpec(dataset="jsonl", path=path))
    with pytest.raises(BenchError, match="--tokenizer"):
        make_workload(WorkloadSpec(), None, 0)
