// Attention on AMX tiles, for a bf16 cache. Keys are read as tiles straight from the cache:
//   scores^T [16 keys x 16 rows] = K [keys x d] Q^T [d x rows]
//   out      [rows x 16 d]      += P [rows x 32 keys] V [keys x d]
// A row is one query head of one token. Q^T is packed once per piece of work, V per block of keys.
#include "attention.h"

#include "amx.h"

namespace atom {

#ifndef ATOM_AMX

bool attention_amx_serves(const AttentionArgs&) { return false; }
int64_t attention_amx_scratch(const AttentionArgs&, int64_t, int64_t) { return 0; }
void attention_amx(const AttentionArgs&, const AttentionTile&, uint8_t*) {}

#else

namespace {

constexpr int64_t kKeys = 128;  // keys of one softmax block
constexpr int kTile = 16 * 32;  // bf16 values of a tile

// Memory of a piece. Rows of a KV head fill whole tiles: `padded` of them.
struct Scratch {
    uint16_t* q;      // [kv heads][row tiles][d / 32] tiles: pairs of d x 16 rows
    uint16_t* p;      // [kv heads][row tiles][kKeys / 32] tiles: 16 rows x 32 keys
    uint16_t* v;      // [kv heads][kKeys / 32][d / 16] tiles: pairs of keys x 16 d
    uint16_t* k;      // [kKeys][kv heads][d]: keys that are not neighbours in the cache
    float* scores;    // [kv heads][padded][kKeys]
    float* acc;       // [kv heads][padded][d]
    float* top;       // [kv heads][padded] largest score so far
    float* sum;       // the same
    int32_t* begin;   // [padded] keys each row sees
    int32_t* end;

    static int64_t bytes(int64_t padded, int64_t heads, int64_t d) {
        const int64_t r = padded * heads;
        return r * d * 2 + r * kKeys * 2 + 2 * kKeys * heads * d * 2 + r * kKeys * 4 + r * d * 4 +
               r * 8 + padded * 8;
    }
    Scratch(uint8_t* memory, int64_t padded, int64_t heads, int64_t d) {
        const int64_t r = padded * heads;
        q = reinterpret_cast<uint16_t*>(memory);
        p = q + r * d;
        v = p + r * kKeys;
        k = v + kKeys * heads * d;
        scores = reinterpret_cast<float*>(k + kKeys * heads * d);
        acc = scores + r * kKeys;
        top = acc + r * d;
        sum = top + r;
        begin = reinterpret_cast<int32_t*>(sum + r);
        end = begin + padded;
    }
};

// 2^x for x <= 0, error below 2e-4 of it: the result is rounded to bf16 anyway.
inline vf fast_exp2(vf x) {
    x = vmax(x, vset1(-126.0f));
    const vf n = vround(x);
    const vf f = vsub(x, n);
    vf p = vfma(vset1(0.0558f), f, vset1(0.2402f));
    p = vfma(p, f, vset1(0.69315f));
    p = vfma(p, f, vset1(1.0f));
    return vpow2(p, n);
}

struct Work {
    const AttentionArgs& a;
    const AttentionTile& t;
    Scratch s;
    int64_t per_kv, rows, row_tiles, d;  // rows: of one KV head

