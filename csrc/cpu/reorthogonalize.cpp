// Classical Gram-Schmidt for many streams, as often as is needed. One pass takes out the components along the
// last few rows, which are large, by the dots with these alone. The next sweep over the basis measures what
// is left along all rows, and only where that is too large another one takes it out. Where all rows are in
// the first pass this is two-pass Gram-Schmidt in three reads of the basis: the dots of the first pass; its
// update fused, panel by panel, with the dots of the second pass; the second update fused with the norm.
// Work is cut into tasks of fixed width whose partial sums are added in order, so the result does not depend
// on the number of threads. A stream of one task runs all its passes at once, while its basis is in the
// cache.
#include "hvp/reorthogonalize.h"

#include <cstdlib>

#include "grains.h"
#include "parallel.h"
#include "reorthogonalize_pass.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kTaskColumns = 16384;
using Rule = ReorthogonalizeRule;

// Work space of one stream: what the next update subtracts from the vector and from the last row, and of each
// task the dots of both and a squared norm.
struct StreamSums {
    double* second;
    double* last;
    double* partial;
    std::int64_t tasks;
    std::int64_t first_task;
    int passes;  // how many there are in all, as far as is known
};

inline std::int64_t partial_size(const Stream& s) { return 2 * s.count + 1; }

// Largest magnitude and Euclidean norm of some numbers; a NaN among them shows in both.
struct Size {
    double largest = 0.0, squares = 0.0;
    void add(double x) {
        const double magnitude = __builtin_fabs(x);
        if (magnitude > largest || magnitude != magnitude) largest = magnitude;
        squares += x * x;
    }
    double norm() const { return __builtin_sqrt(squares); }
};

inline double relative(double size, double norm) { return norm == 0.0 ? 0.0 : size / norm; }

constexpr int kPasses = 4;  // dots with the near rows; their update and all dots; up to two more updates

// The whole batch: what the tasks of each pass, and the reductions between them, work on.
struct Batch {
    const Stream* streams;
    std::int64_t num_streams;
    StreamSums* sums;
    Rule rule;
    double* coefficients;
    std::int64_t coefficient_stride;
    double* norms;
    double* lost;

    double* first(std::int64_t s) const { return coefficients + s * coefficient_stride; }

    void run(std::int64_t s, std::int64_t task, int number) const {
        const Stream& stream = streams[s];
        const StreamSums& sum = sums[s];
        const std::int64_t count = stream.count, near = rule.first_rows(count);
        if (number >= sum.passes || (number == 0 && near == 0)) return;
        const std::int64_t begin = task * kTaskColumns;
        const std::int64_t end = at_most(stream.size, begin + kTaskColumns);
        double* partial = sum.partial + task * partial_size(stream);
        for (std::int64_t i = 0; i < 2 * count; ++i) partial[i] = 0.0;
        Pass pass;
        pass.updated = number == 0 ? 0 : number == 1 ? near : count;
        pass.coefficients = number == 1 ? first(s) + count - near : sum.second;
        pass.measured = number == 0 ? near : number + 1 < sum.passes || number == 1 ? count : 0;
        pass.dots = partial + count - pass.measured;
        if (rule.postpones() && number == 1 && count > 0) pass.last_dots = partial + count;
        if (rule.postpones() && number == 2) pass.last = sum.last;
        partial[2 * count] = run_pass_of(stream)(stream, begin, end, pass);
    }

    double total(std::int64_t s, std::int64_t entry) const {
        double sum = 0.0;
        for (std::int64_t task = 0; task < sums[s].tasks; ++task)
            sum += sums[s].partial[task * partial_size(streams[s]) + entry];
        return sum;
    }

    void reduce(std::int64_t s, int number) const {
        StreamSums& sum = sums[s];
        if (number >= sum.passes) return;
        const std::int64_t count = streams[s].count;
        if (number == 0) {
            for (std::int64_t row = 0; row < count; ++row) first(s)[row] = total(s, row);
            return;
        }
        norms[s] = __builtin_sqrt(total(s, 2 * count));
        if (number == 1) {
            measure(s);
        } else if (number + 1 < sum.passes) {
            lost[s] = relative(take_dots(s).largest, norms[s]);
            for (std::int64_t row = 0; row < count; ++row) first(s)[row] += sum.second[row];
        }
    }

    // Makes the dots of the pass before what the next one subtracts.
    Size take_dots(std::int64_t s) const {
        Size size;
        for (std::int64_t row = 0; row < streams[s].count; ++row)
            size.add(sums[s].second[row] = total(s, row));
        return size;
    }

