// Two-pass classical Gram-Schmidt for many streams, in three reads of each basis: the dots of the first pass;
// its update fused, panel by panel, with the dots of the second pass; the second update fused with the norm.
// Work is cut into tasks of fixed width whose partial sums are added in order, so the result does not depend
// on the number of threads. A stream of one task runs all its passes at once, while its basis is in the
// cache.
#include "hvp/reorthogonalize.h"

#include <cstdlib>
#include <type_traits>

#include "reorthogonalize_panel.h"
#include "reorthogonalize_scaled.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kTaskColumns = 16384;
template <typename Q>
constexpr std::int64_t kDotColumns = (16 << 10) / sizeof(Q);  // panel of the first pass
template <>
constexpr std::int64_t kDotColumns<Scaled8> = 8 << 10;  // for its panel, in the L1 cache
constexpr std::int64_t kUpdateColumns = 2048;           // panel of the last pass
// Basis panel of the fused pass, which stays in the L2 cache.
template <typename Q>
constexpr std::int64_t kFusedBytes = (sizeof(Q) < 4 ? 256 : 384) << 10;
constexpr std::int64_t kMaxColumns = 4096;

using Stream = ReorthogonalizeStream;

// Work space of one stream: sums over its tasks, then of each task `count` dots of each pass and two squared
// norms.
struct StreamSums {
    double* second;  // coefficients of the second pass
    double* partial;
    std::int64_t tasks;
    std::int64_t first_task;
};

inline std::int64_t partial_size(const Stream& s) { return 2 * s.count + 2; }

template <typename Q>
inline Window<Q> window(const Stream& s, std::int64_t column, std::int64_t columns) {
    const Q* basis = static_cast<const Q*>(s.basis);
    if constexpr (std::is_same_v<Q, Scaled8>)
        return scaled_window(basis, s.row_stride, s.size, column, columns);
    else
        return {basis + column, s.row_stride, columns};
}

// Calls visit.rows<R>(row, ahead) on row blocks that cover all rows, the incomplete ones first. `ahead` leads
// to the next block, and from the last block to `last_ahead` columns further right in the first rows.
template <int R, typename Visit>
inline void visit_remainder(std::int64_t rest, std::int64_t stride, std::int64_t& row, Visit& visit) {
    if constexpr (R < kRows) {
        if (rest & R) {
            visit.template rows<R>(row, R * stride);
            row += R;
        }
        visit_remainder<2 * R>(rest, stride, row, visit);
    }
}

template <typename Visit>
inline void visit_rows(const Stream& s, std::int64_t columns, bool to_next_panel, Visit visit) {
    std::int64_t row = 0;
    visit_remainder<1>(s.count % kRows, s.row_stride, row, visit);
    for (; row < s.count; row += kRows) {
        const bool last = row + kRows == s.count;
        visit.template rows<kRows>(row, to_next_panel ? columns
                                        : last        ? columns - row * s.row_stride
                                                      : kRows * s.row_stride);
    }
}

template <typename Q, typename P>
struct Dot {
    Window<Q> q;
    const P* panel;
    double* dots;
    template <int R>
    void rows(std::int64_t row, std::int64_t ahead) const {
        dot_rows<R>(q.from(row), panel, ahead, dots + row);
    }
};

// The precision of the panel in dots: fp64, but fp32 (in which the vector is exact) beside a rounded basis.
template <typename Q, typename W>
struct DotPanel {
    using Type = double;
};
template <>
struct DotPanel<Bf16, float> {
    using Type = float;
};
template <>
struct DotPanel<Scaled8, float> {
    using Type = float;
};

template <typename Q, typename Half>
struct Subtract {
    Window<Q> q;
    const double* coefficients;
    double* panel;
    template <int R>
    void rows(std::int64_t row, std::int64_t ahead) const {
        subtract_rows<R, Half>(q.from(row), coefficients + row, ahead, panel);
    }
};

// The precision of an update's short sums: fp32 serves a vector that is rounded to fp32 afterwards.
template <typename Q, typename W>
struct UpdateHalf {
    using Type = Float8;
};
template <>
struct UpdateHalf<Bf16, float> {
    using Type = Unpacked;
};
template <>
struct UpdateHalf<Scaled8, float> {
    using Type = Unpacked;
};
template <typename Q>
struct UpdateHalf<Q, double> {
    using Type = Double8;
};
template <>
struct UpdateHalf<double, float> {
    using Type = Double8;
};

