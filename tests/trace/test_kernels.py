"""Names of kernels as CUDA, ROCm, Triton and our own code write them."""

# ruff: noqa: E501  names of kernels are long
import ast
from pathlib import Path

import pytest

from atom.trace import cxx
from atom.trace.cxx import demangle, parse
from atom.trace.kernels import CLASSES, collective, kernel_class, short_name, short_names

AITER_NORM = (
    "_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi{}ELi8ELb0ELb0ELb1ELi1EEE"
    "vPT0_PT_PfS4_S4_S4_diiiiiiib"
)
COPY = (
    "void at::native::elementwise_kernel_manual_unroll<128, {}, at::native::gpu_kernel_impl_nocast<"
    "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{{lambda()#3}}::operator()() const"
    "::{{lambda()#12}}::operator()() const::{{lambda(c10::BFloat16)#1}}>(at::TensorIteratorBase&, "
    "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{{lambda()#3}}::operator()() const)"
    "::{{lambda(int)#1}}>(int, float)"
)
FILL = (
    "void at::native::vectorized_elementwise_kernel<8, at::native::FillFunctor<c10::BFloat16>, "
    "std::array<char*, 1ul> >(int, at::native::FillFunctor<c10::BFloat16>, std::array<char*, 1ul>)"
)
ARGMAX = (
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>,"
    " unsigned int, long, 4, 4> >(at::native::ReduceOp<float, at::native::ArgMaxOps<float>>)"
)
TENSILE = (
    "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT64x32x256_MI16x16x1_SN_LDSB1_AFC1_AFEM1_CLR1"
)
FLASH3 = (
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::"
    "CollectiveMainloopFwdSm90<2, cute::tuple<cute::C<1>>, cutlass::bfloat16_t>>>>(Params)"
)
SILU = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::silu_kernel"
    "(at::TensorIteratorBase&)::{lambda()#1}>(int)"
)
WARP_GEMV = (
    "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, float, "
    "true, 1>(cublasGemvParamsEx<int, float>)"
)

