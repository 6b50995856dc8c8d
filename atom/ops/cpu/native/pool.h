// The threads of the kernels, and what a kernel sees of them.
//
// A program (a list of operations) runs on all threads at once: every thread walks the whole
// list, takes its share of each operation, and meets the others at a barrier before the next.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace atom {

constexpr int kMaxThreads = 256;
constexpr int kNumSizes = 8;
constexpr int kNumInputs = 12;

// What changes between two runs of one program: sizes (size[0] is always 1) and the addresses of
// the step's inputs. In an argument record a recorded input is its number instead of an address.
enum SizeKind { kOne = 0, kTokens = 1, kSeqs = 2, kLogits = 3, kTableStride = 4 };
struct Dyn {
    int64_t size[kNumSizes];
    const void* input[kNumInputs];

    template <class T>
    const T* in(const T* p) const {
        const uintptr_t number = reinterpret_cast<uintptr_t>(p);
        return number < kNumInputs ? static_cast<const T*>(input[number]) : p;
    }
};

// A number of rows: `count`, times a size that is only known when the program runs.
struct Rows {
    int64_t count, kind;
    int64_t get(const Dyn& d) const { return count * d.size[kind]; }
};

struct Worker;
using OpFn = void (*)(const void* args, const Dyn& dyn, Worker& w);
using ScratchFn = int64_t (*)(const void* args, const Dyn& dyn, int num_threads);

struct Node {
    OpFn run;
    ScratchFn scratch;  // bytes of shared scratch that the operation needs, or null
    const void* args;
};

struct alignas(64) Share {
    std::atomic<int64_t> next{0};
};

struct Shared {
    std::atomic<uint32_t> arrived{0};
    alignas(64) std::atomic<uint32_t> generation{0};
    alignas(64) Share shares[2][kMaxThreads];
    uint8_t* scratch = nullptr;
    int64_t scratch_bytes = 0;
    int num_threads = 1;
};

// One thread inside a program.
struct Worker {
    int tid, num_threads;
    Shared* shared;
    uint32_t phase = 0;
    uint8_t* own_scratch = nullptr;
    int64_t own_scratch_bytes = 0;

    // Waits for every thread. At most one `parallel_for` may stand between two barriers.
    void barrier();
    // Private memory, 64-byte aligned; the contents do not outlive the operation.
    uint8_t* scratch(int64_t bytes);
    uint8_t* shared_scratch() const { return shared->scratch; }

    // Calls f(begin, end) over pieces of 0 .. n-1 of about `grain` items. A thread works through
    // its own share first, then helps the others: one that is held up does not hold up the rest.
    template <class F>
    void parallel_for(int64_t n, int64_t grain, F&& f) {
        if (num_threads == 1) {
            if (n > 0) f(int64_t(0), n);
            return;
        }
        int64_t pieces = (n + grain - 1) / grain;
        Share* shares = shared->shares[phase & 1];
        for (int i = 0; i < num_threads; i++) {
            int owner = tid + i < num_threads ? tid + i : tid + i - num_threads;
            int64_t begin = pieces * owner / num_threads;
            int64_t size = pieces * (owner + 1) / num_threads - begin;
            while (shares[owner].next.load(std::memory_order_relaxed) < size) {
                int64_t k = shares[owner].next.fetch_add(1, std::memory_order_relaxed);
                if (k >= size) break;
                int64_t lo = (begin + k) * grain;
                f(lo, lo + grain < n ? lo + grain : n);
            }
        }
    }
};

// Runs `count` operations on all threads; returns when the last one is done. With `ns` [count],
// writes how long each operation took, its barrier included.
void run_program(const Node* nodes, int64_t count, const Dyn& dyn, int64_t* ns = nullptr);
int set_num_threads(int n);  // returns the number in force

}  // namespace atom