inline std::int64_t at_most(std::int64_t x, std::int64_t limit) { return x < limit ? x : limit; }

template <typename Q, typename W>
void first_dots(const Stream& s, std::int64_t begin, std::int64_t end, double* dots) {
    using P = typename DotPanel<Q, W>::Type;
    alignas(64) P panel[kDotColumns<Q>];
    for (std::int64_t column = begin; column < end; column += kDotColumns<Q>) {
        const std::int64_t columns = at_most(end - column, kDotColumns<Q>);
        load_panel<Q>(static_cast<const W*>(s.vector) + column, columns, panel);
        visit_rows(s, columns, false, Dot<Q, P>{window<Q>(s, column, columns), panel, dots});
    }
}

template <typename Q>
std::int64_t fused_columns(const Stream& s) {
    const std::int64_t column_bytes = (s.count + 1) * static_cast<std::int64_t>(sizeof(Q));
    const std::int64_t fit = kFusedBytes<Q> / column_bytes / 256 * 256;
    return fit < 256 ? 256 : at_most(fit, kMaxColumns);
}

template <typename Q, typename W>
double update_and_dots(const Stream& s, std::int64_t begin, std::int64_t end, const double* first,
                       double* dots) {
    using P = typename DotPanel<Q, W>::Type;
    alignas(64) double panel[kMaxColumns];
    const std::int64_t width = fused_columns<Q>(s);
    double squares = 0.0;
    for (std::int64_t column = begin; column < end; column += width) {
        const std::int64_t columns = at_most(end - column, width);
        W* w = static_cast<W*>(s.vector) + column;
        const Window<Q> q = window<Q>(s, column, columns);
        load_panel<Q>(w, columns, panel);
        visit_rows(s, columns, false, Subtract<Q, typename UpdateHalf<Q, W>::Type>{q, first, panel});
        squares += store_panel<Q>(panel, columns, w);
        if constexpr (std::is_same_v<P, float>) {
            alignas(64) float narrow[kMaxColumns];
            load_panel<Q>(w, columns, narrow);
            visit_rows(s, columns, true, Dot<Q, P>{q, narrow, dots});
        } else {
            visit_rows(s, columns, true, Dot<Q, P>{q, panel, dots});
        }
    }
    return squares;
}

template <typename Q, typename W>
double last_update(const Stream& s, std::int64_t begin, std::int64_t end, const double* second) {
    alignas(64) double panel[kUpdateColumns];
    double squares = 0.0;
    for (std::int64_t column = begin; column < end; column += kUpdateColumns) {
        const std::int64_t columns = at_most(end - column, kUpdateColumns);
        W* w = static_cast<W*>(s.vector) + column;
        load_panel<Q>(w, columns, panel);
        visit_rows(
            s, columns, false,
            Subtract<Q, typename UpdateHalf<Q, W>::Type>{window<Q>(s, column, columns), second, panel});
        squares += store_panel<Q>(panel, columns, w);
    }
    return squares;
}

struct Passes {
    void (*first_dots)(const Stream&, std::int64_t, std::int64_t, double*);
    double (*update_and_dots)(const Stream&, std::int64_t, std::int64_t, const double*, double*);
    double (*last_update)(const Stream&, std::int64_t, std::int64_t, const double*);
};

template <typename Q, typename W>
constexpr Passes passes() {
    return {first_dots<Q, W>, update_and_dots<Q, W>, last_update<Q, W>};
}

Passes passes_of(const Stream& s) {
    const bool single = s.vector_type == Dtype::float32;
    switch (s.basis_type) {
        case Dtype::float32:
            return single ? passes<float, float>() : passes<float, double>();
        case Dtype::bfloat16:
            return single ? passes<Bf16, float>() : passes<Bf16BesideFp64, double>();
        case Dtype::scaled8:
            return single ? passes<Scaled8, float>() : passes<Scaled8, double>();
        default:
            return single ? passes<double, float>() : passes<double, double>();
    }
}

