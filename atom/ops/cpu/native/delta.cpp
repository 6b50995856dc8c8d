// Gated DeltaNet: the recurrence itself, for decodes and prompts alike.
//
// Rows of a head's state do not depend on each other: a few of them stay in registers while all
// tokens of a step go by, so that the state is read and written once per step. A prompt then costs
// three products of a row and a key per token: less than torch's chunks of matrix products, which
// do fewer but of small matrices (256 tokens of 32 heads of 128 channels, one core: 17 and 46 ms).
#include <cmath>

#include "ops.h"

namespace atom {
namespace {

inline vf vsilu(vf x) { return vdiv(x, vadd(vset1(1.0f), vexp(vsub(vzero(), x)))); }

// The sequence of token t: the last one that begins at or before it and has tokens.
inline int64_t sequence_of(const int32_t* cu_seqlens, int64_t num_seqs, int64_t t) {
    int64_t low = 0, high = num_seqs;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (cu_seqlens[middle] <= t)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

// Where token t's query or key `head` (queries first), or value `head`, is kept: tokens of one head
// beside each other, since rows as long as the projection's would all fall into one set of a cache.
inline float* query_key(const DeltaArgs& a, int64_t head, int64_t t) {
    return a.y + (head * a.cu_seqlens[a.num_seqs] + t) * a.k_dim;
}
inline float* value(const DeltaArgs& a, int64_t head, int64_t t) {
    return query_key(a, 2 * a.k_heads, 0) + (head * a.cu_seqlens[a.num_seqs] + t) * a.v_dim;
}

// silu of the convolution at token t, all channels.
void convolve(const DeltaArgs& a, int64_t t, int64_t s) {
    const int64_t taps = a.taps, at = t - a.cu_seqlens[s];
    const int64_t length = a.cu_seqlens[s + 1] - a.cu_seqlens[s];
    const int64_t position = a.seq_lens[s] - length + at;
    const float* ring = a.conv_state + int64_t(a.slots[s]) * taps * a.channels;
    const float* source[8];
    int64_t first = 0;  // taps before the beginning of the sequence see nothing
    for (int64_t j = 0; j < taps; j++) {
        const int64_t back = taps - 1 - j;
        if (position < back) first = j + 1;
        source[j] = at >= back ? a.x + (t - back) * a.x_stride
                               : ring + (position - back + taps) % taps * a.channels;
    }
    const auto head = [&](float* to, int64_t column, int64_t size) {
        for (int64_t c = column; c < column + size; c += VL) {
            vf sum = vzero();
            for (int64_t j = first; j < taps; j++)
                sum = vfma(vload(source[j] + c), vload(a.conv_weight + j * a.channels + c), sum);
            vstore(to + c - column, vsilu(sum));
        }
    };
    for (int64_t h = 0; h < 2 * a.k_heads; h++) head(query_key(a, h, t), h * a.k_dim, a.k_dim);
    for (int64_t h = 0; h < a.v_heads; h++)
        head(value(a, h, t), 2 * a.k_heads * a.k_dim + h * a.v_dim, a.v_dim);
}

// A query or key of length 1, times `scale`.
void normalise(float* x, int64_t size, float scale) {
    vf sum = vzero();
    for (int64_t i = 0; i < size; i += VL) sum = vfma(vload(x + i), vload(x + i), sum);
    const vf factor = vset1(scale / std::sqrt(vsum(sum) + float(1e-6)));
    for (int64_t i = 0; i < size; i += VL) vstore(x + i, vmul(vload(x + i), factor));
}

// g and beta of each head at token t: gates [T, 2, heads].
void gate(const DeltaArgs& a, int64_t t, float* gates) {
    const float* b = a.x + t * a.x_stride + a.channels + a.v_heads * a.v_dim;
    for (int64_t h = 0; h < a.v_heads; h++) {
        const float step = b[a.v_heads + h] + a.dt_bias[h];
        const float softplus = step > 20.0f ? step : std::log1p(std::exp(step));
        gates[h] = std::exp(-a.rate[h] * softplus);
        gates[a.v_heads + h] = 1.0f / (1.0f + std::exp(-b[h]));
    }
}

// R rows of the state of one head, over the tokens of one sequence. N vectors to a row.
template <int N, int R>
void recur(const DeltaArgs& a, int64_t s, int64_t head, int64_t row) {
    const int64_t begin = a.cu_seqlens[s], end = a.cu_seqlens[s + 1];
    const int64_t key_head = head / (a.v_heads / a.k_heads);
    const float* q = query_key(a, key_head, begin);
    const float* k = query_key(a, a.k_heads + key_head, begin);
    float* v = value(a, head, begin) + row;  // and then what comes out
    float* held = a.state + ((a.slots[s] * a.v_heads + head) * a.v_dim + row) * a.k_dim;
    const bool known = a.seq_lens[s] > end - begin;
    vf state[R][N];
    ATOM_UNROLL
    for (int r = 0; r < R; r++) {
        ATOM_UNROLL
        for (int i = 0; i < N; i++)
            state[r][i] = known ? vload(held + r * a.k_dim + i * VL) : vzero();
    }
    for (int64_t t = begin; t < end; t++, q += a.k_dim, k += a.k_dim, v += a.v_dim) {
        const float g = a.gates[t * 2 * a.v_heads + head];
        const float beta = a.gates[(t * 2 + 1) * a.v_heads + head];
        const vf decay = vset1(g);
        // Two sums to a row: a token waits for the one before it, and for nothing else if it can.
        vf sum[R][2], change[R];
        ATOM_UNROLL
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = vzero();
        ATOM_UNROLL
        for (int i = 0; i < N; i++) {
            const vf key = vload(k + i * VL);
            ATOM_UNROLL
            for (int r = 0; r < R; r++) sum[r][i % 2] = vfma(state[r][i], key, sum[r][i % 2]);
        }
        ATOM_UNROLL
        for (int r = 0; r < R; r++) {
            change[r] = vset1(beta * (v[r] - g * vsum(vadd(sum[r][0], sum[r][1]))));
            sum[r][0] = sum[r][1] = vzero();
        }
        ATOM_UNROLL
        for (int i = 0; i < N; i++) {
            const vf key = vload(k + i * VL), query = vload(q + i * VL);
            ATOM_UNROLL
            for (int r = 0; r < R; r++) {
                state[r][i] = vfma(change[r], key, vmul(state[r][i], decay));
                sum[r][i % 2] = vfma(state[r][i], query, sum[r][i % 2]);
            }
        }
        ATOM_UNROLL
        for (int r = 0; r < R; r++)
            v[r] = vsum(vadd(sum[r][0], sum[r][1]));
    }
    ATOM_UNROLL
    for (int r = 0; r < R; r++) {
        ATOM_UNROLL
        for (int i = 0; i < N; i++) vstore(held + r * a.k_dim + i * VL, state[r][i]);
    }
}

constexpr int64_t kRows = 8;  // of a state, that a thread takes at a time

void recur_rows(const DeltaArgs& a, int64_t s, int64_t head, int64_t row) {
    const int64_t end = row + kRows;
    switch (a.k_dim / VL) {
        case 1: for (; row < end; row += 4) recur<1, 4>(a, s, head, row); break;
        case 2: for (; row < end; row += 4) recur<2, 4>(a, s, head, row); break;
        case 4: for (; row < end; row += 4) recur<4, 4>(a, s, head, row); break;
        case 8: for (; row < end; row += 2) recur<8, 2>(a, s, head, row); break;
        default: for (; row < end; row += 1) recur<16, 1>(a, s, head, row); break;
    }
}

// Norm and gate of token t's outputs, and its input into the ring if it is one of the last.
void finish(const DeltaArgs& a, int64_t t, int64_t s) {
    const float* x = a.x + t * a.x_stride;
    for (int64_t h = 0; h < a.v_heads; h++) {
        const float* o = value(a, h, t);
        float* out = a.out + (t * a.v_heads + h) * a.v_dim;
        const float* z = x + a.channels + h * a.v_dim;
        vf sum = vzero();
        for (int64_t i = 0; i < a.v_dim; i += VL) sum = vfma(vload(o + i), vload(o + i), sum);
        const vf scale = vset1(1.0f / std::sqrt(vsum(sum) / float(a.v_dim) + float(a.eps)));
        for (int64_t i = 0; i < a.v_dim; i += VL) {
            const vf normed = vmul(vmul(vload(o + i), scale), vload(a.norm_weight + i));
            vstore(out + i, vmul(normed, vsilu(vload(z + i))));
        }
    }
    const int64_t left = a.cu_seqlens[s + 1] - t;  // this token and those after it
    if (left > a.taps) return;
    const int64_t position = a.seq_lens[s] - left;
    float* ring = a.conv_state + (a.slots[s] * a.taps + position % a.taps) * a.channels;
    std::memcpy(ring, x, size_t(a.channels) * 4);
}

}  // namespace

void op_gated_delta_net(const void* args, const Dyn&, Worker& w) {
    const DeltaArgs& a = *static_cast<const DeltaArgs*>(args);
    const int64_t tokens = a.cu_seqlens[a.num_seqs];
    w.parallel_for(tokens, 1, [&](int64_t lo, int64_t hi) {
        for (int64_t t = lo; t < hi; t++) {
            const int64_t s = sequence_of(a.cu_seqlens, a.num_seqs, t);
            if (a.slots[s] < 0) continue;
            convolve(a, t, s);
            const float scale = 1.0f / std::sqrt(float(a.k_dim));
            for (int64_t h = 0; h < 2 * a.k_heads; h++)
                normalise(query_key(a, h, t), a.k_dim, h < a.k_heads ? scale : 1.0f);
            gate(a, t, a.gates + t * 2 * a.v_heads);
        }
    });
    w.barrier();
    const int64_t parts = a.v_dim / kRows;
    w.parallel_for(a.num_seqs * a.v_heads * parts, 4, [&](int64_t lo, int64_t hi) {
        for (int64_t i = lo; i < hi; i++) {
            const int64_t s = i / (a.v_heads * parts);
            if (a.slots[s] >= 0 && a.cu_seqlens[s] < a.cu_seqlens[s + 1])
                recur_rows(a, s, i / parts % a.v_heads, i % parts * kRows);
        }
    });
    w.barrier();
    w.parallel_for(tokens, 1, [&](int64_t lo, int64_t hi) {
        for (int64_t t = lo; t < hi; t++) {
            const int64_t s = sequence_of(a.cu_seqlens, a.num_seqs, t);
            if (a.slots[s] >= 0) finish(a, t, s);
        }
    });
}

}  // namespace atom