    int64_t padded() const { return row_tiles * 16; }
};

// Rows as columns of B tiles, scaled so that scores come out in powers of two.
void pack_queries(const Work& w) {
    const bool capped = w.a.soft_cap > 0;
    const vf scale = vset1(float(w.a.scale * (capped ? 1.0 : 1.4426950408889634)));
    if (w.rows < w.padded()) std::memset(w.s.q, 0, size_t(w.t.kv_heads * w.padded() * w.d * 2));
    for (int64_t i = 0; i < w.t.kv_heads * w.rows; i++) {
        const int64_t h = i / w.rows, r = i % w.rows;
        const int64_t head = (w.t.kv_head0 + h) * w.per_kv + r % w.per_kv;
        const int64_t token = w.t.token0 + r / w.per_kv;
        const float* q = w.a.q + token * w.a.q_stride + head * w.a.q_head_stride;
        uint16_t* tiles = w.s.q + (h * w.row_tiles + r / 16) * 16 * w.d + (r % 16) * 2;
        for (int64_t c = 0; c < w.d; c += 16) {
            uint32_t pairs[8];
            vstore_bf16(reinterpret_cast<uint16_t*>(pairs), vmul(vload(q + c), scale));
            uint16_t* to = tiles + (c / 32) * kTile + (c % 32) / 2 * 32;
            for (int j = 0; j < 8; j++) std::memcpy(to + j * 32, pairs + j, 4);
        }
    }
}

// Scores of 16 keys x 16 rows, turned into rows; four rows at a time.
inline void turn_scores(const float* st, int64_t rows, float* to) {
    for (int64_t r0 = 0; r0 < rows; r0 += 4) {
        __m512 x[4];  // x[i]: keys 4i .. 4i+3, four rows of each
        ATOM_UNROLL
        for (int i = 0; i < 4; i++) {
            const float* at = st + i * 64 + r0;
            x[i] = _mm512_castps128_ps512(_mm_loadu_ps(at));
            x[i] = _mm512_mask_broadcast_f32x4(x[i], 0x00f0, _mm_loadu_ps(at + 16));
            x[i] = _mm512_mask_broadcast_f32x4(x[i], 0x0f00, _mm_loadu_ps(at + 32));
            x[i] = _mm512_mask_broadcast_f32x4(x[i], 0xf000, _mm_loadu_ps(at + 48));
        }
        // Within each x, lane (key, row) -> (row, key); then gather each row's four quarters.
        const __m512i order =
            _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        ATOM_UNROLL
        for (int i = 0; i < 4; i++) x[i] = _mm512_permutexvar_ps(order, x[i]);
        const __m512 a = _mm512_shuffle_f32x4(x[0], x[1], 0x44);
        const __m512 b = _mm512_shuffle_f32x4(x[2], x[3], 0x44);
        const __m512 c = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
        const __m512 e = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
        vstore(to + (r0 + 0) * kKeys, _mm512_shuffle_f32x4(a, b, 0x88));
        vstore(to + (r0 + 1) * kKeys, _mm512_shuffle_f32x4(a, b, 0xdd));
        vstore(to + (r0 + 2) * kKeys, _mm512_shuffle_f32x4(c, e, 0x88));
        vstore(to + (r0 + 3) * kKeys, _mm512_shuffle_f32x4(c, e, 0xdd));
    }
}

// Whether 16 keys are neighbours in the cache, as those of small blocks mostly are, too.
inline bool neighbours(const int64_t* slots) {
    bool all = true;
    for (int64_t j = 1; j < 16; j++) all &= slots[j] == slots[0] + j;
    return all;
}

// 16 keys (the piece's heads of each) as rows of bf16: in place if neighbours in the cache.
const uint16_t* key_rows(const Work& w, const int64_t* slots, int64_t group, int64_t n,
                         int64_t* stride) {
    const int64_t row = w.a.kv_heads * w.d, width = w.t.kv_heads * w.d;
    const uint16_t* cache = static_cast<const uint16_t*>(w.a.k_cache) + w.t.kv_head0 * w.d;
    const int64_t j0 = group * 16;
    // A block of 16 holds memory for all of them, whatever n is: j0 is a multiple of 16.
    if (w.a.block_size % 16 == 0 || (j0 + 16 <= n && neighbours(slots + j0))) {
        *stride = row * 2;
        return cache + slots[j0] * row;
    }
    uint16_t* to = w.s.k + j0 * width;
    for (int64_t j = 0; j < 16 && j0 + j < n; j++)
        std::memcpy(to + j * width, cache + slots[j0 + j] * row, size_t(width) * 2);
    *stride = width * 2;
    return to;
}

// The values of 16 keys, on their way while the scores are computed.
inline void prefetch_values(const Work& w, const int64_t* slots, int64_t n) {
    const uint16_t* cache = static_cast<const uint16_t*>(w.a.v_cache) + w.t.kv_head0 * w.d;
    for (int64_t j = 0; j < 16 && j < n; j++)
        for (int64_t i = 0; i < w.t.kv_heads * w.d; i += 32)
            __builtin_prefetch(cache + slots[j] * w.a.kv_heads * w.d + i);
}

// Four groups of keys at once, each in a tile of its own: products into one tile wait for each
// other, because the processor does not rename tiles.
void score_groups(const uint16_t* const (&k)[4], const int64_t (&stride)[4], const uint16_t* q,
                  int64_t d, float (*st)[256]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < d / 32; i++) {
        _tile_loadd(6, q + i * kTile, 64);
        _tile_loadd(4, k[0] + i * 32, stride[0]);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, k[1] + i * 32, stride[1]);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, k[2] + i * 32, stride[2]);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, k[3] + i * 32, stride[3]);
        _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, st[0], 64);
    _tile_stored(1, st[1], 64);
    _tile_stored(2, st[2], 64);
    _tile_stored(3, st[3], 64);
}

