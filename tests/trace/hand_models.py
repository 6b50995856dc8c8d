"""RankModels by hand: what a trace's builder knows, without steps being found or kernels mapped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from synthetic import TraceBuilder

from atom.trace.intervals import union_length
from atom.trace.reader import read_trace
from atom.trace.types import (
    NONE,
    CpuEvents,
    GpuAnnotations,
    GpuEvents,
    Match,
    MatchReport,
    RankModel,
    RankTrace,
    RuntimeEvents,
    Step,
)

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_FIELD = re.compile(r"(\w+)=(\d+)")


def model_of(run: TraceBuilder, path: Path) -> RankModel:
    """The trace written, read, and explained by the builder's truth. Scopes are full paths."""
    trace = read_trace(run.write(path))
    truth = run.truth
    assert [trace.strings[name] for name in trace.gpu.name] == [row.name for row in truth]
    strings = list(trace.strings)
    modules: list[str] = []
    layer, module = np.full(len(truth), NONE), np.full(len(truth), NONE)
    op, op_args = np.full(len(truth), NONE), np.full(len(truth), NONE)
    for place, row in enumerate(truth):
        scopes = [scope for scope in row.scopes if "[" not in scope]
        if scopes:
            found = _LAYER.match(scopes[-1])
            layer[place] = int(found[1]) if found else NONE
            name = re.sub(r"model\.(layers\.\d+\.)?", "", scopes[-1])
            if name not in modules:
                modules.append(name)
            module[place] = modules.index(name)
        for array, text in ((op, row.op), (op_args, row.op_args)):
            if text:
                if text not in strings:
                    strings.append(text)
                array[place] = strings.index(text)
    match = np.where(module >= 0, Match.LAUNCH, Match.NONE).astype(np.uint8)
    number = np.array([row.step for row in truth], np.int32)
    steps = [_step(trace, label, index, number) for index, label in enumerate(run.steps)]
    counted = number >= 0
    trace = replace(trace, strings=strings)
    return RankModel(
        trace=trace,
        steps=steps,
        step=number,
        layer=layer.astype(np.int32),
        module=module.astype(np.int32),
        op=op.astype(np.int32),
        op_args=op_args.astype(np.int32),
        match=match,
        launch=trace.gpu.ts.copy(),
        modules=modules,
        num_layers=int(layer.max()) + 1 if len(layer) else 0,
        layers_by="scope",
        report=MatchReport(
            rows={kind: int((match[counted] == kind).sum()) for kind in Match},
            ns={kind: int(trace.gpu.dur[counted][match[counted] == kind].sum()) for kind in Match},
            unmatched=_names(trace, counted & (match == Match.NONE)),
            notes=("by hand",),
        ),
    )


def _names(trace: RankTrace, mask: np.ndarray) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in trace.gpu.name[mask]:
        found[trace.strings[name]] = found.get(trace.strings[name], 0) + 1
    return found


def _step(trace: RankTrace, label: str, index: int, number: np.ndarray) -> Step:
    rows = np.flatnonzero(number == index).astype(np.int64)
    ts, end = trace.gpu.ts[rows], trace.gpu.end[rows]
    return Step(
        index=index,
        kind=label.split("[")[0],
        label=label,
        fields={name: int(value) for name, value in _FIELD.findall(label)},
        found_by="label",
        cpu_start=0,
        cpu_end=10_000,
        gpu_start=int(ts.min()) if len(rows) else NONE,
        gpu_end=int(end.max()) if len(rows) else NONE,
        busy_ns=union_length(ts, end),
        sum_ns=int(trace.gpu.dur[rows].sum()),
        rows=rows,
        graph_launches=0,
    )


GEMM = "nvjet_tst_128x64_64x8_2x1_v_bz_TNT"
NORM = "void atom::rms_norm_kernel<__nv_bfloat16, 4096>(__nv_bfloat16*, __nv_bfloat16 const*)"