// The whole batch: what the tasks of each pass, and the reductions between them, work on.
struct Batch {
    const Stream* streams;
    std::int64_t num_streams;
    const StreamSums* sums;
    double* coefficients;
    std::int64_t coefficient_stride;
    double* norms;
    double* lost;

    double* first(std::int64_t s) const { return coefficients + s * coefficient_stride; }

    void run(std::int64_t s, std::int64_t task, int pass) const {
        const Stream& stream = streams[s];
        const std::int64_t begin = task * kTaskColumns;
        const std::int64_t end = at_most(stream.size, begin + kTaskColumns);
        double* partial = sums[s].partial + task * partial_size(stream);
        double* squares = partial + 2 * stream.count;
        const Passes p = passes_of(stream);
        if (pass == 0) {
            p.first_dots(stream, begin, end, partial);
        } else if (pass == 1) {
            squares[0] = p.update_and_dots(stream, begin, end, first(s), partial + stream.count);
        } else {
            squares[1] = p.last_update(stream, begin, end, sums[s].second);
        }
    }

    double total(std::int64_t s, std::int64_t entry) const {
        double sum = 0.0;
        for (std::int64_t task = 0; task < sums[s].tasks; ++task)
            sum += sums[s].partial[task * partial_size(streams[s]) + entry];
        return sum;
    }

    void reduce(std::int64_t s, int pass) const {
        const std::int64_t count = streams[s].count;
        if (pass == 0) {
            for (std::int64_t row = 0; row < count; ++row) first(s)[row] = total(s, row);
        } else if (pass == 1) {
            double largest = 0.0;
            for (std::int64_t row = 0; row < count; ++row) {
                const double c = sums[s].second[row] = total(s, count + row);
                const double size = __builtin_fabs(c);
                if (size > largest || size != size) largest = size;  // a NaN stays
                first(s)[row] += c;
            }
            const double norm = __builtin_sqrt(total(s, 2 * count));
            lost[s] = norm == 0.0 ? 0.0 : largest / norm;
        } else {
            norms[s] = __builtin_sqrt(total(s, 2 * count + 1));
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
        doubles += static_cast<std::size_t>(streams[s].count + tasks * partial_size(streams[s]));
    }
    const std::size_t header = static_cast<std::size_t>(num_streams) * sizeof(StreamSums);
    void* memory = std::calloc(1, header + doubles * sizeof(double) + 1);
    if (memory == nullptr) return nullptr;
    auto* sums = static_cast<StreamSums*>(memory);
    auto* next = reinterpret_cast<double*>(sums + num_streams);
    num_tasks = 0;
    for (std::int64_t s = 0; s < num_streams; ++s) {
        const std::int64_t tasks = (streams[s].size + kTaskColumns - 1) / kTaskColumns;
        sums[s] = {next, next + streams[s].count, tasks, num_tasks};
        next += streams[s].count + tasks * partial_size(streams[s]);
        num_tasks += tasks;
    }
    return memory;
}

}  // namespace

bool reorthogonalize(const Stream* streams, std::int64_t num_streams, double* coefficients,
                     std::int64_t coefficient_stride, double* norms, double* lost) {
    std::int64_t num_tasks = 0;
    void* memory = allocate(streams, num_streams, num_tasks);
    if (memory == nullptr) return false;
    const Batch batch = {streams,      num_streams,        static_cast<const StreamSums*>(memory),
                         coefficients, coefficient_stride, norms,
                         lost};
#pragma omp parallel
    for (int pass = 0; pass < 3; ++pass) {
#pragma omp for schedule(dynamic)
        for (std::int64_t task = 0; task < num_tasks; ++task) {
            const std::int64_t s = batch.stream_of(task);
            if (batch.sums[s].tasks > 1) {
                batch.run(s, task - batch.sums[s].first_task, pass);
            } else if (pass == 0) {
                for (int own = 0; own < 3; ++own) {
                    batch.run(s, 0, own);
                    batch.reduce(s, own);
                }
            }
        }
#pragma omp for schedule(dynamic)
        for (std::int64_t s = 0; s < num_streams; ++s)
            if (batch.sums[s].tasks > 1) batch.reduce(s, pass);
    }
    std::free(memory);
    return true;
}

}  // namespace HVP_ISA
}  // namespace hvp
