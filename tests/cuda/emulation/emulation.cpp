// The scheduler behind the emulated <cuda_runtime.h>. It checks as it goes: barriers that not all threads
// reach, or reach at different places, lanes missing from a shuffle, and (with sanitizers) shared memory out
// of bounds and races between threads. Shared memory starts as NaN.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

// This file itself is compiled without -fsanitize=thread: the scheduler is not under test.
#if defined(HVP_EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
#define WITH_TSAN(...) __VA_ARGS__
#else
#define WITH_TSAN(...)
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

// Saves the registers that a call preserves on the running stack and goes on with another one.
extern "C" void emulation_switch(void** save_stack, void* next_stack);
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
.size emulation_switch, . - emulation_switch
)");

namespace hvp {
namespace cuda {
constexpr std::size_t kSharedBytes = 48 << 10;
alignas(16) double shared_memory[kSharedBytes / sizeof(double)];
}  // namespace cuda
}  // namespace hvp

Coordinates threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 128 << 10;

enum class Wait { nothing, block, warp, ended };

struct Thread {
    void* stack = nullptr;
    Wait wait = Wait::nothing;
    unsigned long generation = 0;  // of the barrier it waits at
};

struct Warp {
    unsigned arrived = 0;
    unsigned long generation = 0;
    std::uint64_t
        bits[2][kWarp];  // two sets: a fast lane may hand over the next value before a slow one has read
};

struct Block {
    unsigned live, arrived;
    unsigned long generation;
    const void* site;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    void* scheduler_stack;
    WITH_TSAN(void* scheduler_fiber;)
    const std::function<void()>* kernel;
};

Block block;
std::vector<char> stacks;
WITH_TSAN(std::vector<void*> fibers;)  // making one is slow: they serve block after block

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "emulation: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
    std::_Exit(3);
}

void leave() {
    WITH_TSAN(__tsan_switch_to_fiber(block.scheduler_fiber, __tsan_switch_to_fiber_no_sync);)
    emulation_switch(&block.threads[threadIdx.x].stack, block.scheduler_stack);
}

void release_if_complete() {
    if (block.live == 0 || block.arrived != block.live) return;
    block.arrived = 0;
    block.site = nullptr;
    ++block.generation;
}

void thread_main() {
    WITH_TSAN(__tsan_acquire(&block.kernel);)
    (*block.kernel)();
    WITH_TSAN(__tsan_release(&block.kernel);)
    block.threads[threadIdx.x].wait = Wait::ended;
    --block.live;
    release_if_complete();  // threads that have ended do not hold up the others
    leave();
    std::abort();
}

bool can_run(unsigned i) {
    const Thread& t = block.threads[i];
    if (t.wait == Wait::block) return t.generation != block.generation;
    if (t.wait == Wait::warp) return t.generation != block.warps[i / kWarp].generation;
    return t.wait == Wait::nothing;
}

// A fresh stack whose first `ret` enters thread_main, aligned as after a call.
void* fresh_stack(unsigned i) {
    auto top = (reinterpret_cast<std::uintptr_t>(stacks.data()) + (i + 1) * kStack) & ~std::uintptr_t{15};
    void** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;
    *--slot = reinterpret_cast<void*>(&thread_main);
    for (int saved = 0; saved < 6; ++saved) *--slot = nullptr;
    return slot;
}

struct Order {
    std::string name;
    std::uint64_t state;

    void arrange(std::vector<unsigned>& order) {
        if (name.rfind("rand", 0) != 0) return;
        for (std::size_t i = order.size(); i > 1; --i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            std::swap(order[i - 1], order[(state >> 33) % i]);
        }
    }
};

Order wanted_order() {
    const char* wish = std::getenv("HVP_EMULATION_ORDER");
    const std::string name = wish == nullptr ? "fwd" : wish;
    const std::size_t colon = name.find(':');
    return {name, colon == std::string::npos ? 1 : std::strtoull(name.c_str() + colon + 1, nullptr, 10)};
}

