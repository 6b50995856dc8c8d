// The vector vocabulary of the kernels: 16 float lanes with AVX512, 8 with AVX2.
// Everything above this file is written once for both widths.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__) && defined(__AVX512VNNI__)
#define ATOM_AVX512 1
#elif !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "atom's CPU kernels need AVX2, FMA and F16C"
#endif

#if defined(ATOM_AVX512) && defined(__AVX512BF16__)
#define ATOM_BF16 1  // vdpbf16ps
#endif
#if defined(ATOM_BF16) && defined(__AMX_BF16__) && defined(__AMX_TILE__)
#define ATOM_AMX 1
#endif

// Before a loop over registers: unless it is unrolled they become an array in memory.
#ifdef __clang__
#define ATOM_UNROLL _Pragma("unroll")
#else
#define ATOM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace atom {

inline float f32_from_bf16(uint16_t v) {
    uint32_t bits = uint32_t(v) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline uint16_t bf16_from_f32(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // quiet NaN
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float f32_from_f16(uint16_t v) { return _cvtsh_ss(v); }
inline uint16_t f16_from_f32(float v) { return _cvtss_sh(v, 0); }

#ifdef ATOM_AVX512

constexpr int VL = 16;
using vf = __m512;
using vi = __m512i;

inline vf vzero() { return _mm512_setzero_ps(); }
inline vf vset1(float x) { return _mm512_set1_ps(x); }
inline vf vload(const float* p) { return _mm512_loadu_ps(p); }
inline void vstore(float* p, vf v) { _mm512_storeu_ps(p, v); }
inline vf vload_n(const float* p, int n) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
inline void vstore_n(float* p, vf v, int n) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
inline vf vload_bf16(const uint16_t* p) {
    __m256i h = _mm256_loadu_si256((const __m256i*)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline vf vload_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void vstore_bf16(uint16_t* p, vf v) {
#ifdef ATOM_BF16
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
    vi bits = _mm512_castps_si512(v);
    vi odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
#endif
}
inline vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf vfnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
inline vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf vabs(vf a) { return _mm512_abs_ps(a); }
inline vf vround(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline float vsum(vf a) { return _mm512_reduce_add_ps(a); }
inline float vmaxall(vf a) { return _mm512_reduce_max_ps(a); }
inline vi vto_int(vf a) { return _mm512_cvtps_epi32(a); }
inline vf vfrom_int(vi a) { return _mm512_cvtepi32_ps(a); }
inline vf vpow2(vf p, vf n) { return _mm512_scalef_ps(p, n); }
inline int vsum_int(vi a) { return _mm512_reduce_add_epi32(a); }
inline void vstore_i8(int8_t* p, vi a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }

inline vi iset1(int x) { return _mm512_set1_epi32(x); }
inline vi iload(const void* p) { return _mm512_loadu_si512(p); }
inline vi iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline vi iand(vi a, vi b) { return _mm512_and_si512(a, b); }
inline vi ixor(vi a, vi b) { return _mm512_xor_si512(a, b); }
template <int N>
inline vi isrl16(vi a) {
    return _mm512_srli_epi16(a, N);
}
template <int S>
inline vi isll32(vi a) { return _mm512_slli_epi32(a, S); }
template <int S>
inline vi isra32(vi a) { return _mm512_srai_epi32(a, S); }
inline vi isub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
inline vi imax32(vi a, vi b) { return _mm512_max_epi32(a, b); }
// acc + sum of four products of unsigned bytes of w and signed bytes of x, in each 32-bit lane.
inline vi dot_u8(vi acc, vi w, vi x) { return _mm512_dpbusd_epi32(acc, w, x); }
// The same for weights stored with an offset of 128; the caller takes kOffset8 * sum(x) off.
constexpr int kOffset8 = 128;
inline vi dot_o8(vi acc, vi w, vi x) { return _mm512_dpbusd_epi32(acc, w, x); }

#else  // AVX2

constexpr int VL = 8;
using vf = __m256;
using vi = __m256i;

template <int S>
inline vi isll32(vi a) { return _mm256_slli_epi32(a, S); }
template <int S>
inline vi isra32(vi a) { return _mm256_srai_epi32(a, S); }
inline vi isub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
inline vi imax32(vi a, vi b) { return _mm256_max_epi32(a, b); }

inline vf vzero() { return _mm256_setzero_ps(); }
inline vf vset1(float x) { return _mm256_set1_ps(x); }
inline vf vload(const float* p) { return _mm256_loadu_ps(p); }
inline void vstore(float* p, vf v) { _mm256_storeu_ps(p, v); }
inline vi tail_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline vf vload_n(const float* p, int n) { return _mm256_maskload_ps(p, tail_mask(n)); }
inline void vstore_n(float* p, vf v, int n) { _mm256_maskstore_ps(p, tail_mask(n), v); }
inline vf vload_bf16(const uint16_t* p) {
    vi h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
}
inline vf vload_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline void vstore_bf16(uint16_t* p, vf v) {
    vi bits = _mm256_castps_si256(v);
    vi odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = _mm256_srli_epi32(bits, 16);
    vi packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
inline vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf vfnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
inline vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline vf vround(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline float vsum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float vmaxall(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline vi vto_int(vf a) { return _mm256_cvtps_epi32(a); }
inline vf vfrom_int(vi a) { return _mm256_cvtepi32_ps(a); }
inline vf vpow2(vf p, vf n) {
    vi bits = _mm256_slli_epi32(_mm256_add_epi32(vto_int(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(bits));
}
inline int vsum_int(vi a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline void vstore_i8(int8_t* p, vi a) {
    vi words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, a), 0x08);
    vi bytes = _mm256_packs_epi16(words, words);
    _mm_storel_epi64((__m128i*)p, _mm256_castsi256_si128(bytes));
}

inline vi iset1(int x) { return _mm256_set1_epi32(x); }
inline vi iload(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline vi iadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
inline vi iand(vi a, vi b) { return _mm256_and_si256(a, b); }
inline vi ixor(vi a, vi b) { return _mm256_xor_si256(a, b); }
template <int N>
inline vi isrl16(vi a) {
    return _mm256_srli_epi16(a, N);
}
#ifdef __AVXVNNI__
inline vi dot_u8(vi acc, vi w, vi x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
constexpr int kOffset8 = 128;
inline vi dot_o8(vi acc, vi w, vi x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
#else
// With w <= 15, eight products of pairs fit in 16 bits: 8 * 2 * 15 * 127 < 2^15. They are summed
// there and widened once.
#define ATOM_NIBBLES_IN_16_BITS 1
inline vi pairs_u4(vi acc16, vi w, vi x) {
    return _mm256_add_epi16(acc16, _mm256_maddubs_epi16(w, x));
}
inline vi widen_pairs(vi acc, vi acc16) {
    return iadd(acc, _mm256_madd_epi16(acc16, _mm256_set1_epi16(1)));
}
inline vi dot_u8(vi acc, vi w, vi x) { return widen_pairs(acc, _mm256_maddubs_epi16(w, x)); }
// maddubs would saturate on unsigned bytes: move the sign to x instead, |w| * sign(w) x.
constexpr int kOffset8 = 0;
inline vi dot_o8(vi acc, vi w, vi x) {
    vi s = ixor(w, _mm256_set1_epi8(char(0x80)));
    vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

#endif

// e^x for x <= 88, relative error below 2e-7; anything under -87 gives about 1e-38.
inline vf vexp(vf x) {
    x = vmax(vmin(x, vset1(88.0f)), vset1(-87.0f));
    vf n = vround(vmul(x, vset1(1.44269504088896341f)));
    vf r = vfnma(n, vset1(0.693359375f), x);
    r = vfnma(n, vset1(-2.12194440e-4f), r);
    vf p = vset1(1.9875691500e-4f);
    p = vfma(p, r, vset1(1.3981999507e-3f));
    p = vfma(p, r, vset1(8.3334519073e-3f));
    p = vfma(p, r, vset1(4.1665795894e-2f));
    p = vfma(p, r, vset1(1.6666665459e-1f));
    p = vfma(p, r, vset1(5.0000001201e-1f));
    p = vfma(vmul(p, r), r, vadd(r, vset1(1.0f)));
    return vpow2(p, n);
}

}  // namespace atom
