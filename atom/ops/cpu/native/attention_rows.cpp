// Attention by vector instructions: dot products key by key, four query rows at a time. Serves
// decodes, where it is bound by reading the cache, and prefill on machines without tiles.
#include "attention.h"

namespace atom {
namespace {

constexpr int kRows = 4;                  // query rows of a pass
constexpr int kWide = VL == 16 ? 4 : 2;   // vectors of the head size held in registers
constexpr int64_t kKeys = 128;            // keys of one softmax block

inline vf load_cache(const float* p) { return vload(p); }
inline vf load_cache(const uint16_t* p) { return vload_bf16(p); }

// Sums of VL vectors, one per lane.
inline vf transpose_sum(const vf* v) {
#ifdef ATOM_AVX512
    vf q[4];
    for (int i = 0; i < 4; i++) {
        const vf *a = v + 4 * i;
        const vf ab = vadd(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
        const vf cd = vadd(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
        const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
        q[i] = vadd(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    auto halves = [](vf a, vf b) {
        return vadd(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    return halves(halves(q[0], q[1]), halves(q[2], q[3]));
#else
    const vf ab = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const vf cd = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return vadd(_mm256_permute2f128_ps(ab, cd, 0x20), _mm256_permute2f128_ps(ab, cd, 0x31));
#endif
}

struct Row {
    const float* q;       // [head_dim], scaled
    float* acc;           // [head_dim]
    float top, sum;
    int64_t begin, end;   // keys it sees
    float* p;             // [kKeys] scores, then weights
};

template <class T, int R>
void scores(Row* rows, const T* cache, const int64_t* slots, int64_t stride, int64_t n, int64_t d) {
    const float* q[R];
    for (int r = 0; r < R; r++) q[r] = rows[r].q;
    for (int64_t j0 = 0; j0 < n; j0 += VL) {
        vf part[R][VL];
        for (int j = 0; j < VL; j++) {
            vf acc[R];
            ATOM_UNROLL
            for (int r = 0; r < R; r++) acc[r] = vzero();
            if (j0 + j < n) {
                const T* key = cache + slots[j0 + j] * stride;
                for (int64_t i = 0; i < d; i += VL) {
                    const vf k = load_cache(key + i);
                    ATOM_UNROLL
                    for (int r = 0; r < R; r++) acc[r] = vfma(k, vload(q[r] + i), acc[r]);
                }
            }
            ATOM_UNROLL
            for (int r = 0; r < R; r++) part[r][j] = acc[r];
        }
        for (int r = 0; r < R; r++) vstore(rows[r].p + j0, transpose_sum(part[r]));
    }
}

// Scores of keys key0 .. key0 + n - 1 become weights; the sums so far are rescaled.
void softmax_block(const AttentionArgs& a, Row& row, int64_t key0, int64_t n) {
    if (a.soft_cap > 0)
        for (int64_t j = 0; j < n; j += VL)
            vstore(row.p + j, soft_cap(vload(row.p + j), float(a.soft_cap)));
    const int64_t padded = (n + VL - 1) / VL * VL;
    const int64_t seen = row.end - key0 < n ? row.end - key0 : n;
    for (int64_t j = 0; j < row.begin - key0 && j < n; j++) row.p[j] = -INFINITY;
    for (int64_t j = seen < 0 ? 0 : seen; j < padded; j++) row.p[j] = -INFINITY;
    vf top = vset1(row.top);
    for (int64_t j = 0; j < n; j += VL) top = vmax(top, vload(row.p + j));
    const float most = vmaxall(top);
    if (most == -INFINITY) {
        for (int64_t j = 0; j < n; j += VL) vstore(row.p + j, vzero());
        return;
    }
    const float correction = row.top == -INFINITY ? 0.0f : std::exp(row.top - most);
    vf sum = vzero();
    for (int64_t j = 0; j < n; j += VL) {
        const vf s = vsub(vload(row.p + j), vset1(most));
        vstore(row.p + j, vexp(s));
        sum = vadd(sum, vload(row.p + j));
    }
    row.sum = row.sum * correction + vsum(sum);
    row.top = most;
    if (correction != 1.0f)
        for (int64_t i = 0; i < a.head_dim; i += VL)
            vstore(row.acc + i, vmul(vload(row.acc + i), vset1(correction)));
}

template <class T, int R, int W>  // W vectors of the head size
void weighted_part(Row* rows, const T* cache, const int64_t* slots, int64_t stride, int64_t n) {
    vf acc[R][W];
    const float* p[R];
    ATOM_UNROLL
    for (int r = 0; r < R; r++) {
        p[r] = rows[r].p;
        ATOM_UNROLL
        for (int c = 0; c < W; c++) acc[r][c] = vload(rows[r].acc + c * VL);
    }
    for (int64_t j = 0; j < n; j++) {
        const T* value = cache + slots[j] * stride;
        vf v[W];
        ATOM_UNROLL
        for (int c = 0; c < W; c++) v[c] = load_cache(value + c * VL);
        ATOM_UNROLL
        for (int r = 0; r < R; r++) {
            const vf weight = vset1(p[r][j]);
            ATOM_UNROLL
            for (int c = 0; c < W; c++) acc[r][c] = vfma(weight, v[c], acc[r][c]);
        }
    }
    ATOM_UNROLL
    for (int r = 0; r < R; r++) {
        ATOM_UNROLL
        for (int c = 0; c < W; c++) vstore(rows[r].acc + c * VL, acc[r][c]);
    }
}

template <class T, int R>
void weighted_sum(Row* rows, const T* cache, const int64_t* slots, int64_t stride, int64_t n,
                  int64_t d) {
    Row part[R];
    for (int r = 0; r < R; r++) part[r] = rows[r];
    int64_t i = 0;
    for (; i + kWide * VL <= d; i += kWide * VL) {
        weighted_part<T, R, kWide>(part, cache + i, slots, stride, n);
        for (int r = 0; r < R; r++) part[r].acc += kWide * VL;
    }
    for (; i < d; i += VL) {
        weighted_part<T, R, 1>(part, cache + i, slots, stride, n);
        for (int r = 0; r < R; r++) part[r].acc += VL;
    }
}

// All heads of the keys: the next heads find them in the cache.
template <class T>
void prefetch_rows(const T* cache, const int64_t* slots, int64_t stride, int64_t n) {
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < stride; i += int64_t(64 / sizeof(T)))
            __builtin_prefetch(cache + slots[j] * stride + i);
}

template <class T, int R>
void pass(const AttentionArgs& a, const AttentionTile& t, int64_t h, Row* rows) {
    const int64_t stride = a.kv_heads * a.head_dim, at = h * a.head_dim;
    const T* k_cache = static_cast<const T*>(a.k_cache) + at;
    const T* v_cache = static_cast<const T*>(a.v_cache) + at;
    int64_t begin = t.key1, end = t.key0;
    for (int r = 0; r < R; r++) {
        begin = rows[r].begin < begin ? rows[r].begin : begin;
        end = rows[r].end > end ? rows[r].end : end;
    }
    int64_t slots[kKeys];
    for (int64_t key = begin; key < end; key += kKeys) {
        const int64_t n = end - key < kKeys ? end - key : kKeys;
        key_slots(a, t.seq, key, n, slots);
        if (h == t.kv_head0 && t.kv_heads > 1) {
            prefetch_rows(k_cache - at, slots, stride, n);
            prefetch_rows(v_cache - at, slots, stride, n);
        }
        scores<T, R>(rows, k_cache, slots, stride, n, a.head_dim);
        for (int r = 0; r < R; r++) softmax_block(a, rows[r], key, n);
        weighted_sum<T, R>(rows, v_cache, slots, stride, n, a.head_dim);
    }
}

template <class T>
void pass_rows(const AttentionArgs& a, const AttentionTile& t, int64_t h, Row* rows, int count) {
    if (count == 1) pass<T, 1>(a, t, h, rows);
    if (count == 2) pass<T, 2>(a, t, h, rows);
    if (count == 3) pass<T, 3>(a, t, h, rows);
    if (count == 4) pass<T, 4>(a, t, h, rows);
}

// A row before its first key: query scaled, sums empty. `own` holds query, sums and scores.
Row start_row(const AttentionArgs& a, const AttentionTile& t, int64_t token, int64_t head,
              float* own) {
    const int64_t d = a.head_dim;
    const float* q = a.q + (t.token0 + token) * a.q_stride + head * a.q_head_stride;
    for (int64_t i = 0; i < d; i += VL) {
        vstore(own + i, vmul(vload(q + i), vset1(float(a.scale))));
        vstore(own + d + i, vzero());
    }
    const int64_t position = t.position0 + token, first = first_key(a, position);
    return Row{own,  own + d, -INFINITY, 0.0f, first > t.key0 ? first : t.key0,
               position + 1 < t.key1 ? position + 1 : t.key1, own + 2 * d};
}

}  // namespace

int64_t attention_rows_scratch(const AttentionArgs& a) {
    return kRows * (2 * a.head_dim + kKeys) * 4;
}

void attention_rows(const AttentionArgs& a, const AttentionTile& t, uint8_t* scratch) {
    const int64_t d = a.head_dim, per_kv = a.q_heads / a.kv_heads;
    float* memory = reinterpret_cast<float*>(scratch);
    const int64_t rows_per_head = t.tokens * per_kv;
    for (int64_t h = t.kv_head0; h < t.kv_head0 + t.kv_heads; h++)
        for (int64_t r0 = 0; r0 < rows_per_head; r0 += kRows) {
            const int64_t left = rows_per_head - r0;
            const int count = int(left < kRows ? left : kRows);
            Row rows[kRows];
            for (int r = 0; r < count; r++) {
                float* own = memory + r * (2 * d + kKeys);
                rows[r] = start_row(a, t, (r0 + r) / per_kv, h * per_kv + (r0 + r) % per_kv, own);
            }
            if (a.bf16)
                pass_rows<uint16_t>(a, t, h, rows, count);
            else
                pass_rows<float>(a, t, h, rows, count);
            for (int r = 0; r < count; r++)
                finish_row(a, t, t.token0 + (r0 + r) / per_kv, h * per_kv + (r0 + r) % per_kv,
                           rows[r].acc, rows[r].top, rows[r].sum);
        }
}

}  // namespace atom
