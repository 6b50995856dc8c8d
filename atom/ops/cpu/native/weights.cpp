// Packing and unpacking of weights.
#include "weights.h"

namespace atom {
namespace {

int64_t source_row_bytes(const Weights& w) {
    switch (w.format) {
        case kQ4_0: return w.blocks() * 18;
        case kQ4_1: return w.blocks() * 20;
        case kQ8_0: return w.blocks() * 34;
        case kF32: return w.k * 4;
        default: return w.k * 2;
    }
}

// One row of GGUF blocks into lane `lane` of its group.
void pack_quantized_row(const uint8_t* src, const Weights& w, uint8_t* base, int lane) {
    const int64_t nb = w.blocks();
    const int words = w.format == kQ8_0 ? 8 : 4;
    const int header = w.format == kQ4_1 ? 4 : 2;
    uint8_t* q = base + w.scale_bytes();
    for (int64_t b = 0; b < nb; b++) {
        std::memcpy(base + (b * kGroup + lane) * 2, src, 2);
        if (w.format == kQ4_1) std::memcpy(base + ((nb + b) * kGroup + lane) * 2, src + 2, 2);
        for (int j = 0; j < words; j++) {
            uint32_t dword;
            std::memcpy(&dword, src + header + 4 * j, 4);
            if (w.format == kQ8_0) dword ^= 0x80808080u;
            std::memcpy(q + ((b * words + j) * kGroup + lane) * 4, &dword, 4);
        }
        src += header + 4 * words;
    }
}

void pack_dense_row(const uint8_t* src, const Weights& w, uint8_t* base, int lane) {
    if (w.format == kF32) {
        for (int64_t k = 0; k < w.k; k++)
            std::memcpy(base + (k * kGroup + lane) * 4, src + 4 * k, 4);
        return;
    }
    uint16_t* out = reinterpret_cast<uint16_t*>(base);
    for (int64_t k = 0; k < w.k; k++)
        std::memcpy(out + ((k / 2) * kGroup + lane) * 2 + (k & 1), src + 2 * k, 2);
}

}  // namespace

void pack_groups(const uint8_t* src, const Weights& w, uint8_t* dst, int64_t g0, int64_t g1) {
    const int64_t row_bytes = source_row_bytes(w);
    for (int64_t g = g0; g < g1; g++) {
        uint8_t* base = dst + g * w.group_bytes();
        std::memset(base, 0, w.group_bytes());
        for (int lane = 0; lane < kGroup; lane++) {
            int64_t row = g * kGroup + lane;
            if (row >= w.n) break;
            if (w.quantized())
                pack_quantized_row(src + row * row_bytes, w, base, lane);
            else
                pack_dense_row(src + row * row_bytes, w, base, lane);
        }
    }
}

void unpack_row(const Weights& w, int64_t row, float* out) {
    const int lane = int(row % kGroup);
    const uint8_t* base = w.group(row / kGroup);
    if (w.format == kF32) {
        for (int64_t k = 0; k < w.k; k++) std::memcpy(out + k, base + (k * kGroup + lane) * 4, 4);
        return;
    }
    if (!w.quantized()) {
        const uint16_t* p = reinterpret_cast<const uint16_t*>(base);
        for (int64_t k = 0; k < w.k; k++) {
            uint16_t v = p[((k / 2) * kGroup + lane) * 2 + (k & 1)];
            out[k] = w.format == kBF16 ? f32_from_bf16(v) : f32_from_f16(v);
        }
        return;
    }
    const GroupView v = view_group(w, row / kGroup);
    for (int64_t b = 0; b < w.blocks(); b++) {
        const float d = f32_from_f16(v.d[b * kGroup + lane]);
        float* o = out + b * kBlock;
        if (w.format == kQ8_0) {
            const uint8_t* q = v.q + b * 512 + lane * 4;
            for (int k = 0; k < 32; k++) o[k] = d * (int(q[(k / 4) * 64 + (k & 3)]) - 128);
            continue;
        }
        const float m = w.format == kQ4_1 ? f32_from_f16(v.m[b * kGroup + lane]) : -8.0f * d;
        const uint8_t* q = v.q + b * 256 + lane * 4;
        for (int k = 0; k < 16; k++) {
            uint8_t byte = q[(k / 4) * 64 + (k & 3)];
            o[k] = d * (byte & 15) + m;
            o[k + 16] = d * (byte >> 4) + m;
        }
    }
}

}  // namespace atom
