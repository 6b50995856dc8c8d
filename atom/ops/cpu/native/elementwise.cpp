// Norms, rotary embedding, cache writes, SiLU, embedding rows, argmax.
#include "ops.h"

#include <cmath>

namespace atom {
namespace {

inline void rms_row(const float* x, const float* weight, float eps, int64_t k, float* out) {
    vf sum = vzero();
    int64_t i = 0;
    for (; i + VL <= k; i += VL) {
        const vf v = vload(x + i);
        sum = vfma(v, v, sum);
    }
    if (i < k) {
        const vf v = vload_n(x + i, int(k - i));
        sum = vfma(v, v, sum);
    }
    const vf scale = vset1(1.0f / std::sqrt(vsum(sum) / float(k) + eps));
    for (i = 0; i + VL <= k; i += VL)
        vstore(out + i, vmul(vmul(vload(x + i), scale), vload(weight + i)));
    if (i < k) {
        const int n = int(k - i);
        vstore_n(out + i, vmul(vmul(vload_n(x + i, n), scale), vload_n(weight + i, n)), n);
    }
}

// Rows of small operations are worth sharing only from about this many floats on.
inline int64_t grain_of(int64_t floats_per_row) {
    const int64_t g = 2048 / (floats_per_row + 1);
    return g < 1 ? 1 : g;
}

template <class T>
void store_cache(const float* from, T* to, int64_t n);

template <>
void store_cache<float>(const float* from, float* to, int64_t n) {
    std::memcpy(to, from, size_t(n) * 4);
}

template <>
void store_cache<uint16_t>(const float* from, uint16_t* to, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vstore_bf16(to + i, vload(from + i));
    for (; i < n; i++) to[i] = bf16_from_f32(from[i]);
}

// One row of a dense [N, K] matrix that no linear has packed.
void plain_row(const Weights& w, int64_t row, float* out) {
    if (w.format == kPlainRows + kF32) {
        std::memcpy(out, reinterpret_cast<const float*>(w.data) + row * w.k, size_t(w.k) * 4);
        return;
    }
    const uint16_t* x = reinterpret_cast<const uint16_t*>(w.data) + row * w.k;
    for (int64_t k = 0; k < w.k; k++)
        out[k] = w.format == kPlainRows + kBF16 ? f32_from_bf16(x[k]) : f32_from_f16(x[k]);
}

// Channels i and i + half (neox), or 2i and 2i + 1, turned by angle i.
void rotate_head(float* x, const float* cos, const float* sin, int64_t half, bool interleaved) {
    if (interleaved) {
        for (int64_t i = 0; i < half; i++) {
            const float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
        return;
    }
    for (int64_t i = 0; i < half; i += VL) {
        const int n = int(half - i < VL ? half - i : VL);
        const vf a = vload_n(x + i, n), b = vload_n(x + half + i, n);
        const vf c = vload_n(cos + i, n), s = vload_n(sin + i, n);
        vstore_n(x + i, vfnma(b, s, vmul(a, c)), n);
        vstore_n(x + half + i, vfma(a, s, vmul(b, c)), n);
    }
}

}  // namespace

void op_rms_norm(const void* args, const Dyn& dyn, Worker& w) {
    const RmsNormArgs& a = *static_cast<const RmsNormArgs*>(args);
    const int64_t rows = a.rows.get(dyn) * a.heads;
    w.parallel_for(rows, grain_of(a.k), [&](int64_t lo, int64_t hi) {
        for (int64_t r = lo; r < hi; r++) {
            const float* x = a.x + (r / a.heads) * a.x_stride + (r % a.heads) * a.head_stride;
            rms_row(x, a.weight, float(a.eps), a.k, a.out + r * a.k);
        }
    });
}

void op_add_rms_norm(const void* args, const Dyn& dyn, Worker& w) {
    const AddRmsNormArgs& a = *static_cast<const AddRmsNormArgs*>(args);
    w.parallel_for(a.rows.get(dyn), grain_of(a.k), [&](int64_t lo, int64_t hi) {
        for (int64_t r = lo; r < hi; r++) {
            const float* x = a.x + r * a.x_stride;
            float* res = a.residual + r * a.residual_stride;
            int64_t i = 0;
            for (; i + VL <= a.k; i += VL) vstore(res + i, vadd(vload(res + i), vload(x + i)));
            for (; i < a.k; i++) res[i] += x[i];
            rms_row(res, a.weight, float(a.eps), a.k, a.out + r * a.k);
        }
    });
}

void op_rotary(const void* args, const Dyn& dyn, Worker& w) {
    const RotaryArgs& a = *static_cast<const RotaryArgs*>(args);
    const int64_t* positions = dyn.in(a.positions);
    const int64_t half = a.rotary_dim / 2;
    const int64_t floats = (a.q_heads + a.k_heads) * a.rotary_dim;
    w.parallel_for(a.rows.get(dyn), grain_of(floats), [&](int64_t lo, int64_t hi) {
        for (int64_t t = lo; t < hi; t++) {
            const float* cos = a.cos_sin + positions[t] * a.rotary_dim;
            for (int64_t h = 0; h < a.q_heads; h++)
                rotate_head(a.q + t * a.q_stride + h * a.q_head_stride, cos, cos + half, half,
                            a.interleaved);
            for (int64_t h = 0; h < a.k_heads; h++)
                rotate_head(a.k + t * a.k_stride + h * a.k_head_stride, cos, cos + half, half,
                            a.interleaved);
        }
    });
}

void op_reshape_and_cache(const void* args, const Dyn& dyn, Worker& w) {
    const CacheArgs& a = *static_cast<const CacheArgs*>(args);
    const int64_t* slots = dyn.in(a.slots);
    const int64_t row = a.heads * a.head_dim;
    w.parallel_for(a.rows.get(dyn), grain_of(2 * row), [&](int64_t lo, int64_t hi) {
        for (int64_t t = lo; t < hi; t++) {
            const int64_t slot = slots[t];
            if (slot < 0) continue;
            for (int64_t h = 0; h < a.heads; h++) {
                const float* k = a.k + t * a.k_stride + h * a.k_head_stride;
                const float* v = a.v + t * a.v_stride + h * a.v_head_stride;
                const int64_t at = slot * row + h * a.head_dim;
                if (a.bf16) {
                    store_cache(k, static_cast<uint16_t*>(a.k_cache) + at, a.head_dim);
                    store_cache(v, static_cast<uint16_t*>(a.v_cache) + at, a.head_dim);
                } else {
                    store_cache(k, static_cast<float*>(a.k_cache) + at, a.head_dim);
                    store_cache(v, static_cast<float*>(a.v_cache) + at, a.head_dim);
                }
            }
        }
    });
}

void op_silu_and_mul(const void* args, const Dyn& dyn, Worker& w) {
    const SiluArgs& a = *static_cast<const SiluArgs*>(args);
    // Pieces of 512 channels: one row of a large model is worth sharing too.
    constexpr int64_t kPiece = 512;
    const int64_t per_row = (a.width + kPiece - 1) / kPiece;
    const vf one = vset1(1.0f);
    w.parallel_for(a.rows.get(dyn) * per_row, 2, [&](int64_t lo, int64_t hi) {
        for (int64_t p = lo; p < hi; p++) {
            const int64_t r = p / per_row, c0 = p % per_row * kPiece;
            const int64_t c1 = c0 + kPiece < a.width ? c0 + kPiece : a.width;
            const float* gate = a.x + r * a.x_stride;
            for (int64_t c = c0; c < c1; c += VL) {
                const int n = int(c1 - c < VL ? c1 - c : VL);
                const vf g = vload_n(gate + c, n), u = vload_n(gate + a.width + c, n);
                const vf sigmoid = vdiv(one, vadd(one, vexp(vsub(vzero(), g))));
                vstore_n(a.out + r * a.width + c, vmul(vmul(g, sigmoid), u), n);
            }
        }
    });
}

void op_embedding(const void* args, const Dyn& dyn, Worker& w) {
    const EmbeddingArgs& a = *static_cast<const EmbeddingArgs*>(args);
    const int64_t* ids = dyn.in(a.ids);
    w.parallel_for(a.rows.get(dyn), 1, [&](int64_t lo, int64_t hi) {
        for (int64_t t = lo; t < hi; t++) {
            float* out = a.out + t * a.w.k;
            if (a.w.format < kPlainRows)
                unpack_row(a.w, ids[t], out);
            else
                plain_row(a.w, ids[t], out);
        }
    });
}

void op_gather_rows(const void* args, const Dyn& dyn, Worker& w) {
    const GatherArgs& a = *static_cast<const GatherArgs*>(args);
    const int64_t* ids = dyn.in(a.ids);
    w.parallel_for(a.rows.get(dyn), grain_of(a.k), [&](int64_t lo, int64_t hi) {
        for (int64_t r = lo; r < hi; r++)
            std::memcpy(a.out + r * a.k, a.x + ids[r] * a.x_stride, size_t(a.k) * 4);
    });
}

// The first of the largest, like torch.argmax; a row of NaN gives 0.
void op_argmax(const void* args, const Dyn& dyn, Worker& w) {
    const ArgmaxArgs& a = *static_cast<const ArgmaxArgs*>(args);
    w.parallel_for(a.rows.get(dyn), 1, [&](int64_t lo, int64_t hi) {
        for (int64_t r = lo; r < hi; r++) {
            const float* x = a.x + r * a.x_stride;
            constexpr int64_t kPiece = 1024;
            float best = -INFINITY;
            int64_t piece = 0;
            for (int64_t c = 0; c < a.k; c += kPiece) {  // the piece that holds the maximum
                const int64_t end = c + kPiece < a.k ? c + kPiece : a.k;
                vf top = vset1(-INFINITY);
                int64_t i = c;
                for (; i + VL <= end; i += VL) top = vmax(top, vload(x + i));
                float most = vmaxall(top);
                for (; i < end; i++) most = x[i] > most ? x[i] : most;
                if (most > best) {
                    best = most;
                    piece = c;
                }
            }
            int64_t i = piece;
            while (i < a.k && x[i] != best) i++;
            a.out[r] = i < a.k ? i : 0;
        }
    });
}

}  // namespace atom
