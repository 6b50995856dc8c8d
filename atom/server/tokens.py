"""What clients ask of the tokenizer: token ids of texts and chats, and what it is."""

from __future__ import annotations

from typing import Any

from atom.server.errors import bad_request
from atom.server.prompts import render_chat, tokenize_texts
from atom.server.protocol import TokenizeBody
from atom.server.state import ServerState


async def tokens_of(state: ServerState, body: TokenizeBody) -> dict[str, Any]:
    """The answer to /tokenize: for a list of texts, lists with one entry for each."""
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("Give either prompt or messages.", "prompt")
    tokenizer = state.tokenizer
    if body.messages is not None:
        texts = [await render_chat(tokenizer, body)]
        ids = await tokenize_texts(tokenizer, texts, bool(body.add_special_tokens))
    else:
        _refuse_template_fields(body)
        assert body.prompt is not None
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        ids = await tokenize_texts(tokenizer, texts, body.add_special_tokens is not False)
    counts = [len(one) for one in ids]
    strings = None
    if body.return_token_strs:
        strings = [[tokenizer.token_str(token_id) for token_id in one] for one in ids]
    several = isinstance(body.prompt, list)
    return {
        "count": counts if several else counts[0],
        "max_model_len": state.info.max_model_len,
        "tokens": ids if several else ids[0],
        "token_strs": strings if several or strings is None else strings[0],
    }


def _refuse_template_fields(body: TokenizeBody) -> None:
    for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
        if getattr(body, name) is not None:
            raise bad_request(f"{name} goes with messages, not with prompt.", name)


def tokenizer_facts(state: ServerState) -> dict[str, Any]:
    """The answer to /tokenizer_info: vLLM's names, and the ids of BOS and EOS."""
    tokenizer = state.tokenizer
    named = {
        name: tokenizer.special_tokens.get(name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
    }
    add_bos, add_eos = tokenizer.adds()
    return {
        "tokenizer_class": tokenizer.class_name,
        **named,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "model_max_length": state.info.max_model_len,
        "chat_template": tokenizer.chat_template,
    }
