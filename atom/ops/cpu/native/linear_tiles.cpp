// A batch of decodes or a short prompt on AMX: quantised weights, 8 to about 50 rows.
//
// The quants go into the tiles as they are, because small integers are exact in bf16; a block's
// scale is applied to the product of that block. Activations are two bf16 terms, x = high + low, so
// that about 16 bits of them count. Results are nearly those of float32 arithmetic:
//
//   4 bits: w = d (q - 8) + (m + 8 d)    one tile of q - 8 per block of 32 k
//   8 bits: w = d (16 h + l)             two tiles per block, of 16 h and of l
//
// Tiles must come from the L1 cache, which loads one in 8 cycles where the L2 takes 30. So a panel
// of several groups of outputs walks through K together, a few blocks at a time: those blocks of
// the activations stay where they are while each group's weights pass by.
#include <algorithm>

#include "amx.h"
#include "linear.h"

namespace atom {

#ifndef ATOM_AMX

bool has_tiles() { return false; }
int64_t linear_tiles_scratch(const LinearArgs&, int64_t) { return 0; }
void linear_tiles(const LinearArgs&, int64_t, Worker&) {}

#else

namespace {

constexpr int kTile = 16 * 32;  // bf16 values of a tile
constexpr int kTerms = 2;
constexpr int64_t kTilesAtOnce = 8;  // token tiles x blocks of a stretch: 16 KiB of activations
constexpr int64_t kMostGroups = 8;   // of a panel
constexpr int kLag = 2;              // steps that a product waits for its scale
constexpr int kRing = 4;

// Of 16 tokens: `steps` x 2 tiles of 16 x 32 k (high, low), then the sums of each block [steps][16]
// in float32.
struct Layout {
    int64_t steps;
    explicit Layout(const LinearArgs& a) : steps(a.w.blocks()) {}
    int64_t stride() const { return steps * (kTerms * kTile + 32); }
    float* sums(uint16_t* x) const { return reinterpret_cast<float*>(x + steps * kTerms * kTile); }
};

// Unpacking meets k in the order 0, 2, 1, 3 within each four: so do the activations.
inline __m512i quad_order(__m512i v) {
    const __m512i order = _mm512_set_epi16(31, 29, 30, 28, 27, 25, 26, 24, 23, 21, 22, 20, 19, 17,
                                           18, 16, 15, 13, 14, 12, 11, 9, 10, 8, 7, 5, 6, 4, 3, 1,
                                           2, 0);
    return _mm512_permutexvar_epi16(order, v);
}

inline vf even_floats(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline vf odd_floats(__m512i pairs) {
    return _mm512_castsi512_ps(iand(pairs, iset1(int(0xffff0000))));
}

// 32 values as two bf16 terms; returns the sum of what the terms hold.
inline float split(const float* x, uint16_t* high, uint16_t* low) {
    const vf a = vload(x), b = vload(x + 16);
    const __m512i top = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const vf a_top = _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(top)), 16));
    const vf b_top = _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(top, 1)), 16));
    const __m512i rest = (__m512i)_mm512_cvtne2ps_pbh(vsub(b, b_top), vsub(a, a_top));
    _mm512_store_si512(high, quad_order(top));
    _mm512_store_si512(low, quad_order(rest));
    const vf sum = vadd(vadd(even_floats(top), odd_floats(top)),
                        vadd(even_floats(rest), odd_floats(rest)));
    return vsum(sum);
}

void pack_tokens(const LinearArgs& a, const Layout& layout, int64_t m, int64_t t, uint16_t* out) {
    float* sums = layout.sums(out);
    for (int r = 0; r < 16; r++) {
        const int64_t row = t * 16 + r;
        const float* x = a.x + row * a.ldx;
        for (int64_t s = 0; s < layout.steps; s++) {
            uint16_t* high = out + s * kTerms * kTile + r * 32;
            if (row < m) {
                sums[s * 16 + r] = split(x + s * 32, high, high + kTile);
            } else {
                std::memset(high, 0, 64);
                std::memset(high + kTile, 0, 64);
                sums[s * 16 + r] = 0;
            }
        }
    }
}

