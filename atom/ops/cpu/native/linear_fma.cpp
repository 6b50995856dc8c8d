// Dense or unpacked weights times float32 activations. Exact products, float32 sums: the
// reference mode's kernel, few rows of 16-bit weights, and many rows without bf16 instructions.
#include "linear.h"

namespace atom {
namespace {

constexpr int kHalves = kGroup / VL;
constexpr int kRows = VL == 16 ? 12 : 6;  // rows whose accumulators fit in registers

// One pair of k (2 x 16 lanes) of a 16-bit group as float32.
inline void load_pair(const uint8_t* p, int64_t format, int h, vf& even, vf& odd) {
    const vi v = iload(p + h * VL * 4);
#ifdef ATOM_AVX512
    if (format == kBF16) {
        even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        odd = _mm512_castsi512_ps(iand(v, iset1(int(0xffff0000))));
    } else {
        even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
        odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
    }
#else
    if (format == kBF16) {
        even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
        odd = _mm256_castsi256_ps(iand(v, iset1(int(0xffff0000))));
    } else {
        const vi lo = iand(v, iset1(0xffff));
        const vi hi = _mm256_srli_epi32(v, 16);
        const vi packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
        even = _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
        odd = _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1));
    }
#endif
}

// A group as float32 [K][16]. F32 weights already are.
void unpack_group(const Weights& w, int64_t g, float* out) {
    if (!w.quantized()) {
        const uint8_t* p = w.group(g);
        for (int64_t k = 0; k < w.k; k += 2, p += 64)
            for (int h = 0; h < kHalves; h++) {
                vf even, odd;
                load_pair(p, w.format, h, even, odd);
                vstore(out + k * kGroup + h * VL, even);
                if (k + 1 < w.k) vstore(out + (k + 1) * kGroup + h * VL, odd);
            }
        return;
    }
    const GroupView v = view_group(w, g);
    const vi mask = iset1(w.format == kQ8_0 ? 255 : 15);
    for (int64_t b = 0; b < w.blocks(); b++)
        for (int h = 0; h < kHalves; h++) {
            const vf d = vload_f16(v.d + b * kGroup + h * VL);
            vf m = vmul(d, vset1(w.format == kQ8_0 ? -128.0f : -8.0f));
            if (w.format == kQ4_1) m = vload_f16(v.m + b * kGroup + h * VL);
            const int words = w.format == kQ8_0 ? 8 : 4;
            const int bits = w.format == kQ8_0 ? 8 : 4;
            const uint8_t* q = v.q + b * w.block_bytes() + h * VL * 4;
            for (int j = 0; j < words; j++) {
                const vi word = iload(q + j * 64);
                for (int i = 0; i < 32 / bits; i++) {
#ifdef ATOM_AVX512
                    const vi one = iand(_mm512_srli_epi32(word, i * bits), mask);
#else
                    const vi one = iand(_mm256_srli_epi32(word, i * bits), mask);
#endif
                    const int k = bits == 8 ? 4 * j + i : 4 * j + i / 2 + 16 * (i & 1);
                    vstore(out + (b * kBlock + k) * kGroup + h * VL, vfma(vfrom_int(one), d, m));
                }
            }
        }
}

template <int R>
void rows_times_group(const LinearArgs& a, const float* panel, int64_t row0, int64_t n0) {
    vf acc[R][kHalves];
    for (int i = 0; i < R; i++)
        for (int h = 0; h < kHalves; h++) acc[i][h] = vzero();
    const float* x = a.x + row0 * a.ldx;
    for (int64_t k = 0; k < a.w.k; k++) {
        vf w[kHalves];
        for (int h = 0; h < kHalves; h++) w[h] = vload(panel + k * kGroup + h * VL);
        for (int i = 0; i < R; i++) {
            const vf xi = vset1(x[i * a.ldx + k]);
            for (int h = 0; h < kHalves; h++) acc[i][h] = vfma(w[h], xi, acc[i][h]);
        }
    }
    for (int i = 0; i < R; i++)
        for (int h = 0; h < kHalves; h++) {
            const int64_t c = n0 + h * VL;
            if (c >= a.w.n) break;
            const int n = int(a.w.n - c < VL ? a.w.n - c : VL);
            vf y = acc[i][h];
            if (a.bias) y = vadd(y, vload_n(a.bias + c, n));
            vstore_n(a.out + (row0 + i) * a.ldo + c, y, n);
        }
}

