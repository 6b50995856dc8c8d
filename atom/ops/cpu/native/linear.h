// The linear operation: y = x W^T + b. Which kernel serves depends on the rows and the machine.
#pragma once

#include "pool.h"
#include "weights.h"

namespace atom {

struct LinearArgs {
    Rows rows;
    const float* x;
    int64_t ldx;  // floats between rows of x
    Weights w;
    const float* bias;  // [N] or null
    float* out;
    int64_t ldo;
};

// Quantised weights times activations quantised to int8 in blocks of 32: few rows.
void linear_int8(const LinearArgs& a, int64_t m, Worker& w);
int64_t linear_int8_scratch(const LinearArgs& a, int64_t m);
// Dense weights times float32 activations, fused multiply-add: any weight, any rows, exact.
void linear_fma(const LinearArgs& a, int64_t m, Worker& w);
// Quantised weights as they are on AMX tiles: a batch of decodes, a short prompt.
bool has_tiles();
void linear_tiles(const LinearArgs& a, int64_t m, Worker& w);
int64_t linear_tiles_scratch(const LinearArgs& a, int64_t m);
// bf16 products: weights are unpacked to bf16 a panel at a time. Many rows.
bool has_bf16();
void linear_bf16(const LinearArgs& a, int64_t m, Worker& w);
int64_t linear_bf16_scratch(const LinearArgs& a, int64_t m);

}  // namespace atom