// Scores of `groups` x 16 keys and one tile of rows. In two passes, because a vector load that
// follows a tile's store at once has to wait for it.
void score_tile(const Work& w, const uint16_t* const* k, const int64_t* strides, int64_t groups,
                int64_t h, int64_t rt) {
    alignas(64) float st[kKeys / 16][256];
    const int64_t tile = h * w.row_tiles + rt;
    const uint16_t* q = w.s.q + tile * 16 * w.d;
    amx_fence();
    for (int64_t g = 0; g < groups; g += 4) {
        const uint16_t* four[4];
        int64_t stride[4];
        for (int64_t c = 0; c < 4; c++) {
            const int64_t at = g + c < groups ? g + c : groups - 1;
            four[c] = k[at] + h * w.d;
            stride[c] = strides[at];
        }
        score_groups(four, stride, q, w.d, st + g);
    }
    amx_fence();
    const int64_t rows = w.rows - rt * 16 < 16 ? w.rows - rt * 16 : 16;
    for (int64_t g = 0; g < groups; g++)
        turn_scores(st[g], rows, w.s.scores + tile * 16 * kKeys + g * 16);
}

void compute_scores(const Work& w, const int64_t* slots, int64_t n) {
    const int64_t groups = (n + 15) / 16;
    const uint16_t* k[kKeys / 16];
    int64_t strides[kKeys / 16];
    for (int64_t g = 0; g < groups; g++) {
        k[g] = key_rows(w, slots, g, n, strides + g);
        // In the order of memory: the tile loads below take one head after the other.
        if (w.t.kv_heads > 1)
            for (int64_t j = 0; j < 16 && g * 16 + j < n; j++)
                for (int64_t i = 0; i < w.t.kv_heads * w.d; i += 32)
                    __builtin_prefetch(k[g] + j * strides[g] / 2 + i);
    }
    for (int64_t g = 0; g < groups; g++) prefetch_values(w, slots + g * 16, n - g * 16);
    for (int64_t h = 0; h < w.t.kv_heads; h++)
        for (int64_t rt = 0; rt < w.row_tiles; rt++) score_tile(w, k, strides, groups, h, rt);
}

