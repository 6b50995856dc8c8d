"""The client against a server whose answers are known, and which misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_server import BOS, EOS, MODEL, TEMPLATE, Manners, ScoringServer, truth
from serverkit import serving

from atom.errors import AtomError
from atom.eval.client import ServerClient, connect
from atom.eval.client.batches import batches, fit, fit_prompt, rolling_windows
from atom.eval.client.link import HEALTH_PAUSES_S
from atom.eval.errors import EvalError, EvalStopped, ServerGone
from atom.eval.journal import Header, Journal
from atom.eval.types import (
    Endpoint,
    Generated,
    GenerateItem,
    Progress,
    Scored,
    ScoreItem,
    SpecialTokens,
)


def write_tokenizer(folder: Path) -> None:
    """Words, and what other files tell of it."""
    words = {"<s>": 0, "</s>": 1, "hello": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


ids = st.lists(st.integers(0, 3), min_size=1, max_size=6)
items = st.lists(st.builds(ScoreItem, ids, ids), max_size=30)


class Clock:
    """`sleep` that takes no time and writes down how long it was asked for."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


@contextmanager
def client_of(
    server: ScoringServer,
    *,
    clock: Clock | None = None,
    journal: Journal | None = None,
    tokenizer: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **endpoint: Any,
) -> Iterator[ServerClient]:
    with connect(
        Endpoint(base_url=server.url, model=MODEL, **endpoint),
        journal=journal,
        tokenizer=tokenizer,
        on_progress=on_progress,
        stop=stop,
        sleep=(clock or Clock()).sleep,
    ) as client:
        yield client


def some_items(count: int, seed: int = 0) -> list[ScoreItem]:
    """Several continuations of one context side by side, as tasks give them."""
    rng = random.Random(seed)
    out = []
    while len(out) < count:
        context = [rng.randrange(256) for _ in range(rng.randrange(1, 9))]
        for _ in range(rng.randrange(1, 5)):
            out.append(ScoreItem(context, [rng.randrange(256) for _ in range(rng.randrange(1, 4))]))
    return out[:count]


def expected(items: list[ScoreItem]) -> list[Scored]:
    return [Scored(*truth(list(i.context), list(i.continuation))) for i in items]


# Forming requests


