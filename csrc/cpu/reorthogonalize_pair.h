// Inner loops of reorthogonalize.cpp on two panels at once, those of a vector and of the last row of its
// basis, which are of one type: what is read of the basis serves both.
#pragma once

#include "reorthogonalize_panel.h"

namespace hvp {
namespace HVP_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kPairRows = kRows;
#else
constexpr int kPairRows = kRows / 2;  // with twice as many sums as dot_rows has, per row
#endif

// dots[r] += <row r, panel>, last_dots[r] += <row r, last>.
template <int R, typename Q>
void dot_rows(const Window<Q>& q, const double* panel, const double* last, std::int64_t ahead, double* dots,
              double* last_dots) {
    Double8 sums[R] = {}, last_sums[R] = {};
    const std::int64_t whole = q.columns - q.columns % kStep<Q>;
    for (std::int64_t i = 0; i < whole; i += kStep<Q>) {
        for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + i, ahead);
        Double8 low, high, last_low, last_high;
        std::memcpy(&low, panel + i, sizeof low);
        std::memcpy(&high, panel + i + kStep<Q> / 2, sizeof high);
        std::memcpy(&last_low, last + i, sizeof low);
        std::memcpy(&last_high, last + i + kStep<Q> / 2, sizeof high);
        for (int r = 0; r < R; ++r) {
            typename Group<Q>::Half a, b;
            Double8 x, y;
            unpack(q.data + r * q.stride + i, a, b);
            convert(a, x);
            convert(b, y);
            sums[r] += low * x;
            sums[r] += high * y;
            last_sums[r] += last_low * x;
            last_sums[r] += last_high * y;
        }
    }
    for (int r = 0; r < R; ++r) {
        double sum = 0.0, last_sum = 0.0;
        for (std::int64_t i = whole; i < q.columns; ++i) {
            const double x = static_cast<double>(q.data[r * q.stride + i]);
            sum += panel[i] * x;
            last_sum += last[i] * x;
        }
        for (int lane = 0; lane < 8; ++lane) {
            sum += sums[r][lane];
            last_sum += last_sums[r][lane];
        }
        dots[r] += sum;
        last_dots[r] += last_sum;
    }
}

// panel -= sum_r c[r] * row r, last -= sum_r d[r] * row r.
template <int R, typename Q, typename Half>
void subtract_rows(const Window<Q>& q, const double* c, const double* d, std::int64_t ahead, double* panel,
                   double* last) {
    using Scalar = decltype(Half{}[0] + Half{}[0]);
    Half factors[R], last_factors[R];
    for (int r = 0; r < R; ++r) {
        factors[r] = Half{} + static_cast<Scalar>(c[r]);
        last_factors[r] = Half{} + static_cast<Scalar>(d[r]);
    }
    const std::int64_t whole = q.columns - q.columns % kStep<Q>;
    for (std::int64_t i = 0; i < whole; i += kStep<Q>) {
        for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + i, ahead);
        Half low = {}, high = {}, last_low = {}, last_high = {};
        for (int r = 0; r < R; ++r) {
            typename Group<Q>::Half a, b;
            Half x, y;
            unpack(q.data + r * q.stride + i, a, b);
            convert(a, x);
            convert(b, y);
            low += factors[r] * x;
            high += factors[r] * y;
            last_low += last_factors[r] * x;
            last_high += last_factors[r] * y;
        }
        subtract(low, panel + i);
        subtract(high, panel + i + kStep<Q> / 2);
        subtract(last_low, last + i);
        subtract(last_high, last + i + kStep<Q> / 2);
    }
    for (std::int64_t i = whole; i < q.columns; ++i)
        for (int r = 0; r < R; ++r) {
            const double x = static_cast<double>(q.data[r * q.stride + i]);
            panel[i] -= c[r] * x;
            last[i] -= d[r] * x;
        }
}

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