// Scores of a row become bf16 weights of its tiles; what is masked becomes zero.
void softmax_row(const Work& w, int64_t h, int64_t own, int64_t key0, int64_t n) {
    const int64_t r = h * w.padded() + own;
    float* s = w.s.scores + r * kKeys;
    const int64_t padded = (n + 31) / 32 * 32;
    if (w.a.soft_cap > 0) {
        const vf log2e = vset1(1.44269504f);
        for (int64_t j = 0; j < n; j += VL)
            vstore(s + j, vmul(soft_cap(vload(s + j), float(w.a.soft_cap)), log2e));
    }
    const int64_t from = w.s.begin[own] - key0, last = w.s.end[own] - key0;
    const int64_t to = last < n ? last : n;
    for (int64_t j = 0; j < from && j < n; j++) s[j] = -INFINITY;
    for (int64_t j = to < 0 ? 0 : to; j < padded; j++) s[j] = -INFINITY;
    vf most = vset1(w.s.top[r]);
    for (int64_t j = 0; j < padded; j += VL) most = vmax(most, vload(s + j));
    const float top = vmaxall(most);
    uint16_t* p = w.s.p + (r / 16) * 16 * kKeys + (r % 16) * 32;
    if (top == -INFINITY) {
        for (int64_t j = 0; j < padded; j += 32) std::memset(p + j / 32 * kTile, 0, 64);
        return;
    }
    const vf shift = vset1(top);
    vf sum = vzero();
    for (int64_t j = 0; j < padded; j += VL) {
        const vf score = vload(s + j);
        const __mmask16 seen = _mm512_cmp_ps_mask(score, vset1(-INFINITY), _CMP_GT_OQ);
        const vf e = _mm512_maskz_mov_ps(seen, fast_exp2(vsub(score, shift)));
        sum = vadd(sum, e);
        vstore_bf16(p + j / 32 * kTile + j % 32, e);
    }
    const float correction = w.s.top[r] == -INFINITY ? 0.0f : std::exp2(w.s.top[r] - top);
    w.s.sum[r] = w.s.sum[r] * correction + vsum(sum);
    w.s.top[r] = top;
    if (correction != 1.0f) {
        float* acc = w.s.acc + r * w.d;
        for (int64_t i = 0; i < w.d; i += VL)
            vstore(acc + i, vmul(vload(acc + i), vset1(correction)));
    }
}

// Values of keys 0 .. n-1 as B tiles; missing keys are zero (a weight of zero times NaN is NaN).
void pack_values(const Work& w, int64_t h, const int64_t* slots, int64_t n) {
    const int64_t row = w.a.kv_heads * w.d;
    const uint16_t* cache = static_cast<const uint16_t*>(w.a.v_cache) + (w.t.kv_head0 + h) * w.d;
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                         39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t j = 0; j < (n + 31) / 32 * 32; j += 2) {
        uint16_t* to = w.s.v + h * kKeys * w.d + (j / 32) * w.d / 16 * kTile + (j % 32) / 2 * 32;
        const uint16_t* first = j < n ? cache + slots[j] * row : nullptr;
        const uint16_t* second = j + 1 < n ? cache + slots[j + 1] * row : nullptr;
        for (int64_t i = 0; i < w.d; i += 32) {
            const __m512i x = first ? iload(first + i) : _mm512_setzero_si512();
            const __m512i y = second ? iload(second + i) : _mm512_setzero_si512();
            _mm512_storeu_si512(to + (i / 16) * kTile, _mm512_permutex2var_epi16(x, low, y));
            _mm512_storeu_si512(to + (i / 16 + 1) * kTile, _mm512_permutex2var_epi16(x, high, y));
        }
    }
}

