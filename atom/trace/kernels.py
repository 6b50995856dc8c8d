"""Kernels by name: a readable one, which class of work it is, which collective.

Rules are read from top to bottom, on the function's own name first; on its template arguments
only where the function is a mere wrapper. A class is a judgement by name, nothing is measured.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from atom.trace.cxx import CxxName, demangle, parse

CLASSES = (
    "gemm",
    "attention",
    "moe",
    "norm",
    "activation",
    "rope_cache",
    "sampling",
    "elementwise",
    "reduction",
    "copy",
    "memset",
    "communication",
    "other",
)

_COPIES = re.compile(r"^memcpy|^__amd_rocclr_.*copy|^copy(device|host)|hip.*memcpy", re.I)
_MEMSETS = re.compile(r"^memset|^__amd_rocclr_fill", re.I)

_COMMUNICATION = (
    r"nccl|rccl|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|cross_device|quick_?reduce"
    r"|multimem|nvshmem|rocshmem|deep_ep|(inter|intra)node|broadcast_kernel_|sendrecv"
    r"|local_device_load|mori_?ep|ep(dispatch|combine)|symm_mem|lamport"
)
_MOE = (
    r"moe|expert|topk_?gating|topk_softmax|softmax_topk|grouped_topk|biased_grouped|matmul_ogs"
    r"|routing|router|group(ed)?_?gemm|groupproblemshape|grouped_(gate|down|mm)|pair_(gate|down)"
    r"|token_permut|unpermute|permute_tokens|silu_mul_masked|ep_(scatter|gather)"
)
_ATTENTION = (
    r"flash(?!infer)|fmha|(?<![a-z])mla(?![a-z])|mla_|attn|attention|sdpa|(batch|single)(decode|prefill)"
    r"|paged_?kv|(?<![a-z])pa_(fwd|decode|bf16|fp8|ps)|(?<![a-z])_?fwd_(grouped_)?kernel"
    r"|reduce_segments|merge_state|cascade|kv_indices|kv_indptr|splitkv|mha_|gated_delta"
    r"|chunk_(delta|fwd|gla)|fused_recurrent|selective_s(can|tate)|mamba|(?<![a-z])ssd_"
    r"|causal_conv1d|_chunk_(scan|state)|recompute_w_u|varlen_hopper|indexer_(logits|score)"
)
_ROPE_CACHE = (
    r"rope|rotary|rotate_|reshape_and_cache|kv_?cache|concat_and_cache|quant_and_cache"
    r"|set_(mla_)?kv_buffer|append_paged|copy_blocks|swap_blocks|cache_kernel"
)
_NO_CACHE = r"attention|attn|fmha|_stage\d|(batch|single)(decode|prefill)"  # they read it
_NORM = r"rms_?norm|layer_?norm|group_?norm|l2_?norm|norm2d|add_?norm|(?<!ab)norm_kernel|rsqrt"
_ACTIVATION = r"silu|gelu|swiglu|act_and_mul|act_mul|scaledact|activation|relu|(?<![a-z])swish"
_SAMPLING = (
    r"sampl|arg_?max|top_?k|top_?p|min_?p|multinomial|gumbel|exponential|distribution_|logprob"
    r"|penalt|rejection|radix_?sort|bitonic|merge_?sort|segmented_?sort|logits|speculative"
    r"|curand|philox|draft_tok"
)
_GEMM = (
    r"gemm|gemv|nvjet|cutlass|cublas|^cijk|matmul|xmma|wvsplitk|llmm|skinny|splitk_?reduce|marlin"
    r"|machete|scaled_mm|hgemm|_mm_|(?<![a-z])mm_|bmm|addmm|wgmma|mfma|triton_tem|linear_kernel"
    r"|(?<![a-z])gemm|::(mm|linear|baddbmm)$|cutedsl_.*mma|dot_product|(?<![a-z])conv(?!ert)|implicit_convolve"
)
_ELEMENTWISE = (
    r"elementwise|triton_poi|quant|cast|convert|copy|cat(array)?batch|concat|index|gather|scatter"
    r"|embedding|fill|arange|multi_tensor|clamp|where|transpose|add_kernel|mul_kernel|neg_kernel"
    r"|triu|tril|pad_|mask|prepare|finish|put_tokens|resolve_future|slot_mapping|position"
)
_REDUCTION = (
    r"reduc|softmax|triton_(red|per)|scan|cumsum|^aten::(sum|mean|a?max|a?min)|cumprod|prefix_?sum|(?<![a-z])sum_"
    r"|histogram|count_nonzero|sort"
)

# A wrapper's own name says little: what it does stands in its template arguments.
_WRAPPERS = re.compile(
    r"elementwise_kernel|(^|::)reduce_kernel$|multi_tensor_apply|trampoline_kernel|device_kernel$"
    r"|kentry$|kentry_?pt|kernel2$|(^|::)kernel$|for_each|transform_kernel|elementwise_kernel_with",
    re.I,
)


def _rules(*named: tuple[str, str]) -> list[tuple[str, re.Pattern[str]]]:
    return [(name, re.compile(pattern, re.I)) for name, pattern in named]


# Kernels of ours whose names say nothing without their file; exact names.
_OURS = {
    **dict.fromkeys(["decode_kernel", "varlen_attention_kernel"], "attention"),
    **dict.fromkeys(["join_kernel", "merge_kernel", "own_kernel", "solve_kernel"], "attention"),
    **dict.fromkeys(["delta_decode_kernel", "keep_best_kernel", "v4_best_kernel"], "attention"),
    **dict.fromkeys(["v4_compress_kernel", "v4_keep_kernel", "v4_merge_kernel"], "attention"),
    **dict.fromkeys(["v4_scores_kernel"], "attention"),
    **dict.fromkeys(["v4_write_kernel"], "rope_cache"),
    **dict.fromkeys(["mx_down_kernel", "mx_gate_up_kernel", "route_kernel"], "moe"),
    **dict.fromkeys(["hyper_collapse_kernel", "hyper_mix_kernel", "projection_kernel"], "norm"),
    **dict.fromkeys(["add_gated_kernel"], "elementwise"),
    **dict.fromkeys(["sort_kernel", "count_kernel", "place_kernel", "scatter_kernel"], "moe"),
    **dict.fromkeys(["combine_kernel", "topk_kernel", "norm_score_kernel"], "moe"),
    **dict.fromkeys(["apply_kernel", "bound_kernel", "narrow_kernel"], "sampling"),
    **dict.fromkeys(["collect_kernel", "threshold_kernel", "chunk_stats_kernel"], "sampling"),
    **dict.fromkeys(["mass_kernel", "draw_kernel"], "sampling"),
}
# Attention before the cache: a decode kernel may carry "rope" or "cache" in its arguments, which
# are not read unless the function is a wrapper; by their own names the writers come first.
_BY_HEAD = _rules(
    ("communication", _COMMUNICATION),
    ("rope_cache", rf"^(?!.*({_NO_CACHE})).*({_ROPE_CACHE})"),
    ("moe", _MOE),
    ("attention", _ATTENTION),
    ("gemm", _GEMM),
    ("norm", _NORM),
    ("activation", _ACTIVATION),
    ("sampling", _SAMPLING),
    ("elementwise", _ELEMENTWISE),
    ("reduction", _REDUCTION),
    ("elementwise", r"^aten::"),  # an operator of a CPU profile; what remains is of that sort
)
_BY_ARGUMENTS = _rules(
    ("moe", _MOE),
    ("attention", _ATTENTION),
    ("gemm", _GEMM),
    ("norm", _NORM),
    ("activation", _ACTIVATION),
    ("sampling", r"arg_?max|arg_?min|exponential|distribution|sampl|multinomial"),
)

COLLECTIVES = (
    ("reduce_scatter", r"reduce_?scatter"),
    ("all_reduce", r"all_?reduce|cross_device_reduce|quick_?reduce|(one|two)_?shot"),
    ("all_gather", r"all_?gather"),
    ("all_to_all", r"all_?to_?all|alltoall|dispatch|combine"),
    ("broadcast", r"broadcast"),
    ("send_recv", r"send_?recv|(?<![a-z])(send|recv)(?![a-z])"),
)
_COLLECTIVES = [(name, re.compile(pattern, re.I)) for name, pattern in COLLECTIVES]


@lru_cache(maxsize=65536)
def kernel_class(name: str) -> str:
    """Of `CLASSES`, for a kernel's or copy's name as it stands in the trace."""
    if _MEMSETS.search(name):
        return "memset"
    if _COPIES.search(name):
        return "copy"
    parsed = parse(demangle(name))
    head = parsed.head
    if head in _OURS:
        return _OURS[head]
    if _WRAPPERS.search(head):
        whole = " ".join(parsed.args)
        found = _first(_BY_ARGUMENTS, whole) or _first(_BY_HEAD, head)
        return found or _first(_BY_HEAD, whole) or "other"
    return _first(_BY_HEAD, head) or _first(_BY_ARGUMENTS, " ".join(parsed.args)) or "other"


def _first(rules: list[tuple[str, re.Pattern[str]]], text: str) -> str:
    return next((name for name, pattern in rules if pattern.search(text)), "")


def collective(name: str) -> str:
    """ "all_reduce", "all_gather", ...; "collective" if its name does not say which; "" for
    kernels that communicate nothing."""
    if kernel_class(name) != "communication":
        return ""
    return _first(_COLLECTIVES, parse(demangle(name)).head) or "collective"


# --- names for people -------------------------------------------------------------------------

_TYPES = (
    (re.compile(r"\b(c10::|std::|__hip_|__nv_|__)?(bfloat16|BFloat16|bf16)(_t)?\b"), "bf16"),
    (re.compile(r"\b(c10::|__)?(Half|half|_Float16)\b"), "f16"),
    (re.compile(r"\b_Float16\b"), "f16"),
    (re.compile(r"\b(c10::|__hip_|__nv_)?[Ff]loat8_(e\dm\d)\w*|__(hip|nv)_fp8_(e\dm\d)\w*"), "fp8"),
    (re.compile(r"\bfloat\b"), "f32"),
    (re.compile(r"\bunsigned (int|char)\b"), "u\\1"),
    (re.compile(r"\b(long|int64_t)( long)?\b"), "i64"),
    (re.compile(r"\bint(32_t)?\b"), "i32"),
    (re.compile(r"\buint\b"), "u32"),
)
_FUNCTORS = re.compile(
    r"(?P<a>\w+?)_kernel_cuda(?!\w)|(?P<b>\w+?)Functor\b|(?P<c>\w+?)Ops\b|(?P<d>\w+?)_kernel_impl\b"
    r"|CUDAFunctor_?(?P<e>\w+)|(?P<f>\w+)_cuda_out\b|(?P<g>\w+)_cuda\b"
)
_GENERIC = re.compile(r"^(gpu|nocast|unary|binary|gpu_index|_cuda_scatter_gather_internal)$", re.I)
_LAMBDA = re.compile(r"\{lambda\(([\w:]+)[,)]")
_TRITON_TAIL = re.compile(r"(_\d+d(\d+(d|de|e|c|ce))*)$")
_NATIVE = re.compile(r"elementwise|(^|::)(reduce_kernel|multi_tensor_apply_kernel)$")
_MAX_ARGS = 44
_MAX_UNTRIMMED = 72


@lru_cache(maxsize=65536)
def short_name(name: str) -> str:
    """What a person calls it: no namespaces, parameters or launch noise.

    Two kernels may share one; `short_names` tells those of a table apart.
    """
    if name.startswith("Cijk_"):
        return _tensile(name)
    if re.fullmatch(r"\w+::\w+", name):
        return name  # an operator, in a profile of the CPU: aten::mm
    parsed = parse(demangle(name))
    if not parsed.args and "::" not in parsed.head and " " not in parsed.head:
        return _triton(parsed.head)
    return _cxx(parsed) or name


def short_names(names: Iterable[str]) -> dict[str, str]:
    """A different short name for each of these: details come back only where they are needed.

    Where the details would fill the line, four letters drawn from the full name stand for them,
    the same ones in every trace: `elementwise<copy, int> ~3fa9`.
    """
    everyone = list(dict.fromkeys(names))
    chosen = {name: short_name(name) for name in everyone}
    for details in (_untrimmed, _marked, str):
        taken = Counter(chosen.values())
        twice = [name for name in everyone if taken[chosen[name]] > 1]
        if not twice:
            break
        chosen.update({name: details(name) for name in twice})
    return chosen


def _untrimmed(name: str) -> str:
    if name.startswith(("Cijk_", "triton_")):
        return name if len(name) <= _MAX_UNTRIMMED else short_name(name)
    parsed = parse(demangle(name))
    short = short_name(name)
    if _NATIVE.search(parsed.head):
        numbers = [arg for arg in parsed.args if arg.isdigit()]
        joined = ", ".join(numbers)
        whole = f"{short[:-1]}, {joined}>" if short.endswith(">") else f"{short}<{joined}>"
    else:
        args = [shown for arg in parsed.args if (shown := _plain_arg(arg))]
        whole = f"{_last(parsed.head)}<{', '.join(args)}>" if args else short
    return whole if len(whole) <= _MAX_UNTRIMMED else short


def _marked(name: str) -> str:
    return f"{short_name(name)} ~{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def _tensile(name: str) -> str:
    """The problem, the tile and the matrix instruction of a Tensile solution."""
    problem, _, solution = name.partition("_MT")
    found = re.match(r"\d+x\d+x\d+", solution)
    if not found:
        return name
    instruction = re.search(r"_MI\d+x\d+x\d+", solution)
    problem = re.sub(r"_(Bias|HA|S|SAV|UserArgs|HAS?|Aux)(?=_|$)", "", problem + "_").rstrip("_")
    return f"{problem} MT{found[0]}" + (f" {instruction[0][1:]}" if instruction else "")


def _triton(name: str) -> str:
    if name.startswith("triton_"):
        return re.sub(r"_\d+$", "", name)
    return _TRITON_TAIL.sub("", name)


def _last(head: str) -> str:
    """The function's own name, with its namespace where that alone says nothing."""
    scopes = [scope for scope in head.split("::") if scope]
    if len(scopes) > 1 and re.fullmatch(
        r"(run|kernel|Kernel|operator\(\)|main_kernel)", scopes[-1]
    ):
        return "::".join(scopes[-2:])
    return scopes[-1] if scopes else head


