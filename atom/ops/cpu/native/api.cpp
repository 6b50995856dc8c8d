// The C interface: everything that Python calls.
#include <cstring>

#include "amx.h"
#include "ops.h"

using namespace atom;

namespace {

struct Entry {
    const char* name;
    OpFn run;
    ScratchFn scratch;
};

// Python numbers the operations by asking for their names.
const Entry kOps[] = {
    {"linear", op_linear, scratch_linear},
    {"rms_norm", op_rms_norm, nullptr},
    {"add_rms_norm", op_add_rms_norm, nullptr},
    {"rotary", op_rotary, nullptr},
    {"reshape_and_cache", op_reshape_and_cache, nullptr},
    {"paged_attention", op_attention, scratch_attention},
    {"silu_and_mul", op_silu_and_mul, nullptr},
    {"embedding", op_embedding, nullptr},
    {"gather_rows", op_gather_rows, nullptr},
    {"argmax", op_argmax, nullptr},
    {"gated_delta_net", op_gated_delta_net, nullptr},
    {"pack", op_pack, nullptr},
    {"unpack", op_unpack, nullptr},
};
constexpr int kCount = int(sizeof(kOps) / sizeof(kOps[0]));

}  // namespace

#define ATOM_API __attribute__((visibility("default")))

extern "C" {

ATOM_API int atom_op(const char* name) {
    for (int i = 0; i < kCount; i++)
        if (std::strcmp(kOps[i].name, name) == 0) return i;
    return -1;
}

ATOM_API const char* atom_op_name(int op) { return op < kCount ? kOps[op].name : nullptr; }

// One operation, now. The sizes in `args` are literal.
ATOM_API void atom_call(int op, const void* args) {
    const Dyn dyn = {{1}, {}};
    const Node node = {kOps[op].run, kOps[op].scratch, args};
    run_program(&node, 1, dyn);
}

ATOM_API int64_t atom_node_bytes() { return sizeof(Node); }

ATOM_API void atom_make_node(void* node, int op, const void* args) {
    *static_cast<Node*>(node) = Node{kOps[op].run, kOps[op].scratch, args};
}

// `ns` [count] takes each operation's time, or is null.
ATOM_API void atom_run(const void* nodes, int64_t count, const void* dyn, int64_t* ns) {
    run_program(static_cast<const Node*>(nodes), count, *static_cast<const Dyn*>(dyn), ns);
}

ATOM_API int64_t atom_packed_bytes(int64_t format, int64_t n, int64_t k) {
    const Weights w{nullptr, format, n, k};
    return w.groups() * w.group_bytes();
}

ATOM_API int atom_set_num_threads(int n) { return set_num_threads(n); }

// What this build uses, for the log: "avx512 vnni bf16 amx".
ATOM_API const char* atom_features() {
    static char text[64];
    std::strcpy(text, VL == 16 ? "avx512-vnni" : kOffset8 ? "avx2 avx-vnni" : "avx2");
    if (has_bf16()) std::strcat(text, " bf16");
    if (amx_request()) std::strcat(text, " amx");
    return text;
}

}  // extern "C"
