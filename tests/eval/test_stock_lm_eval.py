"""Plain lm-eval against our server scores and generates what its own `hf` backend does.

Its API models are used as they come: remote tokenizer, ids or texts, one request at a time or many.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_helpers import serving
from tiny import CHAT_TEMPLATE, tiny_checkpoint

CONTEXTS = ["Question: what is red?\nAnswer:", "The cat sat on the", "A", "Question: why?\nAnswer:"]
ENDINGS = [" roses", " mat", " x", " because of the rain."]
LENGTH = 48  # tokens generated
CHATS = ["Say something.", "What is 2 + 2? Think well."]


class Found(NamedTuple):
    scores: list[tuple[float, bool]]
    rolling: list[float]
    texts: list[str]
    cut: list[str]  # generated up to the first of `stops`


class Reference(NamedTuple):
    path: Path
    stops: list[str]
    found: Found
    chats: list[str]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]  # type: ignore[arg-type]


def pairs() -> list[tuple[str, str]]:
    return [(context, ending) for context in CONTEXTS for ending in ENDINGS]


def generations(contexts: list[Any], **more: Any) -> list[Any]:
    settings = {"until": [], "max_gen_toks": LENGTH, "do_sample": False, **more}
    return instances("generate_until", [(context, dict(settings)) for context in contexts])


def ask(lm: Any, stops: list[str]) -> Found:
    return Found(
        lm.loglikelihood(instances("loglikelihood", pairs()), disable_tqdm=True),
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(c,) for c in CONTEXTS])),
        lm.generate_until(generations(CONTEXTS)),
        lm.generate_until(generations(CONTEXTS, until=stops)) if stops else [],
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    """lm-eval's `hf` backend on the same weights. The stops are made of what the model says."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = tiny_checkpoint("llama3")
    lm: Any = HFLM(str(path), device="cpu", dtype="float32", batch_size=1)
    free = lm.generate_until(generations(CONTEXTS))
    # Two characters are two tokens here: the stop string lies across them.
    stops = [found[0] for text in free if (found := re.findall("[!-~]{2}", text))]
    assert len(stops) >= 3
    stops += ["never said", "\n\n\n", "Q:"]
    chats = [lm.apply_chat_template([{"role": "user", "content": content}]) for content in CHATS]
    assert chats[0].startswith("<|bos|><|user|>")
    assert CHAT_TEMPLATE.startswith("{{ '<|bos|>' }}")
    return Reference(path, stops, ask(lm, stops), lm.generate_until(generations(chats)))


@pytest.fixture(scope="module")
def url(reference: Reference) -> Iterator[str]:
    with serving(str(reference.path), "--dtype", "float32", "--served-model-name", "tiny") as found:
        yield found


def check(found: Found, reference: Reference) -> None:
    expected = reference.found
    for (ours, our_greedy), (theirs, their_greedy) in zip(
        found.scores, expected.scores, strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert our_greedy == their_greedy
    assert found.rolling == pytest.approx(expected.rolling, abs=1e-3)
    assert found.texts == expected.texts
    assert found.cut == expected.cut
    cuts = [len(cut) < len(text) for cut, text in zip(found.cut, found.texts, strict=True)]
    assert sum(cuts) >= 3  # they are real ones


WAYS: dict[str, dict[str, Any]] = {
    "ids": {},
    "ids, batches at once": {"batch_size": 3, "num_concurrent": 4},
    "texts": {"tokenized_requests": False},
    "texts, batches": {"tokenized_requests": False, "batch_size": 5},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_local_completions(url: str, reference: Reference, way: dict[str, Any]) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.utils import RemoteTokenizer

    lm = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model="tiny", max_length=1024, max_retries=1, **way
    )
    assert isinstance(lm.tokenizer, RemoteTokenizer)  # found by itself
    assert lm.eot_token_id == 257
    assert lm.prefix_token_id == 256
    check(ask(lm, reference.stops), reference)


def test_local_chat_completions(url: str, reference: Reference) -> None:
    from lm_eval.models.openai_completions import LocalChatCompletion

    for concurrent in (1, 2):
        lm = LocalChatCompletion(
            base_url=f"{url}/v1/chat/completions",
            model="tiny",
            max_retries=1,
            num_concurrent=concurrent,
        )
        chats = [
            lm.apply_chat_template([{"role": "user", "content": content}]) for content in CHATS
        ]
        assert lm.generate_until(generations(chats)) == reference.chats


def test_the_remote_tokenizer_renders_the_model_s_template(url: str) -> None:
    from lm_eval.utils import RemoteTokenizer

    tokenizer = RemoteTokenizer(f"{url}/v1/completions")
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat) == "<|bos|><|user|>Hi<|end|><|assistant|>"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|bos|>", "<|eos|>")
    assert tokenizer.decode(tokenizer.encode("añ<|eos|>")) == "añ<|eos|>"
    assert tokenizer.encode("") == []
