// Which kernel serves a linear: by format, rows and machine.
#include "linear.h"

#include "ops.h"

namespace atom {
namespace {

enum Path { kInt8, kTiles, kBf16, kFma };

// Where one kernel for quantised weights overtakes another, in rows (benchmarks/cpu_ops.py).
constexpr int64_t kTilesFrom = 8, kBf16From = 49;  // with AMX
constexpr int64_t kFmaFrom = 25;                   // with AVX2; AVX512's int8 is never overtaken

Path quantized_path(int64_t m) {
    if (has_tiles()) return m < kTilesFrom ? kInt8 : m < kBf16From ? kTiles : kBf16;
    return VL == 16 || m < kFmaFrom ? kInt8 : kFma;
}

Path path_of(const LinearArgs& a, int64_t m) {
    if (a.w.quantized()) return quantized_path(m);
    if (a.w.format == kF32 || m <= 4 || !has_bf16()) return kFma;
    return kBf16;
}

}  // namespace

void op_linear(const void* args, const Dyn& dyn, Worker& w) {
    const LinearArgs& a = *static_cast<const LinearArgs*>(args);
    const int64_t m = a.rows.get(dyn);
    if (m <= 0) return;
    switch (path_of(a, m)) {
        case kInt8: return linear_int8(a, m, w);
        case kTiles: return linear_tiles(a, m, w);
        case kBf16: return linear_bf16(a, m, w);
        case kFma: return linear_fma(a, m, w);
    }
}

int64_t scratch_linear(const void* args, const Dyn& dyn, int) {
    const LinearArgs& a = *static_cast<const LinearArgs*>(args);
    const int64_t m = a.rows.get(dyn);
    switch (path_of(a, m)) {
        case kInt8: return linear_int8_scratch(a, m);
        case kTiles: return linear_tiles_scratch(a, m);
        case kBf16: return linear_bf16_scratch(a, m);
        default: return 0;
    }
}

void op_pack(const void* args, const Dyn&, Worker& w) {
    const PackArgs& a = *static_cast<const PackArgs*>(args);
    w.parallel_for(a.w.groups(), 4,
                   [&](int64_t g0, int64_t g1) { pack_groups(a.src, a.w, a.dst, g0, g1); });
}

void op_unpack(const void* args, const Dyn&, Worker& w) {
    const UnpackArgs& a = *static_cast<const UnpackArgs*>(args);
    w.parallel_for(a.w.n, 16, [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; r++) unpack_row(a.w, r, a.out + r * a.w.k);
    });
}

}  // namespace atom