@settings(max_examples=60, deadline=None)
@given(items, st.integers(1, 9))
def test_each_item_is_in_one_batch_beside_its_context(items: list[ScoreItem], size: int) -> None:
    made = batches(items, size)
    assert sorted(n for batch in made for n in batch) == list(range(len(items)))
    assert all(1 <= len(batch) <= size for batch in made)
    order = [tuple(items[n].context) for batch in made for n in batch]
    assert order == sorted(order)
    for context in set(order):
        spread = sum(any(tuple(items[n].context) == context for n in batch) for batch in made)
        assert spread == -(-order.count(context) // size), "torn apart though it fits a batch"


@settings(max_examples=60, deadline=None)
@given(ids, ids, st.integers(1, 14) | st.none())
def test_what_does_not_fit_is_cut_from_the_left(
    context: list[int], continuation: list[int], limit: int | None
) -> None:
    if limit is not None and len(continuation) >= limit:
        with pytest.raises(EvalError, match=f"in a context of {limit}: start the server"):
            fit(ScoreItem(context, continuation), limit)
        return
    made = fit(ScoreItem(context, continuation), limit)
    whole = context + continuation
    assert made.tokens == (whole if limit is None else whole[-limit:])
    assert made.tokens[made.start :] == continuation
    assert made.start >= 1
    assert made.cut == (made.tokens != whole)


def test_prompts_leave_room_for_their_answers() -> None:
    item = GenerateItem(prompt_ids=[*range(10)], max_tokens=6)
    assert fit_prompt(item, 16) == ([*range(10)], False)
    assert fit_prompt(item, 15) == ([*range(1, 10)], True)
    assert fit_prompt(item, None) == ([*range(10)], False)
    with pytest.raises(EvalError, match=r"up to 6 tokens .* context of 6: .*--max-gen-toks"):
        fit_prompt(item, 6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
def test_rolling_windows_are_lm_evals(tokens: list[int], size: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 99, size, 1))
    assert [(list(w.context), list(w.continuation)) for w in rolling_windows(tokens, 99, size)] == [
        (list(context), list(continuation)) for context, continuation in theirs
    ]


# Scoring


@pytest.mark.parametrize(
    ("manners", "form"),
    [
        (Manners(), (0, True)),
        (Manners(zero_tokens=False), (1, True)),
        (Manners(zero_tokens=False, starts=False), (1, False)),
        (Manners(kind="vllm"), (1, False)),
        (Manners(kind="sglang", max_model_len=None), (1, False)),
    ],
    ids=["ours", "no max_tokens 0", "no logprobs_start", "vllm", "sglang"],
)
def test_scores_are_the_servers(manners: Manners, form: tuple[int, bool]) -> None:
    items = some_items(60)
    items += items[:7]  # asked once
    distinct = {(tuple(item.context), tuple(item.continuation)) for item in items}
    with ScoringServer(manners) as server, client_of(server, batch_size=5) as client:
        assert client.score(items) == expected(items)
        assert client.score(items) == expected(items)
        last = server.asked[-1][1]
        assert (last["max_tokens"], "logprobs_start" in last) == form
        answered = server.prompts[-len(distinct) :]
        assert sorted(answered) == sorted([*context, *more] for context, more in distinct)
        assert client.counts.items == 2 * len(items)
        assert client.counts.kept == client.counts.retries == 0
        assert all(len(body["prompt"]) <= 5 for _, body in server.asked)
        assert all(agent.startswith("atom-") for agent in server.agents)


def test_long_items_are_cut_and_told() -> None:
    item = ScoreItem([*range(70)], [1, 2])
    with ScoringServer(Manners("vllm", 64)) as server, client_of(server) as client:
        assert client.score([item]) == expected([ScoreItem([*range(9, 70)], [1, 2])])
        client.score([ScoreItem([*range(80)], [1])])
        note = "2 prompts were longer than the context of 64 tokens: cut from the left"
        assert client.notes == [f"{note}, as lm-eval does"]
    with (
        ScoringServer(Manners("atom", 64)) as server,
        client_of(server) as client,
    ):  # no room for a token is needed
        assert client.score([item]) == expected([ScoreItem([*range(8, 70)], [1, 2])])


def test_rolling_scores_add_up() -> None:
    text = [n % 7 for n in range(150)]
    with ScoringServer(Manners("atom", 64)) as server, client_of(server) as client:
        windows = rolling_windows(text, BOS, 63)
        total = sum(one.logprob for one in expected(windows))
        assert client.score_rolling([text, [], [5]], BOS) == [total, 0.0, truth([BOS], [5])[0]]
        assert max(len(p) for p in server.prompts) == 64


def test_rolling_without_a_known_context_is_noted() -> None:
    with ScoringServer(Manners(max_model_len=None)) as server, client_of(server) as client:
        client.score_rolling([[1] * 100], BOS)
        assert client.notes == []
        assert [len(p) for p in server.prompts] == [101]
        client.score_rolling([[1] * 2100], BOS)
        assert [len(p) for p in server.prompts[1:]] == [2048, 2048]
        assert "windows of 2048 tokens" in client.notes[0]


@pytest.mark.parametrize(
    ("manners", "said"),
    [
        (Manners(kind="llama.cpp", scores="generated"), "generated tokens only (1, for a prompt"),
        (Manners(scores="generated"), "generated tokens only (0, for a prompt of"),
        (Manners(kind="vllm", scores="bos"), "10 log-probabilities for a prompt of 8 tokens"),
        (Manners(scores="none"), "gave no log-probabilities"),
        (Manners(scores="untold"), "gave no top_logprobs"),
        (Manners(kind="unknown", id_prompts=False), "refuses echo with logprobs on token ids"),
    ],
    ids=["llama.cpp", "nothing echoed", "one more", "none", "no top", "no ids"],
)
def test_a_server_that_cannot_score_is_refused(manners: Manners, said: str) -> None:
    with ScoringServer(manners) as server, client_of(server) as client:
        with pytest.raises(EvalError) as raised:
            client.score([ScoreItem([1, 2, 3, 4, 5, 6], [7, 8])] * 3 + some_items(40))
        assert said in str(raised.value)
        assert "tasks that generate text, such as gsm8k, work with it" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.exit_code == 2
        assert len(server.asked) <= 3, "found out before many were sent"
        assert client.generate([GenerateItem(prompt="Hi")])[0].text == "answer"


# Failures


def test_busy_and_failing_servers_are_asked_again() -> None:
    date = format_datetime(datetime.now(timezone.utc) - timedelta(seconds=5), usegmt=True)
    faults = {0: (429, 7), 2: (503, None), 3: (500, date), 5: "hang up"}
    items, clock = some_items(30), Clock()
    with (
        ScoringServer(Manners(fault=faults.get)) as server,
        client_of(server, clock=clock, batch_size=4, concurrency=1) as client,
    ):
        assert client.score(items) == expected(items)
        assert client.counts.retries == 4
        assert client.counts.requests == len(server.asked) - 4
    first, second, third, look, last = clock.waits
    assert (first, third, look) == (7.0, 0.0, HEALTH_PAUSES_S[0])
    assert 0.25 <= second <= 0.5
    assert 0.25 <= last <= 0.5


def test_busy_is_no_failure_while_others_are_answered() -> None:
    """One request gets a 429 more often than max_retries, each time while another is answered."""
    items = [ScoreItem([n], [5]) for n in range(40)]
    refused: list[int] = []

    def fault(number: int) -> Any:
        if server.asked[number][1]["prompt"] != [[1, 5]] or len(refused) == 6:
            return None
        refused.append(number)
        server.wait_asked(number + 3)  # the next one has been answered, and one more has come
        return 429, 0

    with (
        ScoringServer(Manners(fault=fault)) as server,
        client_of(server, batch_size=1, concurrency=2, max_retries=2) as client,
    ):
        assert client.score(items) == expected(items)
        assert client.counts.retries == len(refused) == 6


def test_a_server_that_fails_each_time_ends_it() -> None:
    broken, clock = Manners(fault=lambda number: (500, None) if number else None), Clock()
    with (
        ScoringServer(broken) as server,
        client_of(server, clock=clock, batch_size=2, concurrency=1, max_retries=2) as client,
        pytest.raises(ServerGone) as raised,
    ):
        client.score(some_items(20))
    line = str(raised.value)
    assert (
        "/v1/completions failed 3 times, last with: HTTP 500: told to fail; after 2 of 20" in line
    )
    assert line.endswith("requests (scoring); nothing is kept")
    assert raised.value.exit_code == 1
    assert len(clock.waits) == 2
    assert clock.waits[0] < clock.waits[1] * 2 <= 2.0


def test_a_wait_without_end_ends_it() -> None:
    with (
        ScoringServer(Manners(fault=lambda _: (429, 3600))) as server,
        client_of(server) as client,
        pytest.raises(ServerGone, match="wait for 3600 s"),
    ):
        client.score(some_items(2))


def test_a_dead_server_is_looked_for_and_given_up() -> None:
    clock = Clock()
    manners = Manners(hold=threading.Event())
    with (
        ScoringServer(manners) as server,
        client_of(server, clock=clock, batch_size=1) as client,
    ):
        killer = threading.Thread(target=lambda: (server.wait_asked(1), server.die()))
        killer.start()
        with pytest.raises(ServerGone, match=r"server at http://127\S+ is gone: ") as raised:
            client.score(some_items(20))
        killer.join()
        assert "after 0 of 20 requests (scoring); nothing is kept" in str(raised.value)
        assert clock.waits == list(HEALTH_PAUSES_S)


def test_a_server_that_says_it_ends_is_given_up() -> None:
    manners = Manners(fault=lambda _: "hang up", health=503)
    with (
        ScoringServer(manners) as server,
        client_of(server) as client,
        pytest.raises(ServerGone, match="is gone"),
    ):
        client.generate([GenerateItem(prompt="Hi")])


def test_a_living_server_that_breaks_connections_is_given_up_after_all() -> None:
    with ScoringServer(Manners(fault=lambda _: "hang up")) as server:
        with (
            client_of(server, max_retries=1) as client,
            pytest.raises(ServerGone, match="failed 2 times, last with: "),
        ):
            client.generate([GenerateItem(prompt="Hi")])
        assert len(server.asked) == 2


def test_a_request_that_takes_too_long_ends_it() -> None:
    with (
        ScoringServer(Manners(hold=threading.Event())) as server,
        client_of(server, timeout_s=0.1) as client,
        pytest.raises(ServerGone, match=r"no answer within 0\.1 s: .*--concurrency"),
    ):
        client.score(some_items(2))


def test_our_own_limit_of_files_is_not_blamed_on_the_server() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ScoringServer() as server, client_of(server, batch_size=1) as client:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            with pytest.raises(EvalError, match="32 requests at once need more open files"):
                client.score(some_items(40))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nobody_there() -> None:
    with ScoringServer() as server:
        pass
    with pytest.raises(ServerGone, match="no server answers at"):
        connect(Endpoint(base_url=server.url, model=MODEL))


def test_keys_and_models_are_refused_in_one_line() -> None:
    with ScoringServer(Manners(key="secret")) as server:
        with pytest.raises(EvalError, match="wants an API key") as raised:
            connect(Endpoint(base_url=server.url, model=MODEL))
        assert raised.value.exit_code == 2
        with pytest.raises(EvalError, match="refuses the API key") as raised:
            connect(Endpoint(base_url=server.url, model=MODEL, api_key="hush"))
        assert "hush" not in str(raised.value)
        with pytest.raises(EvalError, match=r"has no model mock-modle.*mock-model"):
            connect(Endpoint(base_url=server.url, model="mock-modle", api_key="secret"))
        with pytest.raises(AtomError, match="cannot be sent"):
            connect(Endpoint(base_url=server.url, model=MODEL, headers={"X": "a\nb"}))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "refuses a request to /v1/chat/completions (HTTP 400): told to fail"),
        (401, "wants an API key (--api-key) (HTTP 401): told to fail"),
        (404, "refuses a request to /v1/chat/completions (HTTP 404): told to fail"),
        (413, "send fewer prompts in one request (--batch-size)"),
    ],
)
def test_what_a_server_refuses_is_not_asked_again(status: int, said: str) -> None:
    with ScoringServer(Manners(fault=lambda _: (status, None))) as server:
        with client_of(server) as client, pytest.raises(EvalError) as raised:
            client.generate([GenerateItem(messages=[{"role": "user", "content": "Hi"}])])
        assert said in str(raised.value)
        assert len(server.asked) == 1


