"""Writes a trace of any size, laid out as Kineto does, of a model that serves.

    python benchmarks/trace_generator.py --gib 1 --output /tmp/traces/rank_0/made.pt.trace.json.gz

One prefill step (eager: operators with shapes, launches, kernels) comes before every
`DECODES_PER_PREFILL` decode steps (one graph launch each, its kernels under one correlation), with
step labels, module scopes, arrows and metadata. Events come by kind, as Kineto's do: what the host
did, then the calls, each with its kernels. The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

DECODES_PER_PREFILL = 12
LAYERS = 36
PID, DEVICE, STREAM = 1723, 0, 7
ORIGIN_NS = 4_412_285_000_000_000

_AT = "void at::native::"
# (module, operator, its inputs, kernel, ns) of one layer; the decode graph has them all, too.
LAYER = (
    ("input_layernorm", "atom::add_rms_norm", [[512, 4096], [512, 4096], [4096]],
     "_add_rms_norm_kernel_0d1d2d3de4de", 4100),
    ("self_attn.qkv_proj", "aten::mm", [[512, 4096], [4096, 6144]],
     "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNN", 61_000),
    ("self_attn.q_norm", "atom::rms_norm", [[512, 32, 128], [128]],
     "_rms_norm_kernel_0d1d2d3de4de", 2900),
    ("self_attn.rotary_emb", "atom::rope_cache", [[512, 4096], [512, 1024], [131072, 128]],
     "_rope_and_cache_kernel_0d1d2d3d4d5d6de7de", 3300),
    ("self_attn.attn", "atom::attention", [[512, 32, 128], [8192, 16, 8, 128]],
     "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4, false, false, "
     "cutlass::bfloat16_t, Flash_kernel_traits<128, 64, 128, 4, cutlass::bfloat16_t> >, true, "
     "false, false, false, true, false, true, false>(flash::Flash_fwd_params)", 48_000),
    ("self_attn.o_proj", "aten::mm", [[512, 4096], [4096, 4096]],
     "nvjet_sm90_tst_128x128_64x6_1x2_h_bz_TNT", 42_000),
    ("post_attention_layernorm", "atom::add_rms_norm", [[512, 4096], [512, 4096], [4096]],
     "_add_rms_norm_kernel_0d1d2d3de4de", 4100),
    ("mlp.gate_up_proj", "aten::mm", [[512, 4096], [4096, 24576]],
     "nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_TNN", 240_000),
    ("mlp.act_fn", "aten::silu", [[512, 12288]],
     f"{_AT}vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::silu_kernel("
     "at::TensorIteratorBase&)::{lambda()#1}::operator()() const::{lambda(c10::BFloat16)#1}, "
     "std::array<char*, 2ul> >(int, at::native::(anonymous namespace)::silu_kernel, "
     "std::array<char*, 2ul>)", 9800),
    ("mlp.down_proj", "aten::mm", [[512, 12288], [12288, 4096]],
     "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_TNT", 121_000),
)  # fmt: skip
_SAMPLE = ("logits", "aten::argmax", [[32, 151936]],
           f"{_AT}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>, "
           "unsigned int, long, 4, 4> >(at::native::ReduceOp<float>)", 14_000)  # fmt: skip


class Writer:
    """Events of one step after the other, as text; counts what it wrote."""

    def __init__(self) -> None:
        self.events = 0
        self.host_ns = ORIGIN_NS
        self.gpu_ns = ORIGIN_NS
        self.external = 0
        self.correlation = 0
        self.index = 0
        self._later: list[str] = []  # calls and kernels, which Kineto writes after the host's

    def step(self, number: int) -> str:
        """One step's events."""
        if number % (DECODES_PER_PREFILL + 1) == 0:
            label = "prefill[bs=1 tok=512 ctx=512 sk=512 sqsk=262144 sqsq=262144]"
            host = "".join(self._annotated(label, self._eager))
        else:
            context = 32 * (1000 + number)
            label = f"decode[bs=32 tok=32 d=32 sk={context} graph=32]"
            host = "".join(self._annotated(label, self._graph))
        later, self._later = "".join(self._later), []
        return host + later

    def _annotated(self, name: str, body: object) -> Iterator[str]:
        self.external += 1
        external, start, first = self.external, self.host_ns, self.gpu_ns
        self.host_ns += 3_000
        inner = list(body()) if callable(body) else []
        self.host_ns += 2_000
        first = max(first, start)
        yield self._host("user_annotation", name, start, external, "")
        yield from inner
        self._later.append(
            self._event("gpu_user_annotation", name, DEVICE, STREAM, first, self.gpu_ns - first,
                        f'"External id": {external}')
        )  # fmt: skip

    def _eager(self) -> Iterator[str]:
        for layer in range(LAYERS):
            for module, op, dims, kernel, ns in LAYER:
                yield from self._module(f"model.layers.{layer}.{module}", op, dims, kernel, ns)
        yield from self._module(*_SAMPLE)

    def _module(
        self, module: str, op: str, dims: list[list[int]], kernel: str, ns: int
    ) -> Iterator[str]:
        start = self.host_ns
        self.external += 1
        scope = self.external
        self.host_ns += 1_500
        shapes = (
            f', "Concrete Inputs": {json.dumps([""] * len(dims))}'
            f', "Input type": {json.dumps(["c10::BFloat16"] * len(dims))}'
            f', "Input Strides": {json.dumps([[size[-1], 1] for size in dims])}'
            f', "Input Dims": {json.dumps(dims)}'
        )
        inner = []
        for name in ("aten::empty", "aten::view", op):
            self.external += 1
            began = self.host_ns
            self.host_ns += 1_200
            if name is op:
                self._launch("cudaLaunchKernel", [(kernel, ns)], self.external)
            inner.append(self._host("cpu_op", name, began, self.external, shapes))
        self.host_ns += 900
        yield self._host("user_annotation", module, start, scope, "")
        yield from inner

    def _graph(self) -> Iterator[str]:
        self.external += 1
        began = self.host_ns
        self.host_ns += 2_000
        kernels = [(kernel, ns // 16 + 1_300) for *_, kernel, ns in LAYER] * LAYERS
        self._launch("cudaGraphLaunch", [*kernels, (_SAMPLE[3], _SAMPLE[4])], -1)
        yield self._host("cpu_op", "aten::copy_", began, self.external, ', "Input Dims": [[32]]')
        self.host_ns += 20_000

    def _launch(self, call: str, kernels: list[tuple[str, int]], external: int) -> None:
        self.correlation += 1
        link = f'"External id": {external}, ' if external >= 0 else ""
        start = self.host_ns
        self.host_ns += 4_000
        self._later.append(
            self._event("cuda_runtime", call, PID, PID, start, 3_500,
                        f'{link}"cbid": 211, "correlation": {self.correlation}')
        )  # fmt: skip
        self._later.append(self._arrow("s", PID, PID, start))
        self.gpu_ns = max(self.gpu_ns, self.host_ns + 2_000)
        for kernel, ns in kernels:
            self._later.append(
                self._event(
                    "kernel", kernel, DEVICE, STREAM, self.gpu_ns, ns,
                    f'{link}"queued": 0, "device": {DEVICE}, "context": 1, "stream": {STREAM}, '
                    f'"correlation": {self.correlation}, "registers per thread": 168, '
                    '"shared memory": 213248, "blocks per SM": 0.969697, "warps per SM": '
                    '11.636364, "grid": [128, 1, 1], "block": [384, 1, 1], '
                    '"est. achieved occupancy %": 19',
                )
            )  # fmt: skip
            self._later.append(self._arrow("f", DEVICE, STREAM, self.gpu_ns))
            self.gpu_ns += ns + 700

    def _host(self, category: str, name: str, start: int, external: int, shapes: str) -> str:
        self.index += 1
        args = f'"External id": {external}, "Record function id": 0{shapes}, "Ev Idx": {self.index}'
        return self._event(category, name, PID, PID, start, self.host_ns - start, args)

    def _event(
        self, category: str, name: str, pid: int, tid: int, start: int, ns: int, args: str
    ) -> str:
        self.events += 1
        return (
            f'  {{\n    "ph": "X", "cat": "{category}", "name": "{name}", "pid": {pid}, '
            f'"tid": {tid},\n    "ts": {_us(start)}, "dur": {_us(ns)},\n    "args": {{\n      '
            f"{args}\n    }}\n  }},\n"
        )

    def _arrow(self, phase: str, pid: int, tid: int, start: int) -> str:
        self.events += 1
        end = ', "bp": "e"' if phase == "f" else ""
        return (
            f'  {{\n    "ph": "{phase}", "id": {self.correlation}, "pid": {pid}, "tid": {tid}, '
            f'"ts": {_us(start)},\n    "cat": "ac2g", "name": "ac2g"{end}\n  }},\n'
        )


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03d}"


def open_output(path: Path) -> IO[bytes]:
    """Compressed as the ending says, at the level that profilers use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        return gzip.open(path, "wb", compresslevel=1)  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        return zstandard.open(path, "wb")  # type: ignore[no-any-return]
    return path.open("wb")


def generate(path: Path, num_bytes: int, rank: int = 0) -> int:
    """Write at least `num_bytes` decompressed; the number of events."""
    head = {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": "NVIDIA H200", "numSms": 132}],
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": rank + 1},
        "with_stack": 0,
        "record_shapes": 1,
        "cuda_driver_version": 13000,
    }
    writer, written, number = Writer(), 0, 0
    with open_output(path) as file:
        written += file.write(json.dumps(head)[:-1].encode() + b',\n  "traceEvents": [\n')
        while written < num_bytes:
            written += file.write(writer.step(number).encode())
            number += 1
        last = {"name": "process_name", "ph": "M", "ts": _us(ORIGIN_NS), "pid": PID, "tid": 0,
                "args": {"name": "python3"}}  # fmt: skip
        file.write(json.dumps(last).encode() + b'\n  ],\n  "traceName": "made"\n}\n')
    return writer.events + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="decompressed size")
    default = Path(tempfile.gettempdir()) / "traces/rank_0/made.pt.trace.json.gz"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    events = generate(arguments.output, int(arguments.gib * 2**30))
    print(f"{arguments.output}: {events:,} events, {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
