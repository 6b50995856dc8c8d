"""Op `gated_delta_net`: a kernel for sequences of one token, four for those of more.

In a step of both, every launch leaves out the sequences of the other kind, which the device finds:
nothing is read back.
"""

from __future__ import annotations

from torch import Tensor

from atom.ops.contracts import AttentionMetadata
from atom.ops.contracts_delta import DeltaNetParams
from atom.ops.registry import OpQuery, register
from atom.ops.triton import delta_chunks, delta_decode

_DTYPES = ("bfloat16", "float16", "float32")
_DIMS = (16, 32, 64, 128)


def _declines(query: OpQuery) -> str | None:
    if query.dtype not in _DTYPES:
        return f"activations must be one of {', '.join(_DTYPES)}"
    for name in ("Dk", "Dv"):
        if query.size(name) not in _DIMS:
            return f"{name}={query.size(name)} is not one of {', '.join(map(str, _DIMS))}"
    return None


@register("gated_delta_net", "triton", _declines)
def gated_delta_net(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    meta: AttentionMetadata,
    params: DeltaNetParams,
    out: Tensor | None = None,
) -> Tensor:
    if out is None:
        out = x.new_empty(x.shape[0], params.v_size)
    if not meta.is_decode:
        delta_chunks.launch(x, conv_state, state, meta, params, out)
    if meta.is_decode or meta.num_seqs > 1:
        delta_decode.launch(x, conv_state, state, meta, params, out)
    return out