# Generating


def test_generation_requests_say_all_that_was_asked() -> None:
    chat = [{"role": "user", "content": "Hi"}]
    with ScoringServer(Manners(reasoning="hm")) as server, client_of(server) as client:
        made = client.generate(
            [
                GenerateItem(prompt_ids=[1, 2], until=["X", ""], max_tokens=9),
                GenerateItem(prompt="p", temperature=0.5, seed=3, extra={"top_p": 0.9}),
                GenerateItem(messages=chat, until=["swer"]),
            ]
        )
        bodies = {path + str(body.get("prompt")): body for path, body in server.asked}
    common = {"model": MODEL, "temperature": 0.0, "max_tokens": 256}
    assert bodies["/v1/completions[1, 2]"] == common | {
        "prompt": [1, 2],
        "stop": ["X"],
        "max_tokens": 9,
    }
    sampled = {"prompt": "p", "temperature": 0.5, "seed": 3, "top_p": 0.9}
    assert bodies["/v1/completionsp"] == common | sampled
    assert bodies["/v1/chat/completionsNone"] == common | {"messages": chat, "stop": ["swer"]}
    assert made == [
        Generated("answer", "stop", 5, 7),
        Generated("answer", "stop", 5, 7),
        Generated("an", "stop", 5, 7, reasoning="hm"),
    ]