// bf16 of 0 .. 15 under `scale` and `offset`, twice: bit 4 of an index is of the next nibble.
inline __m512i nibble_table(float scale, float offset) {
    alignas(64) uint16_t table[32];
    for (int i = 0; i < 32; i++) table[i] = bf16_from_f32(scale * float(i % 16) + offset);
    return _mm512_load_si512(table);
}

// One dword of each of 16 rows into four tile rows: low nibbles of bytes 0, 2 and 1, 3, then high.
struct Nibbles {
    __m512i low02, low13, high02, high13;
};
inline Nibbles look_up(__m512i v, __m512i low, __m512i high) {
    return {_mm512_permutexvar_epi16(v, low),
            _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), low),
            _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), high),
            _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), high)};
}

struct Stretch {      // a group's weights for some blocks
    uint16_t* tiles;  // [blocks][1 or 2 tiles]
    float* scale;     // [blocks][16]
    float* constant;  // [blocks][16], Q4_1 only
};

void unpack_4bit(const Weights& w, int64_t g, int64_t s0, int64_t s1, const Stretch& to) {
    const __m512i table = nibble_table(1, -8);
    const GroupView v = view_group(w, g);
    for (int64_t b = s0; b < s1; b++) {
        uint16_t* tile = to.tiles + (b - s0) * kTile;
        ATOM_UNROLL
        for (int j = 0; j < 4; j++) {
            const Nibbles n = look_up(iload(v.q + b * 256 + j * 64), table, table);
            _mm512_store_si512(tile + (2 * j) * 32, n.low02);
            _mm512_store_si512(tile + (2 * j + 1) * 32, n.low13);
            _mm512_store_si512(tile + (8 + 2 * j) * 32, n.high02);
            _mm512_store_si512(tile + (9 + 2 * j) * 32, n.high13);
        }
        const vf d = vload_f16(v.d + b * kGroup);
        vstore(to.scale + (b - s0) * 16, d);
        if (w.format == kQ4_1)
            vstore(to.constant + (b - s0) * 16, vfma(d, vset1(8.0f), vload_f16(v.m + b * kGroup)));
    }
}

void unpack_8bit(const Weights& w, int64_t g, int64_t s0, int64_t s1, const Stretch& to) {
    const __m512i low = nibble_table(1, 0), high = nibble_table(16, -128);
    const GroupView v = view_group(w, g);
    for (int64_t b = s0; b < s1; b++) {
        uint16_t* tile = to.tiles + (b - s0) * 2 * kTile;
        ATOM_UNROLL
        for (int j = 0; j < 8; j++) {
            const Nibbles n = look_up(iload(v.q + b * 512 + j * 64), low, high);
            _mm512_store_si512(tile + (2 * j) * 32, n.low02);
            _mm512_store_si512(tile + (2 * j + 1) * 32, n.low13);
            _mm512_store_si512(tile + kTile + (2 * j) * 32, n.high02);
            _mm512_store_si512(tile + kTile + (2 * j + 1) * 32, n.high13);
        }
        vstore(to.scale + (b - s0) * 16, vload_f16(v.d + b * kGroup));
    }
}

// acc += product x scale, and for Q4_1 the constant part of the weights x the sums of x.
template <bool Constant>
inline void add_product(const float* product, const Stretch& p, int64_t s, const float* sums,
                        __m512 (&acc)[16]) {
    const vf d = vload(p.scale + s * 16);
    ATOM_UNROLL
    for (int r = 0; r < 16; r++) acc[r] = vfma(vload(product + r * 16), d, acc[r]);
    if (!Constant) return;
    const vf c = vload(p.constant + s * 16);
    ATOM_UNROLL
    for (int r = 0; r < 16; r++) acc[r] = vfma(c, vset1(sums[s * 16 + r]), acc[r]);
}

