"""Decode speed of one model per kind of attention, whole or cut to some layers, beside its floor.

    python benchmarks/h200_families.py [NAME ...] [--batches 1 32 128] [--json FILE] [--quick]
        [--set level=0] [--device cpu --tiny]

A name is a bundled published configuration, with the layers to keep: `deepseek-v2-lite`,
`qwen3-next-80b-a3b:24`. Weights are random. Per cell: 128 random tokens in, 128 out, greedy; the
time per output token is the difference of the median times of generating 128 and 1, over 127, as in
`h200.py`. The floor is the bytes that a step must read (weights touched with even routing; caches
at 192 tokens) over what the card was measured to read. vLLM's figures are beside those models that
it was measured on, on the same card with the same work.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from h200 import CELL_LIMIT_S, Child, machine, say, setting  # noqa: E402
from h200_targets import Cell  # noqa: E402
from roofline import READ_BYTES_PER_S  # noqa: E402

from atom.models.footprint import DTYPE_BYTES, cache_uses, tensors  # noqa: E402
from atom.models.hf_config import HFConfig  # noqa: E402
from atom.models.inventory import num_experts  # noqa: E402
from atom.models.inventory_types import EMBEDDING, EXPERTS, TOKEN, WINDOW  # noqa: E402
from atom.models.published import published_config, published_names  # noqa: E402
from atom.models.stored import scheme_of  # noqa: E402

# One per kind of attention; layers so that bfloat16 weights leave room for caches in 141 GB.
DEFAULT = ("deepseek-v2-lite", "qwen3-next-80b-a3b:32", "gpt-oss-20b", "glm-4.5-air:24")
# Better of vLLM 0.26.0 and SGLang 0.5.17 by batch, ms; whole models only.
PEERS = {("deepseek-v2-lite", 0): {1: 3.38, 32: 9.48, 128: 10.86}}
PROMPT, OUTPUT = 128, 128
PER_LAYER = ("layer_types", "mlp_layer_types", "indexer_types", "attn_type_list")


def find(name: str) -> str:
    """The bundled configuration that `name` means."""
    known = {n.rpartition("/")[2].lower(): n for n in published_names()}
    matches = [full for short, full in known.items() if short.startswith(name)]
    if not matches:
        raise SystemExit(f"{name}: not a bundled configuration; there are {', '.join(known)}")
    return min(matches, key=len)


def cut(config: HFConfig, layers: int, tiny: bool) -> dict[str, Any]:
    """The configuration with its first `layers` layers (0: all), of unquantised weights unless the
    engine reads the scheme; `tiny`: with widths that a CPU can do."""
    raw = json.loads(json.dumps(config.raw))
    text = raw.get("text_config", raw)
    count = layers or int(config.num_hidden_layers)
    text["num_hidden_layers"] = count
    for key in PER_LAYER:
        if text.get(key):
            text[key] = text[key][:count]
    text["num_nextn_predict_layers"] = 0
    if tiny:
        text["vocab_size"] = 512
        for key in ("n_routed_experts", "num_experts", "num_local_experts"):
            if text.get(key):
                text[key] = min(text[key], 8)
        text["num_experts_per_tok"] = min(int(text.get("num_experts_per_tok") or 1), 4)
    return dict(raw)


def floor_s(config: HFConfig, batch: int, context: float) -> float:
    """Seconds to read what a decode step of `batch` sequences of `context` tokens reads."""
    experts, top_k = num_experts(config), config.get("num_experts_per_tok") or 0
    touched = 1 - (1 - top_k / experts) ** batch if experts else 1.0
    scheme = scheme_of(config)
    total = 0.0
    for tensor in tensors(config):
        looked_up = tensor.group == EMBEDDING and "head" not in tensor.name
        if looked_up and not config.tie_word_embeddings:
            continue  # a row per token
        width = DTYPE_BYTES[tensor.dtype or "bfloat16"]
        size = scheme.bytes_of(tensor, width) if scheme else tensor.parameters * width
        total += size * (touched if tensor.group == EXPERTS else 1.0)
    for use in cache_uses(config, "bfloat16", "bfloat16"):
        if use.lives == TOKEN:
            total += batch * context * use.bytes
        elif use.lives == WINDOW:
            total += batch * min(context, use.window) * use.bytes
        else:
            total += 2 * batch * use.bytes  # a state is read and written
    return total / READ_BYTES_PER_S


def measure(
    name: str, batches: list[int], args: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """A row per batch of one model."""
    short, _, layers = name.partition(":")
    full = find(short)
    published = published_config(full)
    assert published is not None, full
    raw = cut(published, int(layers or 0), args.tiny)
    model = folder / name.replace(":", "-")
    model.mkdir()
    (model / "config.json").write_text(json.dumps(raw))
    config = HFConfig(raw)
    prompt, output = (16, 8) if args.tiny else (PROMPT, OUTPUT)
    repeats = 1 if args.quick else 3
    todo = [Cell(f"decode-{b}", "decode", b, prompt, output, repeats=repeats) for b in batches]
    settings = {"device": args.device, "load_dummy": True, "max_model_len": 512, **dict(args.set)}
    rows = {
        cell.name: {
            "model": full,
            "layers": int(config.num_hidden_layers),
            "batch": cell.batch,
            "floor_ms": 1e3 * floor_s(config, cell.batch, prompt + output / 2),
            "peer_ms": PEERS.get((short, int(layers or 0)), {}).get(cell.batch),
        }
        for cell in todo
    }
    child = Child(model, settings, todo, args.log)
    for event in child.events(args.limit_s):
        kind = event.pop("event")
        say(f"{name}: {json.dumps({'event': kind, **event})[:400]}")
        if kind == "cell":
            rows[event["name"]]["tpot_ms"] = event["tpot_ms"]
        elif kind == "error":
            rows.get(event["name"], rows[todo[0].name])["error"] = event["error"]
    say(f"{name}: {child.status}")
    return list(rows.values())


def print_table(rows: list[dict[str, Any]]) -> None:
    say(f"{'model':34} layers batch  floor ms   TPOT ms     x   peer")
    for row in rows:
        got = row.get("tpot_ms")
        peer = row["peer_ms"]
        cells = f"{got:9.3f} {got / row['floor_ms']:5.2f}" if got else f"{'FAILED':>9} {'':5}"
        beside = f"{peer:6.2f}" if peer else f"{'-':>6}"
        name = row["model"].rpartition("/")[2]
        say(f"{name:34} {row['layers']:6} {row['batch']:5} {row['floor_ms']:9.3f} {cells} {beside}")
        if "error" in row:
            say(f"    {row['error']}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(DEFAULT), metavar="NAME[:LAYERS]")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 128])
    parser.add_argument("--quick", action="store_true", help="one repeat of each")
    parser.add_argument("--tiny", action="store_true", help="few experts and tokens, for a CPU")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--set", nargs="*", type=setting, default=[], help="settings of LLM")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path, default=Path("h200_families.log"))
    parser.add_argument("--limit-s", type=float, default=CELL_LIMIT_S)
    return parser.parse_args()


def main() -> None:
    args = parse()
    began = time.monotonic()
    about = {"machine": machine(), "settings": dict(args.set), "quick": args.quick}
    say(json.dumps(about))
    args.log.write_text("")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names:
            rows += measure(name, args.batches, args, Path(folder))
            if args.json:
                args.json.write_text(json.dumps({**about, "rows": rows}, indent=1))
    print_table(rows)
    say(f"{time.monotonic() - began:.0f} s in all; the engines' output is in {args.log}")


if __name__ == "__main__":
    main()
