// Paged attention: how a step is cut into pieces, and how split contexts are put together.
#include "attention.h"

namespace atom {
namespace {

constexpr int64_t kMinSplit = 64;     // keys: a shorter piece costs more to merge than it saves
constexpr int64_t kRowsPerTile = 96;  // query rows that share one unpacking of the keys

struct SeqPlan {
    int64_t first_piece, first_partial;  // prefix sums over the sequences
    int32_t tiles, splits;
    int64_t tile_tokens, split_keys, kv_heads;  // of a piece
};

struct StepPlan {
    int64_t pieces = 0, partials = 0;  // partials count rows of one KV head's queries
};

int64_t keys_seen(const AttentionArgs& a, int64_t length, int64_t query_length) {
    const int64_t first = first_key(a, length - query_length);
    return length - first;
}

// Cuts the step. Single queries over long contexts are split by keys so that all threads work.
StepPlan cut(const AttentionArgs& a, int64_t seqs, int num_threads, SeqPlan* plans) {
    const int64_t per_kv = a.q_heads / a.kv_heads;
    int64_t work = 0;
    for (int64_t s = 0; s < seqs; s++) {
        const int64_t ql = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s];
        work += ql * keys_seen(a, a.seq_lens[s], ql);
    }
    int64_t most = work / (num_threads * 2);
    most = most < kMinSplit ? kMinSplit : (most + 63) / 64 * 64;
    // Fewer tokens in a tile when there are few tiles; at least enough rows to fill one.
    const int64_t tokens = a.cu_seqlens_q[seqs] - a.cu_seqlens_q[0];
    int64_t tile_tokens = tokens * a.kv_heads / (num_threads * 4);
    const int64_t largest = (kRowsPerTile + per_kv - 1) / per_kv;
    const int64_t least = (16 + per_kv - 1) / per_kv;
    tile_tokens = tile_tokens > largest ? largest : tile_tokens < least ? least : tile_tokens;
    StepPlan step;
    for (int64_t s = 0; s < seqs; s++) {
        const int64_t ql = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s];
        const int64_t keys = keys_seen(a, a.seq_lens[s], ql);
        SeqPlan p{step.pieces, step.partials, int32_t((ql + tile_tokens - 1) / tile_tokens), 1,
                  tile_tokens, keys, ql == 1 ? a.kv_heads : 1};
        if (num_threads > 1 && ql == 1 && keys > most) {
            p.splits = int32_t((keys + most - 1) / most);
            p.split_keys = most;
            step.partials += p.splits * a.q_heads;
        }
        if (plans) plans[s] = p;
        step.pieces += int64_t(p.tiles) * p.splits * (a.kv_heads / p.kv_heads);
    }
    return step;
}

int64_t partial_floats(const AttentionArgs& a) { return a.head_dim + 2; }

AttentionTile tile_of(const AttentionArgs& a, const SeqPlan& p, int64_t seq, int64_t piece,
                      float* partials) {
    const int64_t q0 = a.cu_seqlens_q[seq], ql = a.cu_seqlens_q[seq + 1] - q0;
    const int64_t length = a.seq_lens[seq];
    AttentionTile t;
    t.seq = seq;
    const int64_t per_part = a.kv_heads / p.kv_heads;
    t.kv_head0 = piece % per_part * p.kv_heads;
    t.kv_heads = p.kv_heads;
    const int64_t part = piece / per_part;
    // Later tiles see more keys: take them first, so that no long piece is left for the end.
    const int64_t tile = p.tiles - 1 - part / p.splits, split = part % p.splits;
    const int64_t first = tile * p.tile_tokens;
    t.token0 = q0 + first;
    t.tokens = ql - first < p.tile_tokens ? ql - first : p.tile_tokens;
    t.position0 = length - ql + first;
    t.key0 = first_key(a, t.position0);
    t.key1 = t.position0 + t.tokens;
    t.partial = nullptr;
    if (p.splits > 1) {
        t.key0 += split * p.split_keys;
        if (t.key0 + p.split_keys < t.key1) t.key1 = t.key0 + p.split_keys;
        t.partial = partials + (p.first_partial + split * a.q_heads) * partial_floats(a);
    }
    return t;
}

void write_row(const AttentionArgs& a, int64_t token, int64_t head, const float* acc, float top,
               float sum) {
    float scale = 1.0f / sum;
    if (a.sinks) {
        const float sink = a.sinks[head];
        // Both relative to the larger, so that neither overflows.
        const float most = sink > top ? sink : top;
        scale = std::exp(top - most) / (sum * std::exp(top - most) + std::exp(sink - most));
    }
    float* out = a.out + (token * a.q_heads + head) * a.head_dim;
    for (int64_t i = 0; i < a.head_dim; i += VL)
        vstore(out + i, vmul(vload(acc + i), vset1(scale)));
}