# fmt: off
CLASS_OF = [
    ("gemm", "nvjet_sm90_tst_128x64_64x8_4x2_h_bz_TNT", TENSILE, WARP_GEMV, "skinny", "gemv_rows",
     "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(P)",
     "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, true>(cublasParams)",
     "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_kernel",
     "void wvSplitK_hf_sml_<__hip_bfloat16, 64, 2, 16, 8, 2, 1>(int, int, __hip_bfloat16 const*)",
     "triton_tem_fused_mm_5", "aten::mm", "aten::linear", "_w8a8_block_fp8_matmul", "void Marlin<128, 1, 8>(int4 const*)",
     "void ck::kernel_gemm_xdl_cshuffle_v3_multi_d<ck::MultiplyMultiply>(Argument)",
     "void deep_gemm::fp8_gemm_kernel<4096u, 7168u>(float*)", "bf16gemm_fp32bf16_tn_96x64_splitk",
     "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int>, "
     "cutlass::epilogue::fusion::LinCombEltAct<cutlass::epilogue::thread::SiLu>>>(Params)"),
    ("attention", FLASH3, "decode_kernel", "varlen_hopper_kernel", "varlen_attention_kernel",
     "void paged_attention_ll4mi_QKV_mfma16_kernel<0, __hip_bfloat16, ck_tile::Composed<0u> >(int)",
     "void flashinfer::BatchDecodeWithPagedKVCacheKernel<(flashinfer::PosEncodingMode)0, 2u>(P)",
     "_ZN7ck_tile6kentryILi256ELi1ENS_13FmhaFwdKernelIfEEJiEEEvDpT2_", "kernel_unified_attention_2d",
     "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "_fwd_kernel_stage2",
     "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64> >(P)",
     "_fwd_grouped_kernel_stage1_rope", "kn_mla_reduce_v1", "pa_fwd_bf16_pertokenFp8_gqa16",
     "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::Params)",
     "chunk_gated_delta_rule_fwd_kernel_h_blockdim64", "mla_a8w8_qh16_qseqlen1_gqaratio16"),
    ("moe", "fused_moe_kernel", "router_kernel", "grouped_gate_up_kernel", "pair_down_kernel",
     "void vllm::moe::topkGatingSoftmax<8, 128, 4, 16>(float const*)", "count_kernel", "topk_kernel",
     "void vllm::moe::moe_align_block_size_kernel<int>(int const*)", "combine_kernel",
     "_ZN5aiter48fmoe_bf16_blockscaleFp8_g1u1_vs_silu_1tg_32x256E", "place_kernel",
     "_matmul_ogs_NNT_bf16xbf16xmxfp4_32x256x128x1_swiglu", "_topk_forward_routing",
     "void ck_tile::kentry<256, 2, ck_tile::MoeSortingKernel<int>>(int)",
     "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::"
     "GroupProblemShape<cute::tuple<int>>, float>>(Params)"),
    ("norm", AITER_NORM.format(64), "add_rms_norm_kernel", "rms_norm_kernel",
     "void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>(c10::BFloat16*)",
     "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "fused_add_rms_norm_quant_fp8",
     "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
     "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int)"),
    ("activation", "silu_and_mul_kernel", SILU, "triton_poi_fused_mul_silu_1",
     "_ZN7sgl_hip10activation18act_and_mul_kernelI14__hip_bfloat16TnPFT_RKS3_EXadL_Z4siluIS2_ES3_S5_EEEEvPS3_PS4_i",
     "void aiter::scaled_act_and_mul_kernel<c10::BFloat16>(int)", "gelu_tanh_and_mul"),
    ("rope_cache", "rope_cache_kernel", "rotary_kernel", "reshape_and_cache_kernel",
     "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, (vllm::Fp8KVCacheDataType)0>(int)",
     "void (anonymous namespace)::store_kvcache<2048l, 4, false, long>((anonymous namespace)::P)",
     "void vllm::concat_and_cache_mla_kernel<c10::BFloat16>(int)", "_fused_qk_rope_cosine_cache",
     "void vllm::rotary_embedding_kernel<c10::BFloat16, true>(long const*)"),
    ("sampling", ARGMAX, "argmax_part_kernel", "argmax_join_kernel", "draw_kernel", "mass_kernel",
     "void flashinfer::sampling::TopKTopPSamplingFromProbKernel<1024u>(float*)", "bound_kernel",
     "void aiter::mix_sample_kernel<float>(int)", "chunk_logprobs_kernel", "collect_kernel",
     "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<int>(int)", "apply_kernel",
     "void at::native::sbtopk::gatherTopK<float, unsigned int, 1>(int)", "rejection_greedy_kernel",
     "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4, "
     "at::native::templates::cuda::exponential_kernel<at::Tensor>::{lambda()#1}>(int)"),
    ("elementwise", "aten::add", "aten::copy_", FILL, COPY.format(4), "triton_poi_fused_add_0", "embedding_kernel",
     "prepare_decode_kernel", "finish_decode_kernel", "put_tokens_kernel",
     "void vllm::scaled_fp8_quant_kernel_strided_dynamic<c10::BFloat16>(int)",
     "void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 2>(int)",
     "void per_token_group_quant_8bit_kernel<c10::BFloat16>(int)"),
    ("reduction", "aten::mean", "triton_per_fused_sum_3", "triton_red_fused_amax_2",
     "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::MeanOps<float>>>"
     "(int)", "void (anonymous namespace)::softmax_warp_forward<float, float, float, 7>(float*)",
     "void cub::DeviceScanKernel<cub::Policy800, long*>(int)"),
    ("copy", "Memcpy HtoD (Pinned -> Device)", "Memcpy DtoD (Device -> Device)",
     "__amd_rocclr_copyBuffer", "__amd_rocclr_copyBufferAligned"),
    ("memset", "Memset (Device)", "__amd_rocclr_fillBufferAligned"),
    ("communication", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
     "ncclKernel_SendRecv", "rcclGenericKernel<1, false>(ncclDevKernelArgsStorage<4096ul>)",
     "void vllm::cross_device_reduce_1stage<__hip_bfloat16, 8>(vllm::RankData*)",
     "void quickreduce::allreduce_prototype_twoshot<quickreduce::CodecQ4<__half, 8> >(int)",
     "multimem_all_reduce_kernel", "void aiter::reduce_scatter_cross_device_store<float, 8>(int)",
     "void aiter::local_device_load_rmsnorm<float>(int)", "void deep_ep::intranode::dispatch<8>(int)",
     "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<0>(P)"),
    ("other", "my_own_thing", "void foo<int>(int)"),
]
# fmt: on


@pytest.mark.parametrize(("expected", "name"), [(row[0], n) for row in CLASS_OF for n in row[1:]])
def test_class(expected, name):
    assert expected in CLASSES
    assert kernel_class(name) == expected