    // Decides what follows the first sweep over all rows.
    void measure(std::int64_t s) const {
        StreamSums& sum = sums[s];
        const std::int64_t count = streams[s].count;
        const Size left = take_dots(s);
        const double share = relative(left.norm(), norms[s]);
        bool enough = share <= (rule.postpones() ? rule.postponed : rule.tolerance);
        Size stays = left;
        if (rule.postpones()) {
            stays = {};
            double known = 0.0;  // of the last row's components, which the vector was not measured without
            for (std::int64_t row = 0; row + 1 < count; ++row) {
                stays.add(sum.last[row] = total(s, count + row));
                known += sum.last[row] * sum.second[row];
            }
            enough = enough && stays.norm() <= rule.tolerance;
            if (count > 0) sum.second[count - 1] -= known;
        }
        const double unit = rule.postpones() ? 1.0 : norms[s];
        lost[s] = relative(stays.largest, unit);
        const bool once = rule.first_rows(count) == count;
        sum.passes = enough ? 2 : once || share <= kLargeShare ? 3 : 4;
        if (enough) return;
        if (!once)
            lost[s] *= rule.tolerance;  // what a basis that is orthogonal to the tolerance leaves of it
        for (std::int64_t row = 0; row < count; ++row) first(s)[row] += sum.second[row];
    }

    // Rows of the basis that a pass over a stream reads, once for an update and once for dots, and the
    // vector.
    std::int64_t rows_read(std::int64_t s, int number) const {
        const std::int64_t count = streams[s].count, near = rule.first_rows(count);
        return 1 + (number == 0 ? near : number == 1 ? near + count : 2 * count);
    }

    // Elements that the tasks of a pass read, as far as is known; a stream of one task reads all in the
    // first.
    double work(int number) const {
        std::int64_t elements = 0;
        for (std::int64_t s = 0; s < num_streams; ++s) {
            const std::int64_t size = streams[s].size;
            if (sums[s].tasks > 1) {
                if (number < sums[s].passes) elements += size * rows_read(s, number);
            } else if (number == 0) {
                elements += size * (rows_read(s, 0) + rows_read(s, 1));
            }
        }
        return static_cast<double>(elements);
    }

    // Partial sums that are added after a pass.
    double sums_added(int number) const {
        std::int64_t added = 0;
        for (std::int64_t s = 0; s < num_streams; ++s)
            if (sums[s].tasks > 1 && number < sums[s].passes)
                added += sums[s].tasks * partial_size(streams[s]);
        return static_cast<double>(added);
    }

    // A stream of one task does all its passes in the first, while its basis is in the cache.
    void run_task(std::int64_t task, int number) const {
        const std::int64_t s = stream_of(task);
        if (sums[s].tasks > 1) return run(s, task - sums[s].first_task, number);
        for (int own = 0; number == 0 && own < kPasses; ++own) {
            run(s, 0, own);
            reduce(s, own);
        }
    }

    // The stream of task number `task` of all: the last one that starts at or before it.
    std::int64_t stream_of(std::int64_t task) const {
        std::int64_t low = 0, high = num_streams - 1;
        while (low < high) {
            const std::int64_t middle = (low + high + 1) / 2;
            if (sums[middle].first_task <= task) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return low;
    }
};

// Lays the sums of all streams out in one zeroed block; returns null when there is no memory for it.
void* allocate(const Stream* streams, std::int64_t num_streams, std::int64_t& num_tasks) {
    std::size_t doubles = 0;
    for (std::int64_t s = 0; s < num_streams; ++s) {
        const std::int64_t tasks = (streams[s].size + kTaskColumns - 1) / kTaskColumns;
        doubles += static_cast<std::size_t>(2 * streams[s].count + tasks * partial_size(streams[s]));
    }
    const std::size_t header = static_cast<std::size_t>(num_streams) * sizeof(StreamSums);
    void* memory = std::calloc(1, header + doubles * sizeof(double) + 1);
    if (memory == nullptr) return nullptr;
    auto* sums = static_cast<StreamSums*>(memory);
    auto* next = reinterpret_cast<double*>(sums + num_streams);
    num_tasks = 0;
    for (std::int64_t s = 0; s < num_streams; ++s) {
        const std::int64_t tasks = (streams[s].size + kTaskColumns - 1) / kTaskColumns,
                           count = streams[s].count;
        sums[s] = {next, next + count, next + 2 * count, tasks, num_tasks, kPasses};
        next += 2 * count + tasks * partial_size(streams[s]);
        num_tasks += tasks;
    }
    return memory;
}

}  // namespace

bool reorthogonalize(const Stream* streams, std::int64_t num_streams, const Rule& rule, double* coefficients,
                     std::int64_t coefficient_stride, double* norms, double* lost) {
    std::int64_t num_tasks = 0;
    void* memory = allocate(streams, num_streams, num_tasks);
    if (memory == nullptr) return false;
    const Batch batch = {streams, num_streams,  static_cast<StreamSums*>(memory),
                         rule,    coefficients, coefficient_stride,
                         norms,   lost};
    for (int pass = 0; pass < kPasses; ++pass) {
        const double work = batch.work(pass);
        if (work == 0.0) break;  // every stream has done all its passes
        parallel_any_order(num_tasks, work, grain::kReorthogonalize,
                           [&](std::int64_t task) { batch.run_task(task, pass); });
        parallel_any_order(num_streams, batch.sums_added(pass), grain::kReorthogonalizeSums,
                           [&](std::int64_t s) {
                               if (batch.sums[s].tasks > 1) batch.reduce(s, pass);
                           });
    }
    std::free(memory);
    return true;
}

}  // namespace HVP_ISA
}  // namespace hvp