// Puts the splits of one query head together.
void merge(const AttentionArgs& a, const SeqPlan& p, int64_t seq, int64_t head, float* partials) {
    const int64_t width = partial_floats(a);
    float* first = partials + (p.first_partial + head) * width;
    float top = -INFINITY, sum = 0;
    for (int s = 0; s < p.splits; s++)
        top = std::fmax(top, first[s * a.q_heads * width + a.head_dim]);
    for (int s = 0; s < p.splits; s++) {
        const float* part = first + s * a.q_heads * width;
        const float factor = std::exp(part[a.head_dim] - top);
        sum += factor * part[a.head_dim + 1];
        for (int64_t i = 0; i < a.head_dim; i += VL) {
            const vf scaled = vmul(vload(part + i), vset1(factor));
            vstore(first + i, s == 0 ? scaled : vadd(vload(first + i), scaled));
        }
    }
    write_row(a, a.cu_seqlens_q[seq], head, first, top, sum);
}

// The record with this run's addresses.
AttentionArgs bound(const void* args, const Dyn& dyn) {
    AttentionArgs a = *static_cast<const AttentionArgs*>(args);
    a.block_table = dyn.in(a.block_table);
    a.cu_seqlens_q = dyn.in(a.cu_seqlens_q);
    a.seq_lens = dyn.in(a.seq_lens);
    if (a.block_table_stride < 0) a.block_table_stride = dyn.size[kTableStride];
    return a;
}

}  // namespace

void finish_row(const AttentionArgs& a, const AttentionTile& t, int64_t token, int64_t head,
                const float* acc, float top, float sum) {
    if (!t.partial) return write_row(a, token, head, acc, top, sum);
    float* to = t.partial + head * partial_floats(a);
    std::memcpy(to, acc, size_t(a.head_dim) * 4);
    to[a.head_dim] = top;
    to[a.head_dim + 1] = sum;
}

int64_t scratch_attention(const void* args, const Dyn& dyn, int num_threads) {
    const AttentionArgs a = bound(args, dyn);
    const int64_t seqs = a.seqs.get(dyn);
    if (seqs == 0) return 0;
    return cut(a, seqs, num_threads, nullptr).partials * partial_floats(a) * 4;
}

void op_attention(const void* args, const Dyn& dyn, Worker& w) {
    const AttentionArgs a = bound(args, dyn);
    const int64_t seqs = a.seqs.get(dyn), per_kv = a.q_heads / a.kv_heads;
    if (seqs == 0) return;
    const bool tiles = attention_amx_serves(a);
    int64_t bytes = attention_rows_scratch(a);
    if (tiles) {
        bytes = std::max(bytes, attention_amx_scratch(a, kRowsPerTile + per_kv, 1));
        bytes = std::max(bytes, attention_amx_scratch(a, per_kv, a.kv_heads));
    }
    bytes = (bytes + 63) / 64 * 64;
    uint8_t* scratch = w.scratch(bytes + seqs * int64_t(sizeof(SeqPlan)));
    SeqPlan* plans = reinterpret_cast<SeqPlan*>(scratch + bytes);
    const StepPlan step = cut(a, seqs, w.num_threads, plans);
    float* partials = reinterpret_cast<float*>(w.shared_scratch());
    w.parallel_for(step.pieces, 1, [&](int64_t lo, int64_t hi) {
        int64_t seq = 0;
        for (int64_t piece = lo; piece < hi; piece++) {
            while (seq + 1 < seqs && plans[seq + 1].first_piece <= piece) seq++;
            const AttentionTile t =
                tile_of(a, plans[seq], seq, piece - plans[seq].first_piece, partials);
            if (tiles)
                attention_amx(a, t, scratch);
            else
                attention_rows(a, t, scratch);
        }
    });
    // Rows of padding tokens must not hold garbage.
    if (w.tid == 0) {
        const int64_t row = a.q_heads * a.head_dim, used = a.cu_seqlens_q[seqs];
        const int64_t unused = a.tokens.get(dyn) - used;
        if (unused > 0) std::memset(a.out + used * row, 0, size_t(unused * row) * 4);
    }
    if (step.partials == 0) return;
    w.barrier();
    w.parallel_for(seqs * a.q_heads, 1, [&](int64_t lo, int64_t hi) {
        for (int64_t i = lo; i < hi; i++) {
            const SeqPlan& p = plans[i / a.q_heads];
            if (p.splits > 1) merge(a, p, i / a.q_heads, i % a.q_heads, partials);
        }
    });
}

}  // namespace atom
