"""What a trace says of the engine that it is of: the metadata under "atom".

`atom.trace` reckons with it: bytes and operations of a module, sizes of a rank, how it was run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from atom.engine.module_marks import computing
from atom.engine.runner.compilation import level_of
from atom.layers.attention import Attention
from atom.layers.build import dtype_name
from atom.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from atom.layers.linear import LinearBase
from atom.layers.mixer import Mixer
from atom.layers.moe import FusedMoE, Router
from atom.layers.norm import RMSNorm
from atom.ops.contracts import GGUFWeight

if TYPE_CHECKING:
    from atom.engine.runner.started_runner import StartedRunner

Facts = dict[str, Any]


def describe(runner: StartedRunner, marked: bool) -> Facts:
    """Of a runner that is ready for steps."""
    config = runner.config
    return {
        "tp_size": config.parallel.tensor_parallel_size,
        "dtype": runner.dtype,
        "kv_cache_dtype": runner.kv_cache_dtype,
        "level": level_of(config),
        "mode": runner.mode,
        "cudagraph_mode": runner.graph_plan.mode,
        "block_size": config.engine.block_size,
        "selects_rows": bool(runner.model.selects_rows),
        "marked": marked,
        "modules": modules_of(runner.model),
    }


def modules_of(model: nn.Module) -> dict[str, Facts]:
    """Path -> facts of a rank's share; see `atom.trace.types`. Bytes are those that a kernel reads
    if it reads all."""
    return {path: facts for path, thing in computing(model) if (facts := _facts(thing))}


def _facts(thing: Any) -> Facts:
    match thing:
        case Router() if thing._keep:
            return _dense_router(thing)
        case LinearBase():
            return _linear(thing.packed, thing.weight_bytes)
        case ParallelLMHead():
            return _linear(thing.packed, thing.weight_bytes)
        case Attention():
            return _attention(thing)
        case Mixer():
            return thing.facts()
        case FusedMoE():
            return _moe(thing)
        case VocabParallelEmbedding():
            size = {"vocab_size": thing.shape[0], "hidden_size": thing.shape[1]}
            return {"kind": "embedding", **size}
        case RMSNorm():
            return {"kind": "norm", "size": thing.size}
        case _:
            return {}


def _linear(packed: Any, nbytes: int) -> Facts:
    sizes = {"n": packed.out_features, "k": packed.in_features, "weight_bytes": nbytes}
    return {"kind": "linear", **sizes, "weight_format": _format(packed)}


def _dense_router(router: Router) -> Facts:
    n, k = router.dense.shape
    sizes = {"n": n, "k": k, "weight_bytes": router.weight_bytes}
    return {"kind": "linear", **sizes, "weight_format": dtype_name(router.dense.dtype)}


def _attention(layer: Attention) -> Facts:
    return {
        "kind": "attention",
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "window": layer.window,
        "kv_dtype": dtype_name(layer.kv_dtype),
    }


def _moe(layer: FusedMoE) -> Facts:
    return {
        "kind": "moe",
        "num_experts": layer.num_experts,
        "top_k": layer.top_k,
        "hidden_size": layer.hidden_size,
        "intermediate_size": layer.local_size,
        "weight_bytes": layer.weight_bytes,
        "weight_format": layer.weight_format,
    }


def _format(packed: Any) -> str:
    """dtype or GGUF type, of several parts joined by "+"; "" where the pack does not say."""
    pieces = getattr(packed, "pieces", None)
    if pieces is not None:
        return "+".join(dict.fromkeys(_format(piece) for piece in pieces))
    weight = getattr(packed, "weight", None)
    if isinstance(weight, Tensor):
        return dtype_name(weight.dtype)
    if isinstance(weight, GGUFWeight):
        return weight.qtype
    return str(getattr(packed, "format_name", ""))
