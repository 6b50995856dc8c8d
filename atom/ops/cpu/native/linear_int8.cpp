// Few rows: the weights stay in 4 or 8 bits and meet activations in whole numbers, so that a step
// reads the fewest bytes and unpacks almost nothing.
//
// An activation is 256 * high + low, two int8 terms on one scale per block of 32: about 15 bits.
// One term (8 bits) would be as exact as what other engines do, but it costs ten times the error
// of the bfloat16 path and makes a text depend on how many rows a step happens to have.
#include "linear.h"

namespace atom {
namespace {

constexpr int kTerms = 2;
constexpr int64_t kRowBytes = kTerms * kBlock;  // of one row's block
constexpr float kMost = 127 * 256;             // the largest whole number, so that high <= 127
constexpr int kMaxRows = VL == 16 ? 16 : 6;  // rows whose accumulators fit in registers

// Activations, quantised. Rows that one pass takes together are a chunk; a chunk is stored block by
// block, the rows of a block side by side, so that a pass reads it from one address onwards.
struct Quantized {
    int8_t* q;          // [chunk][nb][rows][2][32]: high terms, low terms
    float* scale;       // [chunk][nb][rows]
    float* scaled_sum;  // the same: scale * sum of q
    int32_t* sum;
    int64_t m, nb, chunks;