void start_threads() {
    block.threads.assign(blockDim.x, Thread());
    block.warps.assign((blockDim.x + kWarp - 1) / kWarp, Warp());
    block.live = blockDim.x;
    block.arrived = 0;
    block.site = nullptr;
    WITH_TSAN(block.scheduler_fiber = __tsan_get_current_fiber();)
    WITH_TSAN(__tsan_release(&block.kernel);)
    for (unsigned i = 0; i < blockDim.x; ++i) {
        block.threads[i].stack = fresh_stack(i);
        WITH_TSAN(if (fibers.size() <= i) fibers.push_back(__tsan_create_fiber(0));)
    }
}

void run_block(Order& order, std::vector<unsigned>& sequence) {
    start_threads();
    while (block.live > 0) {
        bool advanced = false;
        order.arrange(sequence);
        for (const unsigned i : sequence) {
            if (!can_run(i)) continue;
            advanced = true;
            threadIdx.x = i;
            block.threads[i].wait = Wait::nothing;
            WITH_TSAN(__tsan_switch_to_fiber(fibers[i], __tsan_switch_to_fiber_no_sync);)
            emulation_switch(&block.scheduler_stack, block.threads[i].stack);
        }
        if (!advanced) fail("deadlock: threads wait at a barrier or shuffle that others never reach");
    }
    WITH_TSAN(__tsan_acquire(&block.kernel);)
}

}  // namespace

int lane() { return static_cast<int>(threadIdx.x % kWarp); }

void block_barrier(const void* site) {
    if (block.site != nullptr && block.site != site) fail("threads of one block wait at different barriers");
    block.site = site;
    Thread& t = block.threads[threadIdx.x];
    t.wait = Wait::block;
    t.generation = block.generation;
    ++block.arrived;
    WITH_TSAN(__tsan_release(&block.generation);)
    release_if_complete();
    leave();
    WITH_TSAN(__tsan_acquire(&block.generation);)
}

std::uint64_t exchange(unsigned mask, std::uint64_t bits, int from) {
    Thread& t = block.threads[threadIdx.x];
    const unsigned first = threadIdx.x / kWarp * kWarp;
    Warp& w = block.warps[threadIdx.x / kWarp];
    if ((mask >> lane() & 1u) == 0 || (mask >> from & 1u) == 0)
        fail("a shuffle's mask lacks a lane that takes part");
    for (unsigned l = 0; l < kWarp; ++l)
        if ((mask >> l & 1u) != 0 &&
            (first + l >= blockDim.x || block.threads[first + l].wait == Wait::ended))
            fail("a shuffle's mask names a lane that is not there");
    std::uint64_t* handed = w.bits[w.generation % 2];
    handed[lane()] = bits;
    w.arrived |= 1u << lane();
    t.wait = Wait::warp;
    t.generation = w.generation;
    if ((w.arrived & mask) == mask) {
        w.arrived = 0;
        ++w.generation;
    }
    WITH_TSAN(__tsan_release(&w.generation);)
    leave();
    WITH_TSAN(__tsan_acquire(&w.generation);)
    return handed[from];
}

void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
    double* shared = hvp::cuda::shared_memory;
    Order order = wanted_order();
    std::vector<unsigned> sequence(threads);
    for (unsigned i = 0; i < threads; ++i) sequence[i] = order.name == "rev" ? threads - 1 - i : i;
    stacks.resize(kStack * threads);
    gridDim.x = blocks;
    blockDim.x = threads;
    block.kernel = &kernel;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        ASAN_UNPOISON_MEMORY_REGION(shared, hvp::cuda::kSharedBytes);
        std::memset(static_cast<void*>(shared), 0xff, hvp::cuda::kSharedBytes);
        ASAN_POISON_MEMORY_REGION(reinterpret_cast<char*>(shared) + shared_bytes,
                                  hvp::cuda::kSharedBytes - shared_bytes);
        run_block(order, sequence);
    }
    ASAN_UNPOISON_MEMORY_REGION(shared, hvp::cuda::kSharedBytes);
}

}  // namespace emulation