def launched_kernels():
    """Of our own: decorated by triton's jit and launched somewhere as name[grid](...)."""
    root = Path(__file__).parents[2] / "atom" / "ops" / "triton"
    defined, launched = set(), set()
    for path in sorted(root.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                defined.add(node.name)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launched.add(getattr(node.func.value, "id", getattr(node.func.value, "attr", "")))
    return sorted(defined & launched | {name for name in defined if name.endswith("_kernel")})


def test_every_kernel_of_ours_has_a_class():
    ours = launched_kernels()
    assert len(ours) > 20
    assert [name for name in ours if kernel_class(name) == "other"] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (TENSILE, "Cijk_Alik_Bljk_BBS_BH MT64x32x256 MI16x16x1"),
        (FILL, "vectorized_elementwise<Fill, bf16>"),
        (COPY.format(8), "elementwise_manual_unroll<direct_copy, bf16>"),
        (ARGMAX, "reduce<ArgMax, f32>"),
        (AITER_NORM.format(64), "add_rmsnorm_quant_kernel<bf16, bf16, 64, 8, F, F, T, 1>"),
        (WARP_GEMV, "gemvx::kernel<i32, i32, bf16, f32, T, 1>"),
        (FLASH3, "FlashAttnFwdSm90"),
        ("triton_poi_fused_mul_silu_1", "triton_poi_fused_mul_silu"),
        ("_fwd_kernel_0d1d2d3de", "_fwd_kernel"),
        ("decode_kernel", "decode_kernel"),
        ("aten::mm", "aten::mm"),
        ("void vllm::act_and_mul()", "act_and_mul"),
        ("Memcpy DtoH (Device -> Host)", "Memcpy DtoH (Device -> Host)"),
        ("nvjet_sm90_tst_64x64_64x13_2x1_v_bz_TNT", "nvjet_sm90_tst_64x64_64x13_2x1_v_bz_TNT"),
        (
            "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_64x64_tn_align8>(int)",
            "cutlass_80_tensorop_bf16_s16816gemm_64x64_tn_align8",
        ),
        ("", ""),
    ],
)
def test_short_name(name, expected):
    assert short_name(name) == expected


def test_short_names_differ_where_the_kernels_do():
    names = [
        "triton_poi_fused_mul_0",
        "triton_poi_fused_mul_1",
        COPY.format(4),
        COPY.format(8),
        AITER_NORM.format(64),
        AITER_NORM.format(256),
        FILL,
        FILL,
    ]
    found = short_names(names)
    assert set(found) == set(names)
    assert len(set(found.values())) == len(set(names))
    assert found["triton_poi_fused_mul_1"] == "triton_poi_fused_mul_1"
    assert found[FILL] == short_name(FILL)
    assert found[COPY.format(8)] == ("elementwise_manual_unroll<direct_copy, bf16, 128, 8>")
    assert max(map(len, found.values())) < 80


def test_a_mark_is_the_same_in_every_trace():
    long = "void f<" + ", ".join(["some_type_with_a_name"] * 9) + ", {}>(int)"
    found = short_names([long.format(1), long.format(2)])
    again = short_names([long.format(2), long.format(3)])
    assert found[long.format(1)] != found[long.format(2)] == again[long.format(2)]
    assert found[long.format(2)].startswith(short_name(long.format(2)) + " ~")
    assert short_names([long.format(2)])[long.format(2)] == short_name(long.format(2))


def test_demangled():
    assert demangle(AITER_NORM.format(64)).startswith(
        "void aiter::add_rmsnorm_quant_kernel<__bf16, __bf16, 64, 8, false, false, true, 1>("
    )
    assert demangle("plain_kernel") == "plain_kernel"
    assert demangle("_Z") == "_Z"
    assert demangle("_ZN3fooDF16bar") == "_ZN3fooDF16bar"
    assert demangle("_ZN9999foo") == "_ZN9999foo"


def test_demangled_without_a_system_demangler(monkeypatch):
    monkeypatch.setattr(cxx, "_library", lambda: None)
    name = AITER_NORM.format(128)
    found = demangle.__wrapped__(name)
    assert found == "aiter::add_rmsnorm_quant_kernel<__bf16, __bf16, 128, 8, 0, 0, 1, 1>"
    assert parse(found).head == "aiter::add_rmsnorm_quant_kernel"


def test_identifiers_are_not_taken_for_types():
    """ "DF16b" within an identifier is part of its name."""
    assert demangle("_Z8fooDF16bDF16b") == "fooDF16b(__bf16)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            "all_reduce",
        ),
        ("ncclDevKernel_AllGather_RING_LL", "all_gather"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "reduce_scatter"),
        ("ncclDevKernel_SendRecv", "send_recv"),
        ("void vllm::cross_device_reduce_2stage<float, 8>(int)", "all_reduce"),
        ("void deep_ep::intranode::dispatch<8>(int)", "all_to_all"),
        ("ncclDevKernel_Broadcast_RING_LL", "broadcast"),
        ("rcclGenericKernel<1, false>(int)", "collective"),
        ("decode_kernel", ""),
        ("Memcpy DtoD (Device -> Device)", ""),
    ],
)
def test_collective(name, expected):
    assert collective(name) == expected
