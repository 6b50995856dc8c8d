// Paged attention: the pieces that the vector and the tile kernels share.
#pragma once

#include <algorithm>
#include <cmath>

#include "ops.h"

namespace atom {

// A piece of work: some query tokens of one sequence, the query heads of some KV heads, a range of
// keys. A decode takes all KV heads at once, because then the cache is read from end to end, which
// the processor's prefetcher follows. Rows are (token, head of the KV head), heads varying fastest.
struct AttentionTile {
    int64_t seq;
    int64_t kv_head0, kv_heads;
    int64_t token0, tokens;  // rows of q
    int64_t position0;       // of token0
    int64_t key0, key1;      // keys this piece may see; each row has its own limits within
    float* partial;          // [q_heads][head_dim + 2] when the keys are split, else null
};

// First key and end of keys that the query at `position` sees.
inline int64_t first_key(const AttentionArgs& a, int64_t position) {
    return a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
}

// Slots of keys key0 .. key0 + n - 1 of a sequence.
inline void key_slots(const AttentionArgs& a, int64_t seq, int64_t key0, int64_t n,
                      int64_t* slots) {
    const int32_t* table = a.block_table + seq * a.block_table_stride;
    int64_t block = key0 / a.block_size, offset = key0 % a.block_size;
    for (int64_t i = 0; i < n; i++) {
        slots[i] = int64_t(table[block]) * a.block_size + offset;
        if (++offset == a.block_size) {
            offset = 0;
            block++;
        }
    }
}

inline vf soft_cap(vf s, float cap) {  // cap * tanh(s / cap)
    const vf e = vexp(vmul(s, vset1(2.0f / cap)));
    const vf one = vset1(1.0f);
    return vmul(vset1(cap), vsub(one, vdiv(vset1(2.0f), vadd(e, one))));
}

// Vector kernel: any rows.
int64_t attention_rows_scratch(const AttentionArgs& a);
void attention_rows(const AttentionArgs& a, const AttentionTile& t, uint8_t* scratch);
// Tile kernel: a bf16 cache on a machine with AMX.
bool attention_amx_serves(const AttentionArgs& a);
int64_t attention_amx_scratch(const AttentionArgs& a, int64_t rows, int64_t kv_heads);
void attention_amx(const AttentionArgs& a, const AttentionTile& t, uint8_t* scratch);

// Divides by the softmax's sum (with the sink's part of it) and writes the row, or stores the
// partial result for `merge`. `acc` [head_dim], `top` the largest score, `sum` of exp(s - top).
void finish_row(const AttentionArgs& a, const AttentionTile& t, int64_t token, int64_t head,
                const float* acc, float top, float sum);

}  // namespace atom
