// Few rows: the weights stay in 4 or 8 bits and meet activations quantised to int8 in blocks of
// 32 (each with its own scale), so that a step reads the fewest bytes and unpacks almost nothing.
#include "linear.h"

namespace atom {
namespace {

constexpr int kMaxRows = VL == 16 ? 16 : 4;  // rows whose accumulators fit in registers

// Activations of all rows, quantised. `scale` and `sum` are per block of 32.
struct Quantized {
    int8_t* q;     // [M, K]
    float* scale;  // [M, nb]
    float* scaled_sum;  // [M, nb]: scale * sum of q
    int32_t* sum;  // [M, nb]
    int64_t k, nb;
};

Quantized carve(uint8_t* p, int64_t m, int64_t k) {
    Quantized x;
    x.k = k;
    x.nb = k / kBlock;
    x.scale = reinterpret_cast<float*>(p);
    x.scaled_sum = x.scale + m * x.nb;
    x.sum = reinterpret_cast<int32_t*>(x.scaled_sum + m * x.nb);
    x.q = reinterpret_cast<int8_t*>(x.sum + m * x.nb);
    return x;
}

void quantize_row(const float* x, const Quantized& to, int64_t row) {
    constexpr int kParts = kBlock / VL;
    for (int64_t b = 0; b < to.nb; b++) {
        vf v[kParts];
        vf top = vzero();
        for (int i = 0; i < kParts; i++) {
            v[i] = vload(x + b * kBlock + i * VL);
            top = vmax(top, vabs(v[i]));
        }
        const float most = vmaxall(top);
        const float inverse = most > 0 ? 127.0f / most : 0.0f;
        vi sum = iset1(0);
        for (int i = 0; i < kParts; i++) {
            vi q = vto_int(vmul(v[i], vset1(inverse)));
            vstore_i8(to.q + row * to.k + b * kBlock + i * VL, q);
#ifdef ATOM_AVX512
            sum = _mm512_add_epi32(sum, q);
#else
            sum = _mm256_add_epi32(sum, q);
#endif
        }
        const int total = vsum_int(sum);
        const float scale = most / 127.0f;
        to.scale[row * to.nb + b] = scale;
        to.sum[row * to.nb + b] = total;
        to.scaled_sum[row * to.nb + b] = scale * float(total);
    }
}

inline vi broadcast_dword(const int8_t* p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return iset1(v);
}

// The eight dwords of 4 k of a block, for the lanes of half `h` of the group.
template <int F>
inline void load_block(const uint8_t* q, int h, vi (&w)[8]) {
    if constexpr (F == kQ8_0) {
        for (int j = 0; j < 8; j++) w[j] = iload(q + j * 64 + h * VL * 4);
    } else {
#ifdef ATOM_AVX512
        const vi low = _mm512_set1_epi8(15);
#else
        const vi low = _mm256_set1_epi8(15);
#endif
        for (int j = 0; j < 4; j++) {
            vi v = iload(q + j * 64 + h * VL * 4);
            w[j] = iand(v, low);
            w[4 + j] = iand(isrl16<4>(v), low);
        }
    }
}

// MB rows times the 16 outputs of a group.
template <int F, int MB>
void group_product(const Weights& wt, int64_t g, const Quantized& x, int64_t row0, float (*out)[16]) {
    const GroupView v = view_group(wt, g);
    constexpr int64_t kBlockBytes = F == kQ8_0 ? 512 : 256;
    const int8_t* xq = x.q + row0 * x.k;
    const int64_t s0 = row0 * x.nb;
    for (int h = 0; h < kGroup / VL; h++) {
        vf acc[MB];
        ATOM_UNROLL
        for (int i = 0; i < MB; i++) acc[i] = vzero();
        for (int64_t b = 0; b < x.nb; b++) {
            const uint8_t* q = v.q + b * kBlockBytes;
            // The next lines of the stream: the prefetcher loses it at each page.
            for (int64_t o = 0; o < kBlockBytes; o += 64) __builtin_prefetch(q + 4096 + o);
            vi w[8];
            load_block<F>(q, h, w);
            const vf d = vload_f16(v.d + b * kGroup + h * VL);
            vf m = vzero();
            if constexpr (F == kQ4_1) m = vload_f16(v.m + b * kGroup + h * VL);
            ATOM_UNROLL
            for (int i = 0; i < MB; i++) {
                const int8_t* xi = xq + i * x.k + b * kBlock;
                const int64_t s = s0 + i * x.nb + b;
                vi dot;
                if constexpr (F == kQ8_0) {
                    dot = iset1(-kOffset8 * x.sum[s]);
                    for (int j = 0; j < 8; j++) dot = dot_o8(dot, w[j], broadcast_dword(xi + 4 * j));
                } else {
                    dot = F == kQ4_0 ? iset1(-8 * x.sum[s]) : iset1(0);
                    for (int j = 0; j < 8; j++) dot = dot_u8(dot, w[j], broadcast_dword(xi + 4 * j));
                }
                acc[i] = vfma(vfrom_int(dot), vmul(d, vset1(x.scale[s])), acc[i]);
                if constexpr (F == kQ4_1) acc[i] = vfma(m, vset1(x.scaled_sum[s]), acc[i]);
            }
        }
        ATOM_UNROLL
        for (int i = 0; i < MB; i++) vstore(out[i] + h * VL, acc[i]);
    }
}

using GroupFn = void (*)(const Weights&, int64_t, const Quantized&, int64_t, float (*)[16]);

template <int F, int MB>
struct Table {
    static void fill(GroupFn* fns) {
        fns[MB] = group_product<F, MB>;
        if constexpr (MB > 1) Table<F, MB - 1>::fill(fns);
    }
};

struct Kernels {
    GroupFn fn[3][kMaxRows + 1];
    Kernels() {
        Table<kQ4_0, kMaxRows>::fill(fn[kQ4_0]);
        Table<kQ4_1, kMaxRows>::fill(fn[kQ4_1]);
        Table<kQ8_0, kMaxRows>::fill(fn[kQ8_0]);
    }
};
const Kernels g_kernels;

void write_rows(const LinearArgs& a, int64_t row0, int rows, int64_t g, float (*tile)[16]) {
    const int64_t n0 = g * kGroup;
    const int width = int(a.w.n - n0 < kGroup ? a.w.n - n0 : kGroup);
    for (int i = 0; i < rows; i++) {
        float* out = a.out + (row0 + i) * a.ldo + n0;
        for (int c = 0; c < width; c += VL) {
            const int n = width - c < VL ? width - c : VL;
            vf y = vload(tile[i] + c);
            if (a.bias) y = vadd(y, vload_n(a.bias + n0 + c, n));
            vstore_n(out + c, y, n);
        }
    }
}

int64_t quantized_bytes(int64_t m, int64_t k) { return m * (k + k / kBlock * 12) + 64; }

}  // namespace

int64_t linear_int8_scratch(const LinearArgs& a, int64_t m) { return quantized_bytes(m, a.w.k); }

void linear_int8(const LinearArgs& a, int64_t m, Worker& w) {
    // One to three rows: each thread quantises them for itself, which is cheaper than to meet.
    const bool together = m > 3 && w.num_threads > 1;
    uint8_t* memory = together ? w.shared_scratch() : w.scratch(quantized_bytes(m, a.w.k));
    const Quantized x = carve(memory, m, a.w.k);
    auto quantize = [&](int64_t lo, int64_t hi) {
        for (int64_t r = lo; r < hi; r++) quantize_row(a.x + r * a.ldx, x, r);
    };
    if (together) {
        w.parallel_for(m, 1, quantize);
        w.barrier();
    } else {
        quantize(0, m);
    }
    const GroupFn* fns = g_kernels.fn[a.w.format];
    const int64_t pieces = a.w.groups() / (w.num_threads * 8);
    w.parallel_for(a.w.groups(), pieces < 1 ? 1 : pieces > 16 ? 16 : pieces, [&](int64_t g0, int64_t g1) {
        alignas(64) float tile[kMaxRows][16];
        for (int64_t g = g0; g < g1; g++) {
            // Equal pieces (17 rows are 9 + 8, not 16 + 1): the weights are unpacked per piece.
            const int64_t parts = (m + kMaxRows - 1) / kMaxRows;
            for (int64_t p = 0; p < parts; p++) {
                const int64_t r0 = m * p / parts, r1 = m * (p + 1) / parts;
                fns[r1 - r0](a.w, g, x, r0, tile);
                write_rows(a, r0, int(r1 - r0), g, tile);
            }
        }
    });
}

}  // namespace atom