#ifdef ATOM_AVX512
// Two groups at once: one broadcast of x serves two products, which would otherwise wait for loads.
// Sums are those of `rows_times_group`, bit for bit.
void rows_times_two_groups(const LinearArgs& a, const float* p0, const float* p1, int64_t row0,
                           int64_t n0) {
    vf acc[kRows][2];
    for (int i = 0; i < kRows; i++) acc[i][0] = acc[i][1] = vzero();
    const float* x = a.x + row0 * a.ldx;
    for (int64_t k = 0; k < a.w.k; k++) {
        const vf w0 = vload(p0 + k * kGroup), w1 = vload(p1 + k * kGroup);
        for (int i = 0; i < kRows; i++) {
            const vf xi = vset1(x[i * a.ldx + k]);
            acc[i][0] = vfma(w0, xi, acc[i][0]);
            acc[i][1] = vfma(w1, xi, acc[i][1]);
        }
    }
    for (int h = 0; h < 2; h++) {
        const int64_t c = n0 + h * kGroup;
        const int n = int(a.w.n - c < VL ? a.w.n - c : VL);
        for (int i = 0; i < kRows; i++) {
            vf y = acc[i][h];
            if (a.bias) y = vadd(y, vload_n(a.bias + c, n));
            vstore_n(a.out + (row0 + i) * a.ldo + c, y, n);
        }
    }
}
#endif

using RowsFn = void (*)(const LinearArgs&, const float*, int64_t, int64_t);

template <int R>
void fill(RowsFn* fns) {
    fns[R] = rows_times_group<R>;
    if constexpr (R > 1) fill<R - 1>(fns);
}

struct Kernels {
    RowsFn fn[kRows + 1];
    Kernels() { fill<kRows>(fn); }
};
const Kernels g_kernels;

// Few rows of 16-bit weights: converted in registers, never stored.
template <int R>
void rows_times_pairs(const LinearArgs& a, int64_t g, int64_t row0) {
    const int64_t n0 = g * kGroup;
    alignas(64) float zero[2] = {0, 0};
    for (int h = 0; h < kHalves; h++) {
        vf acc[R];
        for (int i = 0; i < R; i++) acc[i] = vzero();
        const uint8_t* p = a.w.group(g);
        const float* x = a.x + row0 * a.ldx;
        for (int64_t k = 0; k < a.w.k; k += 2, p += 64) {
            __builtin_prefetch(p + 4096);
            vf even, odd;
            load_pair(p, a.w.format, h, even, odd);
            for (int i = 0; i < R; i++) {
                const float* xi = x + i * a.ldx + k;
                acc[i] = vfma(even, vset1(xi[0]), acc[i]);
                acc[i] = vfma(odd, vset1(k + 1 < a.w.k ? xi[1] : zero[0]), acc[i]);
            }
        }
        const int64_t c = n0 + h * VL;
        if (c >= a.w.n) return;
        const int n = int(a.w.n - c < VL ? a.w.n - c : VL);
        for (int i = 0; i < R; i++) {
            vf y = acc[i];
            if (a.bias) y = vadd(y, vload_n(a.bias + c, n));
            vstore_n(a.out + (row0 + i) * a.ldo + c, y, n);
        }
    }
}

}  // namespace

void linear_fma(const LinearArgs& a, int64_t m, Worker& w) {
    const int64_t groups = a.w.groups();
    int64_t grain = groups / (w.num_threads * 8);
    grain = grain < 1 ? 1 : grain > 16 ? 16 : grain;
    const bool direct = m <= 4 && (a.w.format == kBF16 || a.w.format == kF16);
#ifdef ATOM_AVX512
    const bool pairs = a.w.format == kF32 && m >= kRows;
    if (pairs) grain += grain & 1;
#endif
    w.parallel_for(groups, grain, [&](int64_t g0, int64_t g1) {
        int64_t g = g0;
#ifdef ATOM_AVX512
        for (; pairs && g + 1 < g1; g += 2) {
            const float* p0 = reinterpret_cast<const float*>(a.w.group(g));
            const float* p1 = reinterpret_cast<const float*>(a.w.group(g + 1));
            int64_t r = 0;
            for (; r + kRows <= m; r += kRows) rows_times_two_groups(a, p0, p1, r, g * kGroup);
            if (r == m) continue;
            g_kernels.fn[m - r](a, p0, r, g * kGroup);
            g_kernels.fn[m - r](a, p1, r, (g + 1) * kGroup);
        }
#endif
        for (; g < g1; g++) {
            if (direct) {
                if (m == 1) rows_times_pairs<1>(a, g, 0);
                if (m == 2) rows_times_pairs<2>(a, g, 0);
                if (m == 3) rows_times_pairs<3>(a, g, 0);
                if (m == 4) rows_times_pairs<4>(a, g, 0);
                continue;
            }
            const float* panel = reinterpret_cast<const float*>(a.w.group(g));
            if (a.w.format != kF32) {
                float* own = reinterpret_cast<float*>(w.scratch((a.w.k + 32) * kGroup * 4));
                unpack_group(a.w, g, own);
                panel = own;
            }
            for (int64_t r = 0; r < m; r += kRows) {
                const int64_t rows = m - r < kRows ? m - r : kRows;
                g_kernels.fn[rows](a, panel, r, g * kGroup);
            }
        }
    });
}

}  // namespace atom