// Both terms of a step's activations times its weight tiles.
template <int Tiles>
inline void multiply_even(const uint16_t* x, const uint16_t* tiles, float* product) {
    _tile_zero(0);
    _tile_loadd(4, x, 64);
    _tile_loadd(6, tiles, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, x + kTile, 64);
    _tile_dpbf16ps(0, 5, 6);
    if (Tiles == 2) {
        _tile_loadd(7, tiles + kTile, 64);
        _tile_dpbf16ps(0, 4, 7);
        _tile_dpbf16ps(0, 5, 7);
    }
    _tile_stored(0, product, 64);
}

// The same in another tile, so that neighbouring steps need not wait for each other.
template <int Tiles>
inline void multiply_odd(const uint16_t* x, const uint16_t* tiles, float* product) {
    _tile_zero(1);
    _tile_loadd(4, x, 64);
    _tile_loadd(6, tiles, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(5, x + kTile, 64);
    _tile_dpbf16ps(1, 5, 6);
    if (Tiles == 2) {
        _tile_loadd(7, tiles + kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(1, 5, 7);
    }
    _tile_stored(1, product, 64);
}

// acc += 16 tokens times a stretch. A product is scaled some steps after its tile was stored: a
// load that follows a tile's store at once has to wait for it.
template <int Tiles, bool Constant>
void multiply(const uint16_t* x, const float* sums, const Stretch& p, int64_t steps,
              __m512 (&acc)[16]) {
    alignas(64) float ring[kRing][256];
    amx_fence();
    for (int64_t s = 0; s < steps; s++) {
        const uint16_t* own = x + s * kTerms * kTile;
        const uint16_t* tiles = p.tiles + s * Tiles * kTile;
        if (s % 2 == 0)
            multiply_even<Tiles>(own, tiles, ring[s % kRing]);
        else
            multiply_odd<Tiles>(own, tiles, ring[s % kRing]);
        amx_fence();
        if (s >= kLag) add_product<Constant>(ring[(s - kLag) % kRing], p, s - kLag, sums, acc);
    }
    for (int64_t s = steps < kLag ? 0 : steps - kLag; s < steps; s++)
        add_product<Constant>(ring[s % kRing], p, s, sums, acc);
}

void write_tile(const LinearArgs& a, int64_t m, int64_t t, int64_t g, const __m512 (&acc)[16]) {
    const int64_t n0 = g * kGroup;
    const int width = int(a.w.n - n0 < 16 ? a.w.n - n0 : 16);
    const __mmask16 mask = __mmask16((1u << width) - 1);
    const vf bias = a.bias ? _mm512_maskz_loadu_ps(mask, a.bias + n0) : vzero();
    float* out = a.out + t * 16 * a.ldo + n0;
    ATOM_UNROLL
    for (int r = 0; r < 16; r++)
        if (t * 16 + r < m) _mm512_mask_storeu_ps(out + r * a.ldo, mask, vadd(acc[r], bias));
}

// Memory that is needed soon, into the L2 cache. In the order of addresses, so that the processor's
// own prefetcher joins in: alone, these would not keep up with the products.
inline void prefetch(const uint8_t* from, const uint8_t* to) {
    for (; from < to; from += 64) __builtin_prefetch(from, 0, 2);
}

struct Panel {
    const LinearArgs& a;
    const Layout& layout;
    uint16_t* x;
    int64_t m, tiles, g0, g1;  // rows, token tiles, groups of outputs
    Stretch stretch;
    float* kept;  // [groups][tiles][16][16] sums between stretches
};

// Blocks s0 .. s1 of K for one group and all tokens.
void run_stretch(const Panel& p, int64_t g, int64_t s0, int64_t s1) {
    const bool last = s1 == p.layout.steps;
    if (p.a.w.format == kQ8_0)
        unpack_8bit(p.a.w, g, s0, s1, p.stretch);
    else
        unpack_4bit(p.a.w, g, s0, s1, p.stretch);
    for (int64_t t = 0; t < p.tiles; t++) {
        uint16_t* own = p.x + t * p.layout.stride();
        const float* sums = p.layout.sums(own) + s0 * 16;
        const uint16_t* x = own + s0 * kTerms * kTile;
        float* kept = p.kept + ((g - p.g0) * p.tiles + t) * 256;
        __m512 acc[16];
        ATOM_UNROLL
        for (int r = 0; r < 16; r++) acc[r] = s0 > 0 ? vload(kept + r * 16) : vzero();
        if (p.a.w.format == kQ8_0)
            multiply<2, false>(x, sums, p.stretch, s1 - s0, acc);
        else if (p.a.w.format == kQ4_1)
            multiply<1, true>(x, sums, p.stretch, s1 - s0, acc);
        else
            multiply<1, false>(x, sums, p.stretch, s1 - s0, acc);
        if (last) {
            write_tile(p.a, p.m, t, g, acc);
        } else {
            ATOM_UNROLL
            for (int r = 0; r < 16; r++) vstore(kept + r * 16, acc[r]);
        }
    }
}

void run_panel(const LinearArgs& a, const Layout& layout, uint16_t* x, int64_t m, int64_t g0,
               int64_t g1, Worker& w) {
    const int64_t tiles = (m + 15) / 16;
    const int64_t longest = std::max<int64_t>(kTilesAtOnce / tiles, 2);
    const int64_t stretches = (layout.steps + longest - 1) / longest;
    uint8_t* memory = w.scratch(longest * (2 * kTile * 2 + 128) + (g1 - g0) * tiles * 1024);
    Stretch stretch;
    stretch.tiles = reinterpret_cast<uint16_t*>(memory);
    stretch.scale = reinterpret_cast<float*>(memory + longest * 2 * kTile * 2);
    stretch.constant = stretch.scale + longest * 16;
    const Panel p{a, layout, x, m, tiles, g0, g1, stretch, stretch.constant + longest * 16};
    auto start = [&](int64_t i) { return layout.steps * i / stretches; };
    // Meanwhile the next panel comes in, a slice at a time.
    const uint8_t* next = a.w.group(g1);
    const int64_t coming = std::min(g1 - g0, a.w.groups() - g1) * a.w.group_bytes();
    const int64_t slices = stretches * (g1 - g0);
    int64_t slice = 0;
    for (int64_t i = 0; i < stretches; i++)
        for (int64_t g = g0; g < g1; g++, slice++) {
            prefetch(next + coming * slice / slices, next + coming * (slice + 1) / slices);
            run_stretch(p, g, start(i), start(i + 1));
        }
}

}  // namespace

bool has_tiles() { return amx_request(); }

int64_t linear_tiles_scratch(const LinearArgs& a, int64_t m) {
    return (m + 15) / 16 * Layout(a).stride() * 2;
}

void linear_tiles(const LinearArgs& a, int64_t m, Worker& w) {
    const Layout layout(a);
    uint16_t* x = reinterpret_cast<uint16_t*>(w.shared_scratch());
    const int64_t groups = a.w.groups();
    int64_t grain = groups / (w.num_threads * 6);
    grain = grain < 1 ? 1 : grain > kMostGroups ? kMostGroups : grain;
    // Where this thread's share begins (`parallel_for` deals out whole pieces).
    const int64_t pieces = (groups + grain - 1) / grain;
    const uint8_t* first = a.w.group(pieces * w.tid / w.num_threads * grain);
    prefetch(first, std::min(first + grain * a.w.group_bytes(), a.w.group(groups)));
    w.parallel_for((m + 15) / 16, 1, [&](int64_t t0, int64_t t1) {
        for (int64_t t = t0; t < t1; t++) pack_tokens(a, layout, m, t, x + t * layout.stride());
    });
    w.barrier();
    amx_configure();
    w.parallel_for(groups, grain, [&](int64_t lo, int64_t hi) {
        for (int64_t g = lo; g < hi; g += kMostGroups)
            run_panel(a, layout, x, m, g, std::min(g + kMostGroups, hi), w);
    });
}

#endif

}  // namespace atom
