"""`ServerLM`: a server as a model of lm-eval. Text to tokens and back by lm-eval's rules.

lm-eval asks for log-likelihoods, rolling log-likelihoods and generations; the client sends them.
Special tokens, the split of context and continuation and what empty contexts become follow
lm-eval's `hf` backend, so that scores are equal on the same weights. This imports lm-eval.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from atom.eval.errors import EvalError, EvalStopped, ServerGone
from atom.eval.options import DEFAULT_MAX_GEN_TOKENS, DEFAULT_SEED, Options
from atom.eval.types import (
    Client,
    Generated,
    GenerateItem,
    Message,
    ScoreItem,
    SpecialTokens,
)

# lm-eval's names of the same setting, the first that is given wins.
_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class ChatHistory(str):
    """Messages for the chat endpoint, where lm-eval expects a prompt: their JSON."""


class ServerLM(TemplateLM):  # type: ignore[misc]
    """Answers lm-eval's requests through a `Client`; each method returns in the order asked."""

    def __init__(self, client: Client, options: Options) -> None:
        super().__init__()
        self._client = client
        self._options = options
        self._special: SpecialTokens | None = None
        self._prefix_text: str | None = None
        self._can_tokenize = True
        self._without_system = False
        self.notes: list[str] = []
        # id of lm-eval's instance -> what came back, one for each repeat
        self.generated: dict[int, list[Generated]] = defaultdict(list)

    # Tokens

    @property
    def special(self) -> SpecialTokens:
        if self._special is None:
            self._special = self._client.special_tokens()
        return self._special

    @property
    def eot_token_id(self) -> int:
        token = self.special.eos if self.special.eos is not None else self.special.bos
        if token is None:
            raise EvalError(
                "the server does not tell the model's special tokens, which a text without context "
                "is scored after: name the model's tokenizer with --tokenizer FOLDER"
            )
        return token

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is scored after: BOS, where the model has one."""
        return self.special.bos if self.special.bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return ""  # lm-eval's key of a cache that is not used

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self._encode([string], add_special_tokens)[0]

    def _encode(
        self, texts: Sequence[str], add_special_tokens: bool | None = None
    ) -> list[list[int]]:
        """None: with the special tokens that the model's tokenizer adds, never BOS twice."""
        wanted: dict[bool, list[str]] = {True: [], False: []}
        for text in dict.fromkeys(texts):
            special = add_special_tokens
            if special is None:
                special = not (self._prefix() and text.startswith(self._prefix()))
            wanted[special].append(text)
        known: dict[str, list[int]] = {}
        for special, some in wanted.items():
            if some:
                rows = self._client.tokenize(some, add_special_tokens=special)
                known.update(zip(some, rows, strict=True))
        return [known[text] for text in texts]

    def _prefix(self) -> str:
        """The text of the token before all others; "" where the server does not say."""
        if self._prefix_text is None:
            token = self.special.bos if self.special.bos is not None else self.special.eos
            self._prefix_text = "" if token is None else self._client.detokenize([token])
        return self._prefix_text

    # Log-likelihoods

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        """(log-probability, is greedy) of each (context, continuation)."""
        items = self._items([request.args[:2] for request in requests])
        found = self._client.score(items, _detail(requests))
        return [(one.logprob, one.is_greedy) for one in found]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[Any]:
        items = [ScoreItem(context, continuation) for _, context, continuation in requests]
        return [(one.logprob, one.is_greedy) for one in self._client.score(items)]

    def _items(self, pairs: Sequence[tuple[str, str]]) -> list[ScoreItem]:
        """Spaces at a context's end belong to the continuation; both are tokenised as one text."""
        moved = [_spaces_moved(*pair) for pair in pairs]
        wholes = self._encode(
            [context + continuation for context, continuation in moved if context]
        )
        contexts = self._encode([context for context, _ in moved if context])
        alone = self._encode([text for context, text in moved if not context], False)
        with_context = iter(zip(wholes, contexts, strict=True))
        without = iter(alone)
        items = []
        for (context, continuation), pair in zip(moved, pairs, strict=True):
            if context:
                whole, head = next(with_context)
                item = ScoreItem(head, whole[len(head) :])
            else:
                item = self._after_prefix(next(without))
            if not item.context or not item.continuation:
                raise EvalError(
                    f"the continuation {continuation!r} has no token of its own after "
                    f"{pair[0][-40:]!r}: this task cannot be scored with this model's tokenizer"
                )
            items.append(item)
        return items

    def _after_prefix(self, tokens: list[int]) -> ScoreItem:
        prefix = self.prefix_token_id
        if tokens and tokens[0] == prefix:
            return ScoreItem(tokens[:1], tokens[1:])
        return ScoreItem([prefix], tokens)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """The log-probability of each whole text."""
        texts = self._encode([request.args[0] for request in requests])
        return self._client.score_rolling(texts, self.prefix_token_id)

    # Generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Texts up to the first of `until`, which is not part of them."""
        prompts = [request.args[0] for request in requests]
        asked = [generation_settings(request.args[1], self._options) for request in requests]
        ids = self._prompt_ids([p for p in prompts if not isinstance(p, ChatHistory)])
        items = []
        repeats: dict[int, int] = defaultdict(int)
        for request, prompt, settings in zip(requests, prompts, asked, strict=True):
            number = repeats[id(request)]
            repeats[id(request)] += 1
            items.append(_generate_item(prompt, ids, settings, number, self._options))
        found = self._client.generate(items, _detail(requests))
        texts = []
        for request, item, one in zip(requests, items, found, strict=True):
            self.generated[id(request)].append(one)
            texts.append(_answer(one.text, item.until, self._options.think_end_token))
        return texts

    def _prompt_ids(self, prompts: Sequence[str]) -> Mapping[str, list[int]]:
        """Token ids of prompts; none where there is no tokenizer: then they are sent as text."""
        distinct = list(dict.fromkeys(prompts))
        if not distinct or not self._can_tokenize:
            return {}
        try:
            return dict(zip(distinct, self._encode(distinct), strict=True))
        except (ServerGone, EvalStopped):
            raise
        except EvalError as error:
            self._can_tokenize = False
            self.notes.append(
                "prompts were sent as text, to which the server adds its own special tokens: "
                f"{error}"
            )
            return {}

    # Chat

    def apply_chat_template(
        self, chat_history: Sequence[Message], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a chat; with the chat endpoint, the messages themselves."""
        if self._options.chat:
            return ChatHistory(json.dumps(list(chat_history), ensure_ascii=False))
        history = [m for m in chat_history if not self._without_system or m["role"] != "system"]
        try:
            return self._client.chat_prompt(history, add_generation_prompt=add_generation_prompt)
        except (ServerGone, EvalStopped):
            raise
        except EvalError:
            plain = [message for message in history if message["role"] != "system"]
            if len(plain) == len(history):
                raise
            text = self._client.chat_prompt(plain, add_generation_prompt=add_generation_prompt)
        self._without_system = True  # as lm-eval does
        self.notes.append("the model's chat template takes no system message: it was left out")
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.special.chat_template if chat_template else None


def generation_settings(given: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """A task's generation settings in lm-eval's normal form, `until` a list.

    Without sampling the temperature is 0. Names not known here go to the server as they are.
    """
    settings = dict(given)
    lengths = [settings.pop(name, None) for name in _MAX_TOKENS]
    longest = next((int(n) for n in lengths if n is not None), DEFAULT_MAX_GEN_TOKENS)
    until = settings.pop("until", None) or []
    sample = settings.pop("do_sample", None)
    temperature = settings.pop("temperature", None)
    if sample is False or (sample is None and not temperature):
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0
    stops = [until] if isinstance(until, str) else until
    return {
        **settings,
        "until": [str(stop) for stop in stops if stop],
        "max_gen_toks": longest,
        "temperature": float(temperature),
    }


def _generate_item(
    prompt: str,
    ids: Mapping[str, list[int]],
    settings: Mapping[str, Any],
    number: int,
    options: Options,
) -> GenerateItem:
    extra = dict(settings)
    until, longest = extra.pop("until"), extra.pop("max_gen_toks")
    temperature = extra.pop("temperature")
    base = DEFAULT_SEED if options.seed is None else options.seed
    chat = isinstance(prompt, ChatHistory)
    return GenerateItem(
        prompt_ids=None if chat else ids.get(prompt),
        prompt=None if chat or prompt in ids else str(prompt),
        messages=json.loads(prompt) if chat else None,
        until=until,
        max_tokens=longest,
        temperature=temperature,
        # Greedy answers need none. The samples of one prompt must differ.
        seed=extra.pop("seed", base + number) if temperature else None,
        extra=extra,
    )


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _answer(text: str, until: Sequence[str], think_end: str | None) -> str:
    """After the thinking and before the first of `until`; a server may return them."""
    if think_end:
        text = text.split(think_end)[-1].lstrip()
    for stop in until:
        text = text.split(stop)[0]
    return text


def _detail(requests: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(str(request.task_name) for request in requests))
