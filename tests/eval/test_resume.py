"""A server, or the evaluation itself, is killed in the middle: what was answered is not asked
again, and the result is that of an undisturbed run."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scoring_server
from scoring_server import MODEL, Manners, ScoringServer

from atom.eval.client import connect
from atom.eval.client.client import ServerClient
from atom.eval.errors import ServerGone
from atom.eval.journal import Header, Journal, find_unfinished
from atom.eval.types import Endpoint, Generated, GenerateItem, Progress, Scored, ScoreItem

HEADER = Header("run-1", ["mixed"], "http://localhost", MODEL)
Answers = tuple[list[Scored], list[Generated], list[float]]


def work() -> tuple[list[ScoreItem], list[GenerateItem], list[list[int]]]:
    rng = random.Random(3)
    contexts = [[rng.randrange(256) for _ in range(rng.randrange(1, 20))] for _ in range(30)]
    scores = [
        ScoreItem(context, [rng.randrange(256) for _ in range(2)])
        for context in contexts
        for _ in range(4)
    ]
    texts = [GenerateItem(prompt_ids=context, max_tokens=5) for context in contexts]
    return scores, texts, [context * 50 for context in contexts[:3]]


def evaluate(client: ServerClient) -> Answers:
    scores, texts, rolling = work()
    return client.score(scores), client.generate(texts), client.score_rolling(rolling, 0)


async def no_time(seconds: float) -> None:
    await asyncio.sleep(0)


def client_of(url: str, journal: Journal | None, size: int = 4, many: int = 3) -> ServerClient:
    endpoint = Endpoint(base_url=url, model=MODEL, batch_size=size, concurrency=many)
    return connect(endpoint, journal=journal, sleep=no_time)


def asked(server: ScoringServer) -> list[str]:
    """One entry for each item that was asked for, in any order."""
    rows = []
    for _, body in server.asked:
        prompts = body["prompt"] if body.get("echo") else [body["prompt"]]
        rows += [f"{bool(body.get('echo'))} {prompt}" for prompt in prompts]
    return sorted(rows)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Answers, list[str]]:
    """The answers, and all that is asked for them."""
    with ScoringServer() as server, client_of(server.url, None) as client:
        return evaluate(client), asked(server)


@contextmanager
def server_process(die_after: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, scoring_server.__file__, "--die-after", str(die_after)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("die_after", [0, 1, 17, 45])
def test_a_killed_server(
    die_after: int, tmp_path: Path, undisturbed: tuple[Answers, list[str]]
) -> None:
    """While it scores, and while it generates; resumed with other batches on another server."""
    with server_process(die_after) as (url, process), Journal.create(tmp_path, HEADER) as journal:
        with client_of(url, journal) as client, pytest.raises(ServerGone) as raised:
            evaluate(client)
        assert process.wait(30) == -signal.SIGKILL
    kept = len(journal)
    assert f"the server at {url} is gone: " in str(raised.value)
    assert f"{kept} answers are kept, go on with: atom eval --resume" in str(raised.value)
    # Three requests were under way at most, of four items each, when it was killed.
    assert kept >= min(die_after - 3, 30) * 4 + max(0, die_after - 33)

    (found,) = find_unfinished(tmp_path)
    assert (found.path, found.answers, found.busy) == (journal.path, kept, False)
    with ScoringServer() as server, Journal.open(found.path) as journal:
        with client_of(server.url, journal, size=7, many=5) as client:
            assert evaluate(client) == undisturbed[0]
            assert client.counts.kept == kept
        again = Counter(asked(server))
        assert again.total() == len(undisturbed[1]) - kept
        assert again <= Counter(undisturbed[1])
        server.asked.clear()
        with client_of(server.url, journal) as client:  # finished: nothing is asked any more
            assert evaluate(client) == undisturbed[0]
            assert client.counts.items == client.counts.kept
        assert server.asked == []


def test_the_evaluation_is_killed(tmp_path: Path, undisturbed: tuple[Answers, list[str]]) -> None:
    """What was asked twice are the few requests that were under way."""
    with ScoringServer(Manners()) as server:
        script = "import sys, test_resume; test_resume.die_in_the_middle(*sys.argv[1:])"
        died = subprocess.run(
            [sys.executable, "-c", script, server.url, str(tmp_path)],
            env={"PYTHONPATH": f"{Path(__file__).parent}"},
            timeout=60,
        )
        assert died.returncode == -signal.SIGKILL
        (found,) = find_unfinished(tmp_path)
        assert not found.busy
        assert 20 <= found.answers < len(undisturbed[1])
        with Journal.open(found.path) as journal, client_of(server.url, journal) as client:
            assert evaluate(client) == undisturbed[0]
            assert client.counts.kept == found.answers
        everything = asked(server)
        assert set(everything) == set(undisturbed[1])
        assert len(everything) <= len(undisturbed[1]) + 3 * 4


def die_in_the_middle(url: str, folder: str) -> None:
    """Runs in a process of its own; killed within the writing of the 20th answer or later."""
    import os

    def add(answers: object) -> None:
        write(answers)  # type: ignore[arg-type]
        if len(journal) >= 20:
            os.kill(os.getpid(), signal.SIGKILL)

    with Journal.create(Path(folder), HEADER) as journal:
        write, journal.add = journal.add, add  # type: ignore[method-assign]
        with client_of(url, journal) as client:
            evaluate(client)


def test_progress_begins_with_what_was_kept(tmp_path: Path) -> None:
    told: list[Progress] = []
    scores = work()[0]
    with ScoringServer() as server, Journal.create(tmp_path, HEADER) as journal:
        with client_of(server.url, journal) as client:
            client.score(scores[:50])
        endpoint = Endpoint(base_url=server.url, model=MODEL)
        with connect(endpoint, journal=journal, on_progress=told.append) as client:
            client.score(scores)
    assert [told[0].done, told[0].kept, told[0].total] == [50, 50, 120]
    assert [told[-1].done, told[-1].kept, told[-1].total] == [120, 50, 120]


def test_another_model_shares_no_answers(tmp_path: Path) -> None:
    scores = work()[0]
    with ScoringServer() as server, Journal.create(tmp_path, HEADER) as journal:
        with client_of(server.url, journal) as client:
            client.score(scores)
            info = client.info
        server.asked.clear()
        other = Endpoint(base_url=server.url, model="another")
        with connect(other, journal=journal, info=info) as client:
            client.score(scores)
            assert client.counts.kept == 0
        assert len(server.prompts) == len(scores)
