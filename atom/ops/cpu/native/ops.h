// The operations and their argument records: 8-byte fields only, as Python's struct packs them.
#pragma once

#include "linear.h"
#include "pool.h"
#include "weights.h"

namespace atom {

struct RmsNormArgs {
    Rows rows;
    const float* x;
    int64_t x_stride, heads, head_stride, k;
    const float* weight;
    double eps;
    float* out;  // contiguous
};

struct AddRmsNormArgs {
    Rows rows;
    const float* x;
    int64_t x_stride, k;
    float* residual;
    int64_t residual_stride;
    const float* weight;
    double eps;
    float* out;
};

struct RotaryArgs {
    Rows rows;
    float* q;
    int64_t q_stride, q_heads, q_head_stride;
    float* k;
    int64_t k_stride, k_heads, k_head_stride;
    const int64_t* positions;
    const float* cos_sin;
    int64_t rotary_dim, interleaved;
};

struct CacheArgs {
    Rows rows;
    const float* k;
    int64_t k_stride, k_head_stride;
    const float* v;
    int64_t v_stride, v_head_stride;
    int64_t heads, head_dim;
    void *k_cache, *v_cache;
    int64_t bf16;
    const int64_t* slots;
};

struct AttentionArgs {
    Rows tokens, seqs;
    const float* q;
    int64_t q_stride, q_head_stride, q_heads, kv_heads, head_dim;
    const void *k_cache, *v_cache;
    int64_t bf16, block_size;
    const int32_t* block_table;
    int64_t block_table_stride;  // -1: known when the program runs
    const int32_t* cu_seqlens_q;
    const int32_t* seq_lens;
    double scale;
    int64_t window;
    const float* sinks;  // or null
    double soft_cap;
    float* out;  // [T, q_heads, head_dim], contiguous
};

struct SiluArgs {
    Rows rows;
    const float* x;
    int64_t x_stride, width;
    float* out;
};

constexpr int64_t kPlainRows = 16;  // + Format: rows of a dense matrix as they are

struct EmbeddingArgs {
    Rows rows;
    const int64_t* ids;
    Weights w;
    float* out;
};

struct GatherArgs {
    Rows rows;
    const int64_t* ids;
    const float* x;
    int64_t x_stride, k;
    float* out;
};

struct ArgmaxArgs {
    Rows rows;
    const float* x;
    int64_t x_stride, k;
    int64_t* out;
};

struct DeltaArgs {
    const float* x;  // rows: q, k, v (channels together), z, b, a
    int64_t x_stride, num_seqs;
    float *conv_state, *state;  // [slots, taps, channels], [slots, v_heads, v_dim, k_dim]
    const int32_t *slots, *cu_seqlens, *seq_lens;
    int64_t k_heads, v_heads, k_dim, v_dim, taps, channels;
    const float *conv_weight, *rate, *dt_bias, *norm_weight;  // conv_weight [taps, channels]
    double eps;
    float *y, *gates;  // room for T * channels and [T, 2, v_heads]
    float* out;        // [T, v_heads * v_dim], contiguous
};

struct PackArgs {
    const uint8_t* src;
    Weights w;
    uint8_t* dst;
};

struct UnpackArgs {
    Weights w;
    float* out;  // [N, K]
};

void op_linear(const void*, const Dyn&, Worker&);
int64_t scratch_linear(const void*, const Dyn&, int);
void op_rms_norm(const void*, const Dyn&, Worker&);
void op_add_rms_norm(const void*, const Dyn&, Worker&);
void op_rotary(const void*, const Dyn&, Worker&);
void op_reshape_and_cache(const void*, const Dyn&, Worker&);
void op_attention(const void*, const Dyn&, Worker&);
int64_t scratch_attention(const void*, const Dyn&, int);
void op_silu_and_mul(const void*, const Dyn&, Worker&);
void op_embedding(const void*, const Dyn&, Worker&);
void op_gather_rows(const void*, const Dyn&, Worker&);
void op_argmax(const void*, const Dyn&, Worker&);
void op_gated_delta_net(const void*, const Dyn&, Worker&);
void op_pack(const void*, const Dyn&, Worker&);
void op_unpack(const void*, const Dyn&, Worker&);

}  // namespace atom