def test_text_ends_before_the_first_stop_whatever_the_server_does() -> None:
    stops = ["one", "two", "three", "four", "END"]
    manners = Manners(max_stops=4, reply="fine END two", finish_reason="length")
    with ScoringServer(manners) as server, client_of(server) as client:
        item = GenerateItem(prompt="p", until=stops)
        assert client.generate([item]) == [Generated("fine ", "stop", 5, 7)]
        assert client.generate([item]) == [Generated("fine ", "stop", 5, 7)]
        assert [body["stop"] for _, body in server.asked] == [stops, stops[:4], stops[:4]]


def test_an_answer_cut_at_its_length_says_so() -> None:
    with ScoringServer(Manners(finish_reason="length")) as server, client_of(server) as client:
        assert client.generate([GenerateItem(prompt="p")])[0].finish_reason == "length"


def test_long_prompts_are_cut_and_told() -> None:
    item = GenerateItem(prompt_ids=[*range(70)], max_tokens=4)
    with ScoringServer(Manners("atom", 64)) as server, client_of(server) as client:
        client.generate([item])
        assert server.asked[0][1]["prompt"] == [*range(10, 70)]
        assert client.notes[0].startswith("1 prompt was longer than the context of 64 tokens")


def test_equal_samples_are_asked_each(tmp_path: Path) -> None:
    header = Header("r", [], "", MODEL)
    item = GenerateItem(prompt="p", temperature=1.0)
    with ScoringServer() as server, Journal.create(tmp_path, header) as journal:
        with client_of(server, journal=journal) as client:
            client.generate([item] * 3)
            client.generate([item] * 2)
            assert len(server.asked) == 5
        with client_of(server, journal=journal) as client:
            client.generate([item] * 6)
            assert len(server.asked) == 6
            assert (client.counts.items, client.counts.kept) == (6, 5)