def llama(
    run: TraceBuilder,
    label: str,
    *,
    layers: int = 6,
    scale: float = 1.0,
    slow: dict[int, float] | None = None,
    aside: bool = False,
    stray: bool = False,
) -> None:
    """One step of a small Llama: `slow` multiplies a layer's GEMMs, `aside` puts a kernel on a
    second stream, `stray` adds a kernel without a scope in layer 3."""
    us = scale
    with run.step(label):
        with run.scope("prepare"):
            run.copy("HtoD", us=1.5 * us)
        with run.scope("model.embed_tokens"):
            run.kernel("void at::native::(anonymous namespace)::indexSelectLargeIndex<>()", 2 * us)
        for layer in range(layers):
            at = f"model.layers.{layer}"
            factor = (slow or {}).get(layer, 1.0) * us
            norm = f"{at}.input_layernorm"
            with run.scope(norm if layer == 0 else f"{norm}+{at}.self_attn.qkv_proj"):
                run.kernel(NORM, (2.1 + 0.01 * layer) * us)
                if layer:
                    run.kernel(GEMM, 11.0 * factor)
            if layer == 0:
                with run.scope(f"{at}.self_attn.qkv_proj"):
                    run.kernel(GEMM, 11.0 * factor)
            with run.scope(f"{at}.self_attn.attn"):
                run.kernel("rope_and_cache_kernel", 2.4 * us)
                run.kernel("flash_fwd_splitkv_kernel<Traits<128, 64, 128, 4>>", 8.9 * us)
                run.kernel("flash_fwd_splitkv_combine_kernel<Traits<128>>", 1.9 * us)
            with (
                run.scope(f"{at}.self_attn.o_proj"),
                run.op("aten::mm", [[32, 4096], [4096, 4096]], ["c10::BFloat16", "c10::BFloat16"]),
            ):
                run.kernel(GEMM, 7.7 * factor)
            if stray and layer == 3:
                run.kernel("=mystery()", 1.3 * us)
            if aside:
                with run.scope(f"{at}.mlp.shared"):
                    run.kernel("side_gemm", 5.0 * us, stream=13)
            with run.scope(f"{at}.mlp.gate_up_proj"):
                run.kernel(GEMM.replace("128x64", "256x128"), 21.2 * factor)
            with run.scope(f"{at}.mlp.act_fn"):
                run.kernel("triton_poi_fused_silu_mul_0", 3.0 * us)
            with run.scope(f"{at}.mlp.down_proj"):
                run.kernel(GEMM, 13.3 * factor)
        with run.scope("lm_head"):
            run.kernel(GEMM.replace("128x64", "320x128"), 40.0 * us)
        with run.scope("sample"):
            run.kernel("argmax_kernel", 3.0 * us)
    run.wait()


@dataclass(frozen=True)
class Row:
    """One GPU row of a model that never was a file."""

    step: int
    layer: int
    module: str
    name: str
    ts: int
    dur: int
    stream: int = 7


def model_of_rows(rows: Sequence[Row], kinds: Sequence[str], shapes: Sequence[int]) -> RankModel:
    """A model of these rows; `kinds` and `shapes` (bs) are the steps'."""
    rows = sorted(rows, key=lambda row: row.ts)
    strings = sorted({row.name for row in rows})
    modules = sorted({row.module for row in rows if row.module})

    def i32(values: Iterable[int]) -> np.ndarray:
        return np.array(list(values), np.int32)

    def i64(values: Iterable[int]) -> np.ndarray:
        return np.array(list(values), np.int64)

    count = len(rows)
    none32, none64 = np.full(count, NONE, np.int32), np.full(count, NONE, np.int64)
    gpu = GpuEvents(
        name=i32(strings.index(row.name) for row in rows),
        ts=i64(row.ts for row in rows),
        dur=i64(row.dur for row in rows),
        kind=np.zeros(count, np.uint8),
        device=np.zeros(count, np.int32),
        stream=i32(row.stream for row in rows),
        correlation=none64,
        external=none64,
        graph_node=none64,
        nbytes=none64,
        args=none32,
    )
    empty32, empty64 = np.empty(0, np.int32), np.empty(0, np.int64)
    empty8 = np.empty(0, np.uint8)
    trace = RankTrace(
        path=Path("made.json"),
        rank=0,
        origin_us=0.0,
        strings=strings,
        tracks=[],
        cpu=CpuEvents(empty32, empty64, empty64, empty32, empty8, empty64, empty32),
        runtime=RuntimeEvents(empty32, empty64, empty64, empty32, empty64, empty64, empty32),
        gpu=gpu,
        gpu_annotations=GpuAnnotations(empty32, empty64, empty64, empty32, empty32, empty64),
        other={},
        counts={},
        num_bytes=0,
    )
    number = i32(row.step for row in rows)
    labels = [f"{kind}[bs={bs}]" for kind, bs in zip(kinds, shapes, strict=True)]
    module = i32(modules.index(row.module) if row.module else NONE for row in rows)
    match = np.where(module >= 0, Match.CAPTURE, Match.NONE).astype(np.uint8)
    counted = number >= 0
    return RankModel(
        trace=trace,
        steps=[_step(trace, label, index, number) for index, label in enumerate(labels)],
        step=number,
        layer=i32(row.layer for row in rows),
        module=module,
        op=none32,
        op_args=none32,
        match=match,
        launch=gpu.ts.copy(),
        modules=modules,
        num_layers=max([row.layer for row in rows], default=NONE) + 1,
        layers_by="capture",
        report=MatchReport(
            rows={kind: int((match[counted] == kind).sum()) for kind in Match},
            ns={kind: int(gpu.dur[counted][match[counted] == kind].sum()) for kind in Match},
            unmatched=_names(trace, counted & (match == Match.NONE)),
        ),
    )
