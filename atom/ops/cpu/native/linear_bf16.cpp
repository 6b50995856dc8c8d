// Many rows: activations and weights as bf16, sums in float32. Weights are unpacked from their 4 or
// 8 bits a panel of 32 outputs at a time, into memory that stays in the core's own cache; the
// products run on AMX tiles, or on vdpbf16ps where there are none.
#include "amx.h"
#include "linear.h"

namespace atom {

#ifndef ATOM_BF16

bool has_bf16() { return false; }
int64_t linear_bf16_scratch(const LinearArgs&, int64_t) { return 0; }
void linear_bf16(const LinearArgs& a, int64_t m, Worker& w) { linear_fma(a, m, w); }

#else

namespace {

// A tile is 16 rows of 64 bytes. Activation tiles hold 16 tokens x 32 k; weight tiles hold 16
// pairs of k x 16 outputs x 2. Both are contiguous, so that loads never straddle cache lines.
constexpr int kTile = 16 * 32;
constexpr int64_t kMaxSteps = 64;      // k steps of 32 in one pass (2,048 of K)
constexpr int64_t kActivationBytes = 1 << 20;  // of one chunk of tokens: stays in the L2 cache

inline __m512i bf16_pairs(__m512 even, __m512 odd) {
    // cvtne2 puts the evens in the low half and the odds in the high one; the tile wants pairs.
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

template <int Shift>
inline __m512 nibble(__m512i word, __m512 table) {
    // vpermps reads the low four bits of each lane only: no mask is needed.
    return _mm512_permutexvar_ps(_mm512_srli_epi32(word, Shift), table);
}

// k = 4j .. 4j+3 from the low nibbles (Base 0) or 16 + 4j .. from the high ones (Base 4).
template <int Base>
inline void unpack_nibbles(__m512i word, __m512 table, __m512 d, __m512 m, uint16_t* tile) {
    const __m512 w0 = _mm512_fmadd_ps(nibble<Base>(word, table), d, m);
    const __m512 w1 = _mm512_fmadd_ps(nibble<Base + 8>(word, table), d, m);
    const __m512 w2 = _mm512_fmadd_ps(nibble<Base + 16>(word, table), d, m);
    const __m512 w3 = _mm512_fmadd_ps(nibble<Base + 24>(word, table), d, m);
    _mm512_store_si512(tile, bf16_pairs(w0, w1));
    _mm512_store_si512(tile + 32, bf16_pairs(w2, w3));
}

void unpack_tile_4bit(const GroupView& v, int64_t b, bool has_min, uint16_t* tile) {
    const __m512 table =
        _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 d = vload_f16(v.d + b * kGroup);
    const __m512 m = has_min ? vload_f16(v.m + b * kGroup) : vmul(d, vset1(-8.0f));
    for (int j = 0; j < 4; j++) {
        const __m512i word = iload(v.q + b * 256 + j * 64);
        unpack_nibbles<0>(word, table, d, m, tile + j * 64);
        unpack_nibbles<4>(word, table, d, m, tile + (8 + 2 * j) * 32);
    }
}

void unpack_tile_8bit(const GroupView& v, int64_t b, uint16_t* tile) {
    const __m512 d = vload_f16(v.d + b * kGroup);
    const __m512i flip = iset1(int(0x80808080));
    for (int j = 0; j < 8; j++) {
        const __m512i word = ixor(iload(v.q + b * 512 + j * 64), flip);
        __m512 w[4];
        w[0] = vfrom_int(_mm512_srai_epi32(_mm512_slli_epi32(word, 24), 24));
        w[1] = vfrom_int(_mm512_srai_epi32(_mm512_slli_epi32(word, 16), 24));
        w[2] = vfrom_int(_mm512_srai_epi32(_mm512_slli_epi32(word, 8), 24));
        w[3] = vfrom_int(_mm512_srai_epi32(word, 24));
        for (int i = 0; i < 4; i++) w[i] = vmul(w[i], d);
        _mm512_store_si512(tile + j * 64, bf16_pairs(w[0], w[1]));
        _mm512_store_si512(tile + j * 64 + 32, bf16_pairs(w[2], w[3]));
    }
}

// Steps s0 .. s1 of a group as bf16 tiles. BF16 weights are stored that way: returned in place.
const uint16_t* group_tiles(const Weights& w, int64_t g, int64_t s0, int64_t s1, uint16_t* own) {
    if (w.format == kBF16) return reinterpret_cast<const uint16_t*>(w.group(g)) + s0 * kTile;
    if (w.format == kF16) {
        const uint8_t* p = w.group(g) + s0 * kTile * 2;
        for (int64_t i = 0; i < (s1 - s0) * 16; i++) {
            const __m512i v = iload(p + i * 64);
            const __m512 even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
            const __m512 odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
            _mm512_store_si512(own + i * 32, bf16_pairs(even, odd));
        }
        return own;
    }
    const GroupView v = view_group(w, g);
    for (int64_t b = s0; b < s1; b++) {
        uint16_t* tile = own + (b - s0) * kTile;
        if (w.format == kQ8_0)
            unpack_tile_8bit(v, b, tile);
        else
            unpack_tile_4bit(v, b, w.format == kQ4_1, tile);
    }
    return own;
}

// 16 tokens of x as tiles [steps][16][32]; missing tokens and k are zero.
void activation_tiles(const LinearArgs& a, int64_t m, int64_t t, int64_t steps, uint16_t* out) {
    for (int r = 0; r < 16; r++) {
        const int64_t row = t * 16 + r;
        const float* x = a.x + row * a.ldx;
        for (int64_t s = 0; s < steps; s++) {
            uint16_t* o = out + s * kTile + r * 32;
            for (int h = 0; h < 2; h++) {
                const int64_t k = s * 32 + h * 16;
                const int64_t left = row < m ? a.w.k - k : 0;
                vf v = vzero();
                if (left > 0) v = left >= 16 ? vload(x + k) : vload_n(x + k, int(left));
                vstore_bf16(o + h * 16, v);
            }
        }
    }
}

// acc [MT * 16][32] (+)= tiles of MT x 16 tokens times two groups.
#ifdef ATOM_AMX

template <int MT>
void tile_product(const uint16_t* x, int64_t x_stride, const uint16_t* w0, const uint16_t* w1,
                  int64_t steps, bool add, float* acc) {
    amx_fence();
    if (add) {
        _tile_loadd(0, acc, 128);
        _tile_loadd(1, acc + 16, 128);
        if (MT > 1) {
            _tile_loadd(2, acc + 16 * 32, 128);
            _tile_loadd(3, acc + 16 * 32 + 16, 128);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (MT > 1) {
            _tile_zero(2);
            _tile_zero(3);
        }
    }
    for (int64_t s = 0; s < steps; s++) {
        _tile_loadd(6, w0 + s * kTile, 64);
        _tile_loadd(7, w1 + s * kTile, 64);
        _tile_loadd(4, x + s * kTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (MT > 1) {
            _tile_loadd(5, x + x_stride + s * kTile, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, acc, 128);
    _tile_stored(1, acc + 16, 128);
    if (MT > 1) {
        _tile_stored(2, acc + 16 * 32, 128);
        _tile_stored(3, acc + 16 * 32 + 16, 128);
    }
    amx_fence();
}

#endif

inline __m512bh broadcast_pair(const uint16_t* p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return (__m512bh)_mm512_set1_epi32(v);
}

// The same product without tiles, eight tokens at a time.
void vector_product(int mt, const uint16_t* x, int64_t x_stride, const uint16_t* w0,
                    const uint16_t* w1, int64_t steps, bool add, float* acc) {
    constexpr int R = 8;
    for (int r0 = 0; r0 < mt * 16; r0 += R) {
        const uint16_t* xr = x + (r0 / 16) * x_stride + (r0 % 16) * 32;
        __m512 c[R][2];
        for (int i = 0; i < R; i++)
            for (int g = 0; g < 2; g++)
                c[i][g] = add ? vload(acc + (r0 + i) * 32 + g * 16) : vzero();
        for (int64_t s = 0; s < steps; s++)
            for (int p = 0; p < 16; p++) {
                const __m512bh a0 = (__m512bh)iload(w0 + s * kTile + p * 32);
                const __m512bh a1 = (__m512bh)iload(w1 + s * kTile + p * 32);
                for (int i = 0; i < R; i++) {
                    const __m512bh xi = broadcast_pair(xr + s * kTile + i * 32 + p * 2);
                    c[i][0] = _mm512_dpbf16_ps(c[i][0], a0, xi);
                    c[i][1] = _mm512_dpbf16_ps(c[i][1], a1, xi);
                }
            }
        for (int i = 0; i < R; i++)
            for (int g = 0; g < 2; g++) vstore(acc + (r0 + i) * 32 + g * 16, c[i][g]);
    }
}

struct Panel {
    const LinearArgs& a;
    int64_t m, steps;
    const uint16_t* x;  // activation tiles [m tiles][steps][16][32]
    bool amx;
};

void multiply(const Panel& p, int64_t t, int mt, int64_t s0, const uint16_t* w0, const uint16_t* w1,
              int64_t steps, float* acc) {
    const uint16_t* x = p.x + (t * p.steps + s0) * kTile;
    const int64_t stride = p.steps * kTile;
#ifdef ATOM_AMX
    if (p.amx) {
        if (mt == 2)
            tile_product<2>(x, stride, w0, w1, steps, s0 > 0, acc);
        else
            tile_product<1>(x, stride, w0, w1, steps, s0 > 0, acc);
        return;
    }
#endif
    vector_product(mt, x, stride, w0, w1, steps, s0 > 0, acc);
}

// Token tiles t0 .. t1 times outputs 32 p .. 32 p + 31.
void run_panel(const Panel& p, int64_t panel, int64_t t0, int64_t t1, Worker& w) {
    const LinearArgs& a = p.a;
    const int64_t pass = p.steps < kMaxSteps ? p.steps : kMaxSteps;
    const int64_t weight_bytes = 2 * pass * kTile * 2;
    uint8_t* memory = w.scratch(weight_bytes + (t1 - t0) * 16 * 32 * 4);
    uint16_t* own = reinterpret_cast<uint16_t*>(memory);
    float* acc = reinterpret_cast<float*>(memory + weight_bytes);
    const int64_t g0 = panel * 2;
    const int64_t g1 = g0 + 1 < a.w.groups() ? g0 + 1 : g0;  // an odd last group is done twice
    for (int64_t s0 = 0; s0 < p.steps; s0 += pass) {
        const int64_t s1 = s0 + pass < p.steps ? s0 + pass : p.steps;
        const uint16_t* w0 = group_tiles(a.w, g0, s0, s1, own);
        const uint16_t* w1 = g1 == g0 ? w0 : group_tiles(a.w, g1, s0, s1, own + pass * kTile);
        for (int64_t t = t0; t < t1; t += 2)
            multiply(p, t, t1 - t > 1 ? 2 : 1, s0, w0, w1, s1 - s0, acc + (t - t0) * 16 * 32);
    }
    const int64_t n0 = panel * 32;
    const int64_t width = a.w.n - n0 < 32 ? a.w.n - n0 : 32;
    for (int64_t r = t0 * 16; r < t1 * 16 && r < p.m; r++)
        for (int64_t c = 0; c < width; c += 16) {
            const int n = int(width - c < 16 ? width - c : 16);
            vf y = vload(acc + (r - t0 * 16) * 32 + c);
            if (a.bias) y = vadd(y, vload_n(a.bias + n0 + c, n));
            vstore_n(a.out + r * a.ldo + n0 + c, y, n);
        }
}

}  // namespace

bool has_bf16() { return true; }

int64_t linear_bf16_scratch(const LinearArgs& a, int64_t m) {
    return (m + 15) / 16 * a.w.blocks() * kTile * 2;
}

void linear_bf16(const LinearArgs& a, int64_t m, Worker& w) {
    const int64_t steps = a.w.blocks(), tiles = (m + 15) / 16;
    uint16_t* x = reinterpret_cast<uint16_t*>(w.shared_scratch());
    w.parallel_for(tiles, 1, [&](int64_t t0, int64_t t1) {
        for (int64_t t = t0; t < t1; t++) activation_tiles(a, m, t, steps, x + t * steps * kTile);
    });
    w.barrier();
    const Panel p{a, m, steps, x, amx_request()};
#ifdef ATOM_AMX
    if (p.amx) amx_configure();
#endif
    int64_t chunk = kActivationBytes / (steps * kTile * 2) / 2 * 2;  // token tiles of a task
    if (chunk < 8) chunk = 8;
    const int64_t chunks = (tiles + chunk - 1) / chunk;
    const int64_t panels = (a.w.groups() + 1) / 2;
    w.parallel_for(panels * chunks, 1, [&](int64_t lo, int64_t hi) {
        for (int64_t i = lo; i < hi; i++) {
            const int64_t c = i / panels;  // all panels of a chunk of tokens, then the next chunk
            const int64_t t0 = c * tiles / chunks, t1 = (c + 1) * tiles / chunks;
            run_panel(p, i % panels, t0, t1, w);
        }
    });
}

#endif

}  // namespace atom
