// Packed weights: how a [N, K] matrix lies in memory once its kernel has it.
//
// Rows are gathered in groups of 16; a vector lane is a row. With nb = K / 32 blocks:
//   Q4_0  group: d [nb][16] f16,             q [nb][4][16] dwords
//   Q4_1  group: d [nb][16] f16, m [nb][16], q [nb][4][16] dwords
//   Q8_0  group: d [nb][16] f16,             q [nb][8][16] dwords (bytes with an offset of 128)
//   BF16, F16 group: [ceil(K/32)*16][16][2], pairs of neighbouring k (what dot products want)
//   F32   group: [K][16]
// Dword j of a 4-bit row holds k = 4j .. 4j+3 in its low nibbles and 16 + 4j .. in its high ones;
// dword j of an 8-bit row holds k = 4j .. 4j+3. Scales of 4 or 8 bits come first in the group
// (padded to 64 bytes) so that the quants stay aligned. Rows past N are zero.
#pragma once

#include "simd.h"

namespace atom {

enum Format { kQ4_0 = 0, kQ4_1 = 1, kQ8_0 = 2, kBF16 = 3, kF16 = 4, kF32 = 5, kNumFormats = 6 };

constexpr int kGroup = 16;
constexpr int kBlock = 32;

struct Weights {
    const uint8_t* data;
    int64_t format, n, k;

    int64_t groups() const { return (n + kGroup - 1) / kGroup; }
    int64_t blocks() const { return (k + kBlock - 1) / kBlock; }
    int64_t scale_bytes() const {
        if (format > kQ8_0) return 0;
        return (blocks() * (format == kQ4_1 ? 64 : 32) + 63) / 64 * 64;
    }
    int64_t block_bytes() const {  // quants of one block of 32 k in a group
        switch (format) {
            case kQ4_0:
            case kQ4_1: return 256;
            case kQ8_0: return 512;
            case kF32: return 32 * kGroup * 4;
            default: return 32 * kGroup * 2;
        }
    }
    int64_t group_bytes() const {
        if (format == kF32) return k * kGroup * 4;
        return scale_bytes() + blocks() * block_bytes();
    }
    const uint8_t* group(int64_t g) const { return data + g * group_bytes(); }
    bool quantized() const { return format <= kQ8_0; }
};

struct GroupView {
    const uint16_t* d;
    const uint16_t* m;  // Q4_1 only
    const uint8_t* q;
};

inline GroupView view_group(const Weights& w, int64_t g) {
    const uint8_t* base = w.group(g);
    GroupView v;
    v.d = reinterpret_cast<const uint16_t*>(base);
    v.m = v.d + w.blocks() * kGroup;
    v.q = base + w.scale_bytes();
    return v;
}

// One row as float32 [K]; exactly the values that the kernels multiply by.
void unpack_row(const Weights& w, int64_t row, float* out);
// Rows of the source (GGUF blocks, or dense values of the format's type) into `dst`.
void pack_groups(const uint8_t* src, const Weights& w, uint8_t* dst, int64_t g0, int64_t g1);

}  // namespace atom