// acc += weights times values: four tiles of 16 d at once.
void add_values(const Work& w, int64_t h, int64_t rt, int64_t n) {
    const int64_t wide = w.d / 16, stride = w.d * 4;
    const uint16_t* p = w.s.p + (h * w.row_tiles + rt) * 16 * kKeys;
    const uint16_t* v = w.s.v + h * kKeys * w.d;
    float* acc = w.s.acc + (h * w.row_tiles + rt) * 16 * w.d;
    amx_fence();
    for (int64_t i0 = 0; i0 < wide; i0 += 4) {
        int64_t at[4];  // past the end: the last one again
        for (int64_t c = 0; c < 4; c++) at[c] = i0 + c < wide ? i0 + c : wide - 1;
        _tile_loadd(0, acc + at[0] * 16, stride);
        _tile_loadd(1, acc + at[1] * 16, stride);
        _tile_loadd(2, acc + at[2] * 16, stride);
        _tile_loadd(3, acc + at[3] * 16, stride);
        for (int64_t b = 0; b * 32 < n; b++) {
            const uint16_t* vb = v + b * wide * kTile;
            _tile_loadd(4, p + b * kTile, 64);
            _tile_loadd(6, vb + at[0] * kTile, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, vb + at[1] * kTile, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, vb + at[2] * kTile, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, vb + at[3] * kTile, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
        _tile_stored(0, acc + at[0] * 16, stride);
        _tile_stored(1, acc + at[1] * 16, stride);
        _tile_stored(2, acc + at[2] * 16, stride);
        _tile_stored(3, acc + at[3] * 16, stride);
    }
    amx_fence();
}

}  // namespace

bool attention_amx_serves(const AttentionArgs& a) {
    return a.bf16 && a.head_dim % 32 == 0 && amx_request();
}

int64_t attention_amx_scratch(const AttentionArgs& a, int64_t rows, int64_t kv_heads) {
    return Scratch::bytes((rows + 15) / 16 * 16, kv_heads, a.head_dim);
}

void attention_amx(const AttentionArgs& a, const AttentionTile& t, uint8_t* scratch) {
    const int64_t per_kv = a.q_heads / a.kv_heads, rows = t.tokens * per_kv;
    const int64_t row_tiles = (rows + 15) / 16;
    const Work w{a,      t,    Scratch(scratch, row_tiles * 16, t.kv_heads, a.head_dim),
                 per_kv, rows, row_tiles, a.head_dim};
    const int narrow = row_tiles == 1 ? int(rows) : 16;
    pack_queries(w);
    const int64_t all = t.kv_heads * w.padded();
    std::memset(w.s.acc, 0, size_t(all * w.d * 4));
    if (row_tiles > 1) std::memset(w.s.p, 0, size_t(all * kKeys * 2));  // rows that do not exist
    int64_t begin = t.key1, end = t.key0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t position = t.position0 + r / per_kv, first = first_key(a, position);
        w.s.begin[r] = int32_t(first > t.key0 ? first : t.key0);
        w.s.end[r] = int32_t(position + 1 < t.key1 ? position + 1 : t.key1);
        begin = w.s.begin[r] < begin ? w.s.begin[r] : begin;
        end = w.s.end[r] > end ? w.s.end[r] : end;
    }
    for (int64_t r = 0; r < all; r++) {
        w.s.top[r] = -INFINITY;
        w.s.sum[r] = 0;
    }
    int64_t slots[kKeys];
    // From a multiple of 16, so that groups of keys never straddle the cache's blocks.
    for (int64_t key = begin / 16 * 16; key < end; key += kKeys) {
        const int64_t n = end - key < kKeys ? end - key : kKeys;
        key_slots(a, t.seq, key, n, slots);
        amx_configure(16);
        compute_scores(w, slots, n);
        for (int64_t h = 0; h < t.kv_heads; h++) {
            for (int64_t r = 0; r < rows; r++) softmax_row(w, h, r, key, n);
            pack_values(w, h, slots, n);
        }
        amx_configure(narrow);
        for (int64_t h = 0; h < t.kv_heads; h++)
            for (int64_t rt = 0; rt < row_tiles; rt++) add_values(w, h, rt, n);
    }
    constexpr float kLn2 = 0.69314718f;  // partial results and sinks are in natural units
    for (int64_t i = 0; i < t.kv_heads * rows; i++) {
        const int64_t h = i / rows, r = i % rows, at = h * w.padded() + r;
        finish_row(a, t, t.token0 + r / per_kv, (t.kv_head0 + h) * per_kv + r % per_kv,
                   w.s.acc + at * w.d, w.s.top[at] * kLn2, w.s.sum[at]);
    }
}

#endif

}  // namespace atom