    int64_t first_row(int64_t chunk) const { return m * chunk / chunks; }
    int64_t rows(int64_t chunk) const { return first_row(chunk + 1) - first_row(chunk); }
};

int64_t quantized_bytes(int64_t m, int64_t k) {
    return m * (kTerms * k + k / kBlock * 12) + 64;
}

Quantized carve(uint8_t* p, int64_t m, int64_t k) {
    Quantized x;
    x.m = m;
    x.nb = k / kBlock;
    // Equal chunks (17 rows are 9 + 8, not 16 + 1): the weights are unpacked once for each.
    x.chunks = (m + kMaxRows - 1) / kMaxRows;
    x.scale = reinterpret_cast<float*>(p);
    x.scaled_sum = x.scale + m * x.nb;
    x.sum = reinterpret_cast<int32_t*>(x.scaled_sum + m * x.nb);
    x.q = reinterpret_cast<int8_t*>(x.sum + m * x.nb);
    return x;
}

void quantize_row(const float* x, const Quantized& to, int64_t row) {
    constexpr int kParts = kBlock / VL;
    int64_t chunk = row * to.chunks / to.m;
    while (to.first_row(chunk + 1) <= row) chunk++;
    while (to.first_row(chunk) > row) chunk--;
    const int64_t rows = to.rows(chunk);
    // Of block 0; block b is `rows` entries further on, b times.
    int64_t at = to.first_row(chunk) * to.nb + (row - to.first_row(chunk));
    for (int64_t b = 0; b < to.nb; b++, at += rows) {
        vf v[kParts];
        vf top = vzero();
        ATOM_UNROLL
        for (int i = 0; i < kParts; i++) {
            v[i] = vload(x + b * kBlock + i * VL);
            top = vmax(top, vabs(v[i]));
        }
        const float most = vmaxall(top);
        const float inverse = most > 0 ? kMost / most : 0.0f;
        vi sum = iset1(0);
        ATOM_UNROLL
        for (int i = 0; i < kParts; i++) {
            const vi q = vto_int(vmul(v[i], vset1(inverse)));
            const vi high = isra32<8>(iadd(q, iset1(128)));
            // -128 has no negative in int8, which the AVX2 products need.
            const vi low = imax32(isub(q, isll32<8>(high)), iset1(-127));
            vstore_i8(to.q + at * kRowBytes + i * VL, high);
            vstore_i8(to.q + at * kRowBytes + kBlock + i * VL, low);
            sum = iadd(sum, iadd(isll32<8>(high), low));
        }
        const int total = vsum_int(sum);
        const float scale = most / kMost;
        to.scale[at] = scale;
        to.sum[at] = total;
        to.scaled_sum[at] = scale * float(total);
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

// One term of a block times R rows, word by word: R sums that do not wait for each other.
template <int F, int R>
inline void term_product(const vi (&w)[8], const int8_t* q, vi (&dot)[R]) {
#ifdef ATOM_NIBBLES_IN_16_BITS
    if constexpr (F != kQ8_0) {
        ATOM_UNROLL
        for (int i = 0; i < R; i++) {
            vi pairs = iset1(0);
            ATOM_UNROLL
            for (int j = 0; j < 8; j++)
                pairs = pairs_u4(pairs, w[j], broadcast_dword(q + i * kRowBytes + 4 * j));
            dot[i] = widen_pairs(dot[i], pairs);
        }
        return;
    }
#endif
    ATOM_UNROLL
    for (int j = 0; j < 8; j++) {
        ATOM_UNROLL
        for (int i = 0; i < R; i++) {
            const vi x = broadcast_dword(q + i * kRowBytes + 4 * j);
            dot[i] = F == kQ8_0 ? dot_o8(dot[i], w[j], x) : dot_u8(dot[i], w[j], x);
        }
    }
}

// The products of one block with rows 0 .. R-1; |256 * high + low| stays far below 2^31.
template <int F, int R>
inline void block_product(const vi (&w)[8], const int8_t* q, const int32_t* sum, vi (&dot)[R]) {
    ATOM_UNROLL
    for (int i = 0; i < R; i++) dot[i] = iset1(0);
    term_product<F, R>(w, q, dot);
    ATOM_UNROLL
    for (int i = 0; i < R; i++) {
        dot[i] = isll32<8>(dot[i]);
        if constexpr (F == kQ8_0 && kOffset8 != 0) dot[i] = iadd(dot[i], iset1(-kOffset8 * sum[i]));
        if constexpr (F == kQ4_0) dot[i] = iadd(dot[i], iset1(-8 * sum[i]));
    }
    term_product<F, R>(w, q + kBlock, dot);
}

// MB rows (a chunk) times the 16 outputs of a group.
template <int F, int MB>
void group_product(const Weights& wt, int64_t g, const Quantized& x, int64_t chunk,
                   float (*out)[16]) {
    constexpr int64_t kBlockBytes = F == kQ8_0 ? 512 : 256;
    constexpr int kAtOnce = MB < 8 ? MB : 8;  // rows whose integer sums fit beside the rest
    const GroupView v = view_group(wt, g);
    const int64_t start = x.first_row(chunk) * x.nb;
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
            const int64_t at = start + b * MB;
            ATOM_UNROLL
            for (int i0 = 0; i0 < MB; i0 += kAtOnce) {
                constexpr int kTail = MB % kAtOnce;
                auto scale_in = [&](auto& dot) {
                    constexpr int kCount = sizeof(dot) / sizeof(dot[0]);
                    ATOM_UNROLL
                    for (int i = 0; i < kCount; i++) {
                        vf& to = acc[i0 + i];
                        to = vfma(vfrom_int(dot[i]), vmul(d, vset1(x.scale[at + i0 + i])), to);
                        if constexpr (F == kQ4_1)
                            to = vfma(m, vset1(x.scaled_sum[at + i0 + i]), to);
                    }
                };
                const int8_t* xq = x.q + (at + i0) * kRowBytes;
                if (kTail == 0 || i0 + kAtOnce <= MB) {
                    vi dot[kAtOnce];
                    block_product<F, kAtOnce>(w, xq, x.sum + at + i0, dot);
                    scale_in(dot);
                } else {
                    vi dot[kTail ? kTail : 1];
                    block_product<F, kTail ? kTail : 1>(w, xq, x.sum + at + i0, dot);
                    scale_in(dot);
                }
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
    int64_t grain = a.w.groups() / (w.num_threads * 8);
    grain = grain < 1 ? 1 : grain > 16 ? 16 : grain;
    w.parallel_for(a.w.groups(), grain, [&](int64_t g0, int64_t g1) {
        alignas(64) float tile[kMaxRows][16];
        for (int64_t g = g0; g < g1; g++) {
            for (int64_t c = 0; c < x.chunks; c++) {
                const int rows = int(x.rows(c));
                fns[rows](a.w, g, x, c, tile);
                write_rows(a, x.first_row(c), rows, g, tile);
            }
        }
    });
}

}  // namespace atom
