// One pass of reorthogonalize.cpp over some columns of one stream, panel by panel: what is subtracted from
// the vector, and the dots of what is left.
#pragma once

#include <type_traits>

#include "hvp/reorthogonalize.h"
#include "reorthogonalize_pair.h"
#include "reorthogonalize_scaled.h"

namespace hvp {
namespace HVP_ISA {
namespace {

template <typename Q>
constexpr std::int64_t kDotColumns = (16 << 10) / sizeof(Q);  // panel of the first pass
constexpr std::int64_t kUpdateColumns = 2048;                 // panel of the last pass
// Basis panel of the fused pass, which stays in the L2 cache.
template <typename Q>
constexpr std::int64_t kFusedBytes = (sizeof(Q) < 4 ? 256 : 384) << 10;
constexpr std::int64_t kMaxColumns = 4096;

using Stream = ReorthogonalizeStream;

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
    if constexpr (R < Visit::kMost) {
        if (rest & R) {
            visit.template rows<R>(row, R * stride);
            row += R;
        }
        visit_remainder<2 * R>(rest, stride, row, visit);
    }
}

template <typename Visit>
inline void visit_rows(const Stream& s, std::int64_t columns, bool to_next_panel, Visit visit) {
    constexpr int kMost = Visit::kMost;
    std::int64_t row = 0;
    visit_remainder<1>(s.count % kMost, s.row_stride, row, visit);
    for (; row < s.count; row += kMost) {
        const bool last = row + kMost == s.count;
        visit.template rows<kMost>(row, to_next_panel ? columns
                                        : last        ? columns - row * s.row_stride
                                                      : kMost * s.row_stride);
    }
}

template <typename Q, typename P>
struct Dot {
    static constexpr int kMost = kRows;
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
    static constexpr int kMost = kRows;
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

// The same for the last row beside the vector.
template <typename Q>
struct DotPair {
    static constexpr int kMost = kPairRows;
    Window<Q> q;
    const double *panel, *last;
    double *dots, *last_dots;
    template <int R>
    void rows(std::int64_t row, std::int64_t ahead) const {
        dot_rows<R>(q.from(row), panel, last, ahead, dots + row, last_dots + row);
    }
};

template <typename Q, typename Half>
struct SubtractPair {
    static constexpr int kMost = kPairRows;
    Window<Q> q;
    const double *coefficients, *last_coefficients;
    double *panel, *last;
    template <int R>
    void rows(std::int64_t row, std::int64_t ahead) const {
        subtract_rows<R, Q, Half>(q.from(row), coefficients + row, last_coefficients + row, ahead, panel,
                                  last);
    }
};

inline std::int64_t at_most(std::int64_t x, std::int64_t limit) { return x < limit ? x : limit; }

// What a pass does to each panel: subtracts rows from the vector (and the last row), then takes dots.
struct Pass {
    std::int64_t updated = 0;              // how many of the last rows are subtracted
    std::int64_t measured = 0;             // how many of the last rows the dots are taken with
    const double* coefficients = nullptr;  // of the updated rows
    const double* last = nullptr;  // what is subtracted from the last row, which is left alone if null
    double* dots = nullptr;        // with the measured rows
    double* last_dots = nullptr;   // of the last row, which is not looked at if null
};

template <typename Q>
std::int64_t panel_columns(const Stream& s, const Pass& pass) {
    if (pass.last != nullptr || pass.last_dots != nullptr) return kUpdateColumns;
    if (pass.measured == 0) return kUpdateColumns;
    if (pass.updated < s.count) return at_most(kDotColumns<Q>, kMaxColumns);
    const std::int64_t column_bytes = (s.count + 1) * static_cast<std::int64_t>(sizeof(Q));
    const std::int64_t fit = kFusedBytes<Q> / column_bytes / 256 * 256;
    return fit < 256 ? 256 : at_most(fit, kMaxColumns);
}

// The last `rows` rows of a stream.
inline Stream last_rows(const Stream& s, std::int64_t rows, std::int64_t element) {
    Stream tail = s;
    tail.basis = static_cast<char*>(s.basis) + (s.count - rows) * s.row_stride * element;
    tail.count = rows;
    return tail;
}

// Runs a pass over some columns of a stream; returns the squared norm of what is left of the vector.
template <typename Q, typename W>
double run_pass(const Stream& s, std::int64_t begin, std::int64_t end, const Pass& pass) {
    using P = typename DotPanel<Q, W>::Type;
    using Half = typename UpdateHalf<Q, W>::Type;
    constexpr bool kPairs = std::is_same_v<Q, W>;
    alignas(64) double panel[kMaxColumns];
    alignas(64) double last[kPairs ? kUpdateColumns : 1];
    const Stream updated = last_rows(s, pass.updated, sizeof(Q)),
                 measured = last_rows(s, pass.measured, sizeof(Q));
    const std::int64_t width = panel_columns<Q>(s, pass);
    const bool fused = pass.updated > 0 && pass.updated == pass.measured;
    double squares = 0.0;
    for (std::int64_t column = begin; column < end; column += width) {
        const std::int64_t columns = at_most(end - column, width);
        W* w = static_cast<W*>(s.vector) + column;
        load_panel<Q>(w, columns, panel);
        if constexpr (kPairs) {
            Q* row = static_cast<Q*>(s.basis) + (s.count - 1) * s.row_stride + column;
            if (pass.last != nullptr || pass.last_dots != nullptr) load_panel<Q>(row, columns, last);
            if (pass.last != nullptr) {
                visit_rows(updated, columns, false,
                           SubtractPair<Q, Half>{window<Q>(updated, column, columns), pass.coefficients,
                                                 pass.last, panel, last});
                store_panel<Q>(last, columns, row);
            }
        }
        if (pass.updated > 0) {
            if (pass.last == nullptr)
                visit_rows(updated, columns, false,
                           Subtract<Q, Half>{window<Q>(updated, column, columns), pass.coefficients, panel});
            store_panel<Q>(panel, columns, w);
        }
        squares += sum_of_squares<Q>(panel, columns);
        if (pass.measured == 0) continue;
        const Window<Q> q = window<Q>(measured, column, columns);
        if constexpr (kPairs) {
            if (pass.last_dots != nullptr) {
                visit_rows(measured, columns, fused, DotPair<Q>{q, panel, last, pass.dots, pass.last_dots});
                continue;
            }
        }
        if constexpr (std::is_same_v<P, float>) {
            alignas(64) float narrow[kMaxColumns];
            load_panel<Q>(w, columns, narrow);
            visit_rows(measured, columns, fused, Dot<Q, P>{q, narrow, pass.dots});
        } else {
            visit_rows(measured, columns, fused, Dot<Q, P>{q, panel, pass.dots});
        }
    }
    return squares;
}

using RunPass = double (*)(const Stream&, std::int64_t, std::int64_t, const Pass&);

RunPass run_pass_of(const Stream& s) {
    const bool single = s.vector_type == Dtype::float32;
    switch (s.basis_type) {
        case Dtype::float32:
            return single ? run_pass<float, float> : run_pass<float, double>;
        case Dtype::bfloat16:
            return single ? run_pass<Bf16, float> : run_pass<Bf16BesideFp64, double>;
        case Dtype::scaled8:
            return single ? run_pass<Scaled8, float> : run_pass<Scaled8, double>;
        default:
            return single ? run_pass<double, float> : run_pass<double, double>;
    }
}

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
