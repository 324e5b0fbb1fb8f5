// The one place that starts threads: a kernel says how much work it has, and how much is worth a thread.
//
// Starting the other threads and waiting for the last of them takes microseconds on a quiet machine, and a
// turn of the scheduler, milliseconds, where other programs compete for the processors. So work below two
// grains (grains.h) stays on the calling thread and never meets OpenMP; beyond, there are at most as many
// shares as grains. Shares are then dealt to the whole team, of which some threads may get none: asked for a
// smaller team, libgomp would end the other threads and make new ones for the next call, as PyTorch's authors
// found (pytorch/pytorch#32008). What a share computes must not depend on how many there are.
#pragma once

#include <omp.h>

#include <cstdint>

namespace hvp {
namespace {

// How many shares work of so many tasks is cut into: 1 means that it stays on the calling thread. Work and
// grain are in the same unit, which one is the kernel's choice.
inline int shares_of(std::int64_t tasks, double work, double grain) {
    if (tasks < 2 || work < 2.0 * grain) return 1;
    const std::int64_t threads = omp_get_max_threads();
    const std::int64_t most = tasks < threads ? tasks : threads;
    return static_cast<int>(work < static_cast<double>(most) * grain ? work / grain
                                                                     : static_cast<double>(most));
}

// One copy of the machine code for every way here, so that the bits do not depend on the threads.
template <class Share>
__attribute__((noinline, noclone)) void run_share(const Share& share, int number) {
    share(number);
}

// Calls share(0) .. share(shares - 1), each on some thread.
template <class Share>
void deal(int shares, const Share& share) {
    if (shares == 1) return run_share(share, 0);
#pragma omp parallel
    for (int number = omp_get_thread_num(); number < shares; number += omp_get_num_threads())
        run_share(share, number);
}

// Calls body(task) for every task; a share is a run of tasks of about the same size.
template <class Body>
void parallel_for(std::int64_t tasks, double work, double grain, const Body& body) {
    const std::int64_t shares = shares_of(tasks, work, grain);
    deal(static_cast<int>(shares), [&](int number) {
        const std::int64_t last = tasks * (number + 1) / shares;
        for (std::int64_t task = tasks * number / shares; task < last; ++task) body(task);
    });
}

// Hands out tasks 0, 1, ... to whichever share is free, for tasks of very different sizes.
class Queue {
  public:
    explicit Queue(std::int64_t tasks) : tasks_(tasks) {}
    bool take(std::int64_t& task) {
        task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
        return task < tasks_;
    }

  private:
    std::int64_t next_ = 0;
    const std::int64_t tasks_;
};

// Calls body(task) for every task, in whatever order.
template <class Body>
void parallel_any_order(std::int64_t tasks, double work, double grain, const Body& body) {
    Queue queue(tasks);
    deal(shares_of(tasks, work, grain), [&](int) {
        for (std::int64_t task; queue.take(task);) body(task);
    });
}

}  // namespace
}  // namespace hvp