# Text


def text_requests(server: ScoringServer) -> list[Any]:
    return [body.get("prompt", body.get("content")) for _, body in server.seen[1:]]  # 0: the probe


def test_many_texts_go_in_one_request() -> None:
    texts = [f"text {n}" for n in range(300)] + ["", "text 0", "é"]
    with ScoringServer() as server, client_of(server) as client:
        assert client.tokenize(texts) == [list(text.encode()) for text in texts]
        assert [len(chunk) for chunk in text_requests(server)] == [256, 45]
        assert client.tokenize(["a"], add_special_tokens=True) == [[BOS, 97]]


@pytest.mark.parametrize(
    ("manners", "first"),
    [
        (Manners(kind="vllm"), "a"),
        (Manners(text_lists=False), ["a", "b", "c"]),
        (Manners(kind="llama.cpp"), "a"),
    ],
    ids=["vllm", "an older one of ours", "llama.cpp"],
)
def test_else_one_text_in_each(manners: Manners, first: Any) -> None:
    with ScoringServer(manners) as server, client_of(server, concurrency=1) as client:
        assert client.tokenize(["a", "b", "a", "c"]) == [[97], [98], [97], [99]]
        assert client.tokenize(["d"]) == [[100]]
        sent = text_requests(server)
        assert sent[0] == first
        assert sent[-4:] == ["a", "b", "c", "d"]
        assert client.detokenize([97, 98]) == "ab"


def test_special_tokens_and_template() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    whole = "<s>[user]Hi|[assistant]Yes|[assistant]"
    for manners in (Manners(), Manners(tokenizer_info=False)):  # the template, or by the tokens
        with ScoringServer(manners) as server, client_of(server) as client:
            known = (EOS, TEMPLATE) if manners.tokenizer_info else (None, None)
            assert client.special_tokens() == SpecialTokens(BOS, *known)
            assert client.chat_prompt(chat, add_generation_prompt=True) == whole
            opened = client.chat_prompt(chat, add_generation_prompt=False)
            assert opened == "<s>[user]Hi|[assistant]Yes"


def test_a_tokenizer_in_files_must_be_the_servers(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder)
    with ScoringServer() as server:
        with (
            client_of(server, tokenizer=folder) as client,
            pytest.raises(EvalError, match="splits text otherwise than the atom server"),
        ):
            client.tokenize(["hello hello"])
        with pytest.raises(EvalError, match="no such file or folder"):
            connect(Endpoint(base_url=server.url, model=MODEL), tokenizer=tmp_path / "none")
        (tmp_path / "empty").mkdir()
        with pytest.raises(EvalError, match=r"there is no tokenizer \(tokenizer.json\)"):
            connect(Endpoint(base_url=server.url, model=MODEL), tokenizer=tmp_path / "empty")


