"""What the names of annotations say: a step of a forward, a capture, or nothing.

Four families: ours and upstream ATOM's (`decode[bs=30 tok=30 graph=32]`, `decode[bs=30/32 ...]`,
`eager_decode[...]`, `dummy_prefill[...]`, `draft[1/3 bs=30]`), vLLM's (`execute_context_1(512)_
generation_3(3)` and the form with sums of lengths), SGLang's (`step[EXTEND bs=1 toks=512]`), and
captures (`capture_graph_bs_32`, `capture_graph_tok_64`, `capture_32_DECODE`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

Fields = dict[str, int | str | list[int]]

# An annotation of a capture trace holds these two: the body run eagerly, then recorded.
WARM_UP, RECORD = "warm_up", "record"

_BRACKETS = re.compile(r"(?P<head>[a-z_]+)\[(?P<body>.*)\]", re.DOTALL)
_PAIR = re.compile(r"([A-Za-z_]\w*)=(\[[^\]]*\]|[^\s,\]]+)")
_DRAFT = re.compile(r"\s*(\d+)/(\d+)\b")
_PREFIXES = ("dummy_", "eager_")
_KINDS = ("prefill", "decode", "draft", "mixed")
_VLLM = re.compile(
    r"execute_(?:(?P<total>\d+)_)?context_(?P<p>\d+)\((?P<ctx>[^)]*)\)"
    r"_generation_(?P<d>\d+)\((?P<gen>[^)]*)\)"
)
_SUMS = re.compile(r"(sqsq|sqsk|sq|sk)(\d+)")
_SGLANG = re.compile(r"step\[(?P<mode>[A-Za-z_]+)(?P<body>[^\]]*)\]")
_SGLANG_KINDS = {
    "EXTEND": "prefill",
    "SPLIT_PREFILL": "prefill",
    "DLLM_EXTEND": "prefill",
    "PREFILL": "prefill",
    "DECODE": "decode",
    "TARGET_VERIFY": "decode",
    "MIXED": "mixed",
    "DRAFT_EXTEND": "draft",
    "DRAFT_EXTEND_V2": "draft",
    "IDLE": "dummy",
    "DUMMY_FIRST": "dummy",
}
_CAPTURE_OURS = re.compile(r"capture_graph_(?P<what>bs|tok)_(?P<size>\d+)(?P<more>\w*)")
_CAPTURE_OTHERS = re.compile(r"capture_(?P<size>\d+)(?:_(?P<mode>\w+))?")


@dataclass(frozen=True, slots=True)
class Label:
    """A step's label, read."""

    name: str  # as in the file
    kind: str  # of `types.STEP_KINDS`
    family: str  # "atom", "vllm", "sglang"
    fields: Fields = field(default_factory=dict)


@lru_cache(maxsize=1 << 16)
def parse_label(name: str) -> Label | None:
    """None: `name` is no label of a step or of a capture.

    Fields have our names whatever the family: bs sequences, tok tokens computed, p and d prompts
    and decodes among bs, ctx, sk, sqsk, sqsq (see `types`), graph the size of the graph that ran
    it, i and k of a draft, mode as others call it.
    """
    for read in (_ours, _vllm, _sglang, _capture):
        label = read(name)
        if label is not None:
            return label
    return None


def _ours(name: str) -> Label | None:
    match = _BRACKETS.fullmatch(name)
    if match is None:
        return None
    head, dummy, fields = match["head"], False, Fields()
    while head.startswith(_PREFIXES):
        prefix, head = head.split("_", 1)
        dummy |= prefix == "dummy"
        if prefix == "eager":
            fields["eager"] = 1
    if head not in _KINDS:
        return None
    draft = _DRAFT.match(match["body"])
    if head == "draft" and draft:
        fields["i"], fields["k"] = int(draft[1]), int(draft[2])
    fields.update(_pairs(match["body"]))
    kind = head
    if head in ("prefill", "decode") and _count(fields, "p") and _count(fields, "d"):
        kind = "mixed"
    return Label(name, "dummy" if dummy else kind, "atom", fields)


def _pairs(body: str) -> Fields:
    """`bs=30/32 ctx=[1,2,3,+4]` -> {"bs": 30, "graph": 32, "ctx": "[1,2,3,+4]"}."""
    fields = Fields()
    for key, text in _PAIR.findall(body):
        real, slash, graph = text.partition("/")
        if key == "bs" and slash and real.isdigit() and graph.isdigit():
            fields["bs"], fields["graph"] = int(real), int(graph)
        else:
            fields[key] = _value(text)
    return fields


def _value(text: str) -> int | str | list[int]:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if text.startswith("["):
        parts = [part.strip() for part in text[1:-1].split(",") if part.strip()]
        # "+7" at the end counts the requests left out: not a length, so the list stays text.
        if all(part.isdigit() for part in parts):
            return [int(part) for part in parts]
    return text


def _count(fields: Fields, key: str) -> int:
    value = fields.get(key, 0)
    return value if isinstance(value, int) else 0


def _vllm(name: str) -> Label | None:
    match = _VLLM.fullmatch(name)
    if match is None:
        return None
    prompts, decodes = int(match["p"]), int(match["d"])
    tokens, sums = 0, dict.fromkeys(("sk", "sqsk", "sqsq"), 0)
    for text in (match["ctx"], match["gen"]):
        found = {key: int(value) for key, value in _SUMS.findall(text)}
        tokens += found.get("sq", 0) if found else int(text) if text.isdigit() else 0
        for key in sums:
            sums[key] += found.get(key, 0)
    fields: Fields = {"bs": prompts + decodes, "tok": tokens}
    if prompts:
        fields["p"] = prompts
    if decodes:
        fields["d"] = decodes
    fields.update({key: value for key, value in sums.items() if value})
    kind = "mixed" if prompts and decodes else "prefill" if prompts else "decode"
    return Label(name, kind if prompts + decodes else "dummy", "vllm", fields)


def _sglang(name: str) -> Label | None:
    match = _SGLANG.fullmatch(name)
    if match is None:
        return None
    mode = match["mode"].upper()
    fields: Fields = {"mode": mode}
    for key, value in _pairs(match["body"]).items():
        fields["tok" if key == "toks" else key] = value
    kind = _SGLANG_KINDS.get(mode, "step")
    if kind == "decode" and "tok" not in fields and mode == "DECODE" and "bs" in fields:
        fields["tok"] = fields["bs"]
    return Label(name, kind, "sglang", fields)


def _capture(name: str) -> Label | None:
    if match := _CAPTURE_OURS.fullmatch(name):
        return Label(name, "capture", "atom", {match["what"]: int(match["size"])})
    if match := _CAPTURE_OTHERS.fullmatch(name):
        fields: Fields = {"bs": int(match["size"])}
        if match["mode"]:
            fields["mode"] = match["mode"]
        return Label(name, "capture", "vllm/sglang", fields)
    return None
