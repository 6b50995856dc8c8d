// Worker threads: asleep between programs, spinning (for a bounded time) inside one.
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <mutex>

#include "amx.h"

namespace atom {
namespace {

// About 20 us of spinning; then the processor is offered to whoever waits for it: on a busy
// machine the thread that we wait for may be one of those.
constexpr int kSpins = 1 << 9;
// After a program a worker watches for the next one this many pauses before it sleeps.
constexpr int kIdleSpins = 1 << 10;

struct Job {
    const Node* nodes = nullptr;
    int64_t count = 0;
    const Dyn* dyn = nullptr;
    int64_t* ns = nullptr;
};

struct Pool {
    Shared shared;
    Job job;
    alignas(64) std::atomic<uint32_t> epoch{0};
    alignas(64) std::atomic<int> sleepers{0};
    pid_t owner = 0;
};

std::mutex g_lock;  // one program at a time
Pool* g_pool = nullptr;
int g_wanted = 0;
Worker g_main{0, 1, nullptr};

void futex_wait(std::atomic<uint32_t>* word, uint32_t seen) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, seen, nullptr,
            nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>* word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
            nullptr, 0);
}

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

// By value: the caller may prepare the next job while a worker leaves the last barrier.
void run_nodes(const Job job, Worker& w) {
    int64_t* ns = w.tid == 0 ? job.ns : nullptr;
    for (int64_t i = 0; i < job.count; i++) {
        if (ns) ns[i] = -now_ns();
        job.nodes[i].run(job.nodes[i].args, *job.dyn, w);
        w.barrier();
        if (ns) ns[i] += now_ns();
    }
    amx_release();
}

struct Start {
    Pool* pool;
    int tid;
};

void* worker_main(void* arg) {
    Start start = *static_cast<Start*>(arg);
    delete static_cast<Start*>(arg);
    Pool* pool = start.pool;
    Worker w{start.tid, pool->shared.num_threads, &pool->shared};
    uint32_t seen = 0;
    for (;;) {
        int spins = 0;
        while (pool->epoch.load(std::memory_order_acquire) == seen) {
            if (spins++ < kIdleSpins) {
                __builtin_ia32_pause();
                continue;
            }
            pool->sleepers.fetch_add(1);
            if (pool->epoch.load() == seen) futex_wait(&pool->epoch, seen);
            pool->sleepers.fetch_sub(1);
        }
        seen++;
        run_nodes(pool->job, w);
    }
    return nullptr;
}

int available_cpus() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
    int n = CPU_COUNT(&set);
    return n < kMaxThreads ? n : kMaxThreads;
}

// A pool lives as long as the process (its threads may be inside it at exit). After a fork the
// child has none of the threads, so it makes its own pool and forgets the parent's.
Pool* pool_of_this_process() {
    if (g_pool && g_pool->owner == getpid()) {
        if (g_wanted == g_pool->shared.num_threads) return g_pool;
    }
    if (g_wanted == 0) g_wanted = available_cpus();
    Pool* pool = new Pool;
    pool->owner = getpid();
    pool->shared.num_threads = g_wanted;
    for (int tid = 1; tid < g_wanted; tid++) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, worker_main, new Start{pool, tid}) != 0) abort();
        pthread_detach(thread);
    }
    g_main = Worker{0, g_wanted, &pool->shared};
    return g_pool = pool;
}

void ensure_shared_scratch(Shared& shared, const Job& job) {
    int64_t most = 0;
    for (int64_t i = 0; i < job.count; i++) {
        if (!job.nodes[i].scratch) continue;
        int64_t bytes = job.nodes[i].scratch(job.nodes[i].args, *job.dyn, shared.num_threads);
        if (bytes > most) most = bytes;
    }
    if (most <= shared.scratch_bytes) return;
    free(shared.scratch);
    int64_t rounded = (most + most / 4 + 4095) & ~int64_t(4095);
    shared.scratch = static_cast<uint8_t*>(aligned_alloc(4096, rounded));
    if (!shared.scratch) abort();
    shared.scratch_bytes = rounded;
}

}  // namespace

void Worker::barrier() {
    phase++;
    if (num_threads == 1) return;
    Shared& s = *shared;
    uint32_t generation = s.generation.load(std::memory_order_relaxed);
    if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(num_threads)) {
        s.arrived.store(0, std::memory_order_relaxed);
        s.generation.store(generation + 1, std::memory_order_release);
    } else {
        for (int spins = 0; s.generation.load(std::memory_order_acquire) == generation; spins++) {
            if (spins < kSpins)
                __builtin_ia32_pause();
            else
                sched_yield();
        }
    }
    // Everybody has left the previous phase: clear our part of its set, which is used again in
    // the phase after this one.
    s.shares[(phase + 1) & 1][tid].next.store(0, std::memory_order_relaxed);
}

uint8_t* Worker::scratch(int64_t bytes) {
    if (bytes > own_scratch_bytes) {
        free(own_scratch);
        own_scratch_bytes = (bytes + bytes / 4 + 4095) & ~int64_t(4095);
        own_scratch = static_cast<uint8_t*>(aligned_alloc(4096, own_scratch_bytes));
        if (!own_scratch) abort();
    }
    return own_scratch;
}

void run_program(const Node* nodes, int64_t count, const Dyn& dyn, int64_t* ns) {
    std::lock_guard<std::mutex> guard(g_lock);
    Pool* pool = pool_of_this_process();
    pool->job = Job{nodes, count, &dyn, ns};
    ensure_shared_scratch(pool->shared, pool->job);
    if (g_main.num_threads > 1) {
        pool->epoch.fetch_add(1);
        if (pool->sleepers.load() > 0) futex_wake_all(&pool->epoch);
    }
    run_nodes(pool->job, g_main);
}

int set_num_threads(int n) {
    std::lock_guard<std::mutex> guard(g_lock);
    int most = available_cpus();
    g_wanted = n <= 0 ? most : n < kMaxThreads ? n : kMaxThreads;
    return g_wanted;
}

}  // namespace atom