def test_a_tokenizer_in_files_is_enough(tmp_path: Path) -> None:
    """As the server's own, were it not that it has none."""
    write_tokenizer(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with ScoringServer() as server, client_of(server, tokenizer=path) as client:
            bare = replace(client.info, has_tokenize=False)
            server.seen.clear()
            with connect(
                Endpoint(base_url=server.url, model=MODEL), tokenizer=path, info=bare
            ) as alone:
                assert alone.tokenize(["hello hello", ""]) == [[2, 2], []]
                assert alone.detokenize([1, 2]) == "</s>hello"
                assert alone.special_tokens() == SpecialTokens(0, 1, TEMPLATE)
                prompt = alone.chat_prompt(
                    [{"role": "user", "content": "Hi"}], add_generation_prompt=True
                )
                assert prompt == "<s>[user]Hi|[assistant]"
                assert server.seen == []


# Progress, stopping


def test_progress_is_told_in_the_calling_thread() -> None:
    told: list[Progress] = []
    threads: set[int] = set()

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        threads.add(threading.get_ident())

    with ScoringServer() as server, client_of(server, on_progress=on_progress) as client:
        client.score(some_items(30), "arc_easy")
        client.generate([GenerateItem(prompt="p")], "gsm8k")
    assert threads == {threading.get_ident()}
    by_phase = {p.phase: [q for q in told if q.phase == p.phase] for p in told}
    for phase, total, detail in (("scoring", 30, "arc_easy"), ("generating", 1, "gsm8k")):
        rows = by_phase[phase]
        assert [row.done for row in rows] == sorted(row.done for row in rows)
        assert (rows[0].done, rows[-1].done) == (0, total)
        assert {(row.total, row.detail, row.kept, row.retries) for row in rows} == {
            (total, detail, 0, 0)
        }
        assert rows[-1].tokens > 0


@pytest.mark.parametrize("how", ["stop", "ctrl-c"])
def test_stopped_by_the_user(how: str, tmp_path: Path) -> None:
    """Some are answered, the others held back: those answered are kept."""
    hold = threading.Event()
    hold.set()
    manners = Manners(hold=hold, fault=lambda number: hold.clear() if number == 3 else None)
    items, stop = some_items(40), threading.Event()

    def on_progress(progress: Progress) -> None:
        if progress.done >= 3:
            if how == "ctrl-c":
                raise KeyboardInterrupt
            stop.set()

    header = Header("r", [], "", MODEL)
    with ScoringServer(manners) as server, Journal.create(tmp_path, header) as journal:
        with (
            client_of(
                server,
                journal=journal,
                on_progress=on_progress,
                stop=stop.is_set,
                batch_size=1,
                concurrency=2,
            ) as client,
            pytest.raises(EvalStopped, match=r"stopped after [3-5] of 40 .*--resume") as raised,
        ):
            client.score(items)
        assert raised.value.exit_code == 130
        kept = len(journal)
        assert f"{kept} answers are kept" in str(raised.value)
        server.manners = Manners()
        server.asked.clear()
        hold.set()
        with client_of(server, journal=journal) as client:
            assert client.score(items) == expected(items)
            distinct = len({(tuple(i.context), tuple(i.continuation)) for i in items})
            assert len(server.prompts) == distinct - kept


# Our own server


def test_our_own_server_takes_the_short_form() -> None:
    """The fake engine's rule: -0.5 for even tokens, the likeliest; -1 for odd ones."""
    items = [ScoreItem([1, 2, 3], [4, 6]), ScoreItem([1, 2, 3], [4, 5]), ScoreItem([9], [7])]
    with serving() as served, connect(Endpoint(base_url=served.url, model="fake-model")) as client:
        assert client.score(items) == [Scored(-1.0, True), Scored(-1.5, False), Scored(-1.0, False)]
        sampling = [request.sampling for request in served.client.requests]
        assert {(one.max_tokens, one.logprobs_start) for one in sampling} == {(0, 3), (0, 1)}
        assert client.tokenize(["ab", "c"]) == [[97, 98], [99]]
        assert client.special_tokens()[0] == 258
        prompt = client.chat_prompt([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        assert prompt == "[user]Hi<end>[assistant]"
        (made,) = client.generate([GenerateItem(prompt_ids=[1], until=["fox", "dog"])])
        assert made.finish_reason == "stop"
        assert not {"fox", "dog"} & set(made.text.split())