def _cxx(parsed: CxxName) -> str:
    head = _last(parsed.head)
    if re.search(r"device_kernel$|kentry|Kernel2$", head):
        inner = next((arg for arg in parsed.args if not re.fullmatch(r"[\w:]{,12}", arg)), "")
        if inner:
            found = _cxx(parse(inner)) if "<" in inner else inner.rpartition("::")[2]
            unwrapped = re.match(r"enable_\w+<(.+)>$", found)
            return unwrapped[1] if unwrapped else found
    if _NATIVE.search(head):
        return _native(head, parsed.args)
    args = [shown for arg in parsed.args if (shown := _plain_arg(arg))]
    while args and len(", ".join(args)) > _MAX_ARGS:
        args = [*args[:-2], "..."] if args[-1] == "..." else [*args[:-1], "..."]
    return f"{head}<{', '.join(args)}>" if args else head


def _native(head: str, args: tuple[str, ...]) -> str:
    """PyTorch's wrappers by what they are given: `vectorized_elementwise<Fill, bf16>`."""
    text = " ".join(args)
    head = re.sub(r"_kernel(?=_|$)", "", head)
    functors = [next(filter(None, found.groups())) for found in _FUNCTORS.finditer(text)]
    named = [f for f in functors if not _GENERIC.match(f)][:1]
    computed = [found for found in _LAMBDA.findall(text) if found != "int"]  # int: of an index
    types = computed[-1:] or re.findall(r"(?:Functor|Ops)<([\w:]+)", text)
    shown = [*named, *(_types(found) for found in types[:1] if found)]
    return f"{head}<{', '.join(shown)}>" if shown else head


def _types(text: str) -> str:
    for pattern, short in _TYPES:
        text = pattern.sub(short, text)
    return text.replace("{lambda", "{").replace("at::native::", "")


def _plain_arg(arg: str) -> str:
    """An argument that tells kernels apart, short; "" for one that is noise."""
    arg = re.sub(r"^\([\w: ]+\)", "", arg)  # a cast: (vllm::Fp8KVCacheDataType)0
    if arg in ("true", "false"):
        return arg[0].upper()
    if re.fullmatch(r"-?\d+[ul]*", arg):
        return arg.rstrip("ul")
    head = parse(arg).head if "<" in arg else arg
    return _types(head).rpartition("::")[2]
