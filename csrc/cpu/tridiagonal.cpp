// Implicit QL with Wilkinson shifts that carries only the first row of the eigenvectors, for a group of
// matrices in lockstep: index-major arrays with one lane per matrix. Every pass takes each lane through one
// sweep of its own unreduced part, wherever that is, so that no lane waits for another one's eigenvalue; and
// looks for the lanes' next parts on the way. What a lane computes does not depend on its neighbours. Each
// matrix is scaled by a power of two to norm about 1 first.
#include "hvp/tridiagonal.h"

#include <cstdlib>
#include <cstring>

#include "grains.h"
#include "parallel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr int kLanes = 16;  // two AVX-512 registers: one chain of square root and division hides the other
constexpr std::int64_t kMaxPassesPerNode = 60;
constexpr double kEps = 2.220446049250313e-16;
constexpr double kTiny = 1e-280;  // a squared rotation vector below it is zero beside a norm of 1

// One group of matrices; each pointer leads to arrays [index][lane].
struct Group {
    double* d;  // diagonal, then the nodes
    double* e;  // off-diagonal
    double* z;  // first row of the eigenvectors
    std::int64_t n;
};

// Per-lane state of one pass. A lane sweeps the unreduced part begin..end; it idles where the two are equal.
// The pass leaves the smallest index at or above begin where the matrix falls apart in next[0], and the
// second smallest in next[1].
struct Pass {
    double begin[kLanes], end[kLanes], g[kLanes];
    double next[2][kLanes];
};

using Vec = double __attribute__((vector_size(64)));
using Mask = long long __attribute__((vector_size(64)));
constexpr int kWidth = 8;

inline __attribute__((always_inline)) void load(const double* from, Vec& to) {
    std::memcpy(&to, from, sizeof to);
}
inline __attribute__((always_inline)) void store(const Vec& from, double* to) {
    std::memcpy(to, &from, sizeof from);
}
inline __attribute__((always_inline)) void magnitude(const Vec& x, Vec& y) { y = x < 0.0 ? -x : x; }

// The Wilkinson shift of every lane that has a part to sweep.
void shift(const Group& t, Pass& w) {
    for (int k = 0; k < kLanes; ++k) {
        const auto begin = static_cast<std::int64_t>(w.begin[k]);
        const auto end = static_cast<std::int64_t>(w.end[k]);
        w.g[k] = 0.0;
        if (begin == end) continue;
        const double first = t.d[begin * kLanes + k];
        const double e = t.e[begin * kLanes + k];
        const double ratio = (t.d[(begin + 1) * kLanes + k] - first) / (2.0 * e);
        const double root = __builtin_copysign(__builtin_sqrt(ratio * ratio + 1.0), ratio);
        w.g[k] = t.d[end * kLanes + k] - first + e / (ratio + root);
    }
}

// y = 1 / sqrt(x) for positive x. Square root and division together would take half of the time: AVX-512 has
// an estimate y0 of 14 bits, and with r = 1 - x y0^2 the series y0 (1 + r/2 + 3 r^2/8 + 5 r^3/16) has 53.
inline __attribute__((always_inline)) void inverse_root(const Vec& x, Vec& y) {
#if defined(__AVX512F__)
    const Vec estimate = _mm512_maskz_rsqrt14_pd(0xff, x);
    const Vec rest = 1.0 - (x * estimate) * estimate;
    y = estimate + (estimate * rest) * (0.5 + rest * (0.375 + rest * 0.3125));
#else
    for (int k = 0; k < kWidth; ++k) y[k] = 1.0 / __builtin_sqrt(x[k]);
#endif
}

// One implicit QL sweep of every lane: rotations in the planes (i, i + 1), i = n - 2 .. low, each lane taking
// part from end - 1 down to begin. The state stays in registers from one rotation to the next; two registers
// of lanes hide each other's latency. A lane that has no part to sweep passes its entries through unchanged.
void pass(const Group& t, std::int64_t low, Pass& w) {
    constexpr int kHalves = kLanes / kWidth;
    Vec ws[kHalves], wc[kHalves], wp[kHalves], wg[kHalves], begin[kHalves], end[kHalves];
    Vec high_d[kHalves], high_e[kHalves], high_z[kHalves], size_above[kHalves], next[kHalves], after[kHalves];
    const std::int64_t last = t.n - 1;
    for (int h = 0; h < kHalves; ++h) {
        ws[h] = wc[h] = Vec{} + 1.0;
        wp[h] = Vec{};
        size_above[h] = Vec{};
        next[h] = after[h] = Vec{} + static_cast<double>(last);
        load(w.g + h * kWidth, wg[h]);
        load(w.begin + h * kWidth, begin[h]);
        load(w.end + h * kWidth, end[h]);
        load(t.d + last * kLanes + h * kWidth, high_d[h]);
        load(t.z + last * kLanes + h * kWidth, high_z[h]);
        high_e[h] = Vec{};
    }
    for (std::int64_t i = last - 1; i >= low - 1; --i) {
        const double index = static_cast<double>(i);
        const std::int64_t from = i < low ? low : i;  // the last turn only writes what the others left open
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
            const std::int64_t at = from * kLanes + h * kWidth;
            Vec low_d, low_e, low_z, inverse, size_d, size_e;
            load(t.d + at, low_d);
            load(t.e + at, low_e);
            load(t.z + at, low_z);
            const Vec f = ws[h] * low_e;
            const Vec b = wc[h] * low_e;
            const Vec square = f * f + wg[h] * wg[h];
            // Where the square is zero the matrix falls apart: the sweep of this lane ends.
            const Mask on = (end[h] > index) & (begin[h] <= index);
            const Mask turn = on & (square > kTiny);
            inverse_root(square, inverse);
            const Vec s = f * inverse;
            const Vec c = wg[h] * inverse;
            const Vec g = high_d[h] - wp[h];
            const Vec r = (low_d - g) * s + 2.0 * c * b;
            const Vec p = turn ? s * r : Vec{};
            const Vec root = turn & (end[h] > index + 1.0) ? square * inverse : Vec{};
            const Vec d = g + p;
            const Vec e = on ? root : high_e[h];
            const std::int64_t to = (i + 1) * kLanes + h * kWidth;
            store(d, t.d + to);
            store(e, t.e + to);
            store(turn ? s * low_z + c * high_z[h] : high_z[h], t.z + to);
            magnitude(d, size_d);
            magnitude(e, size_e);
            const Mask closes =
                (size_e <= kEps * (size_d + size_above[h]) + kEps * kEps) & (begin[h] <= index + 1.0);
            after[h] = closes ? next[h] : after[h];
            next[h] = closes ? Vec{} + (index + 1.0) : next[h];
            size_above[h] = size_d;
            wg[h] = turn ? c * r - b : wg[h];
            end[h] = on & ~turn ? begin[h] : end[h];
            high_z[h] = turn ? c * low_z - s * high_z[h] : low_z;
            high_d[h] = low_d;
            high_e[h] = turn ? wg[h] : low_e;
            ws[h] = turn ? s : ws[h];
            wc[h] = turn ? c : wc[h];
            wp[h] = p;
        }
    }
    for (int h = 0; h < kHalves; ++h) {
        store(next[h], w.next[0] + h * kWidth);
        store(after[h], w.next[1] + h * kWidth);
    }
}

// Diagonalises all lanes; false when one of them does not converge.
bool diagonalise(const Group& t) {
    Pass w;
    for (int k = 0; k < kLanes; ++k) w.begin[k] = w.end[k] = 0.0;
    const auto last = static_cast<double>(t.n - 1);
    std::int64_t low = 0;
    for (std::int64_t passes = 0; low < t.n - 1; ++passes) {
        if (passes > kMaxPassesPerNode * t.n) return false;
        shift(t, w);
        pass(t, low, w);
        low = t.n - 1;
        for (int k = 0; k < kLanes; ++k) {
            w.end[k] = w.next[0][k];
            if (w.begin[k] < last && w.end[k] == w.begin[k]) {
                w.begin[k] += 1.0;
                w.end[k] = w.next[1][k];
            }
            const auto begin = static_cast<std::int64_t>(w.begin[k]);
            low = begin < low ? begin : low;
        }
    }
    return true;
}

// The power of two that brings the largest of the entries to about 1.
int exponent_of(const double* alpha, const double* beta, std::int64_t n) {
    double norm = 0.0;
    for (std::int64_t i = 0; i < n; ++i) norm = __builtin_fmax(norm, __builtin_fabs(alpha[i]));
    for (std::int64_t i = 0; i + 1 < n; ++i) norm = __builtin_fmax(norm, __builtin_fabs(beta[i]));
    return norm == 0.0 ? 0 : __builtin_ilogb(norm);
}

void load_lane(const Group& t, int k, const double* alpha, const double* beta, std::int64_t n, int exponent) {
    for (std::int64_t i = 0; i < t.n; ++i) {
        t.d[i * kLanes + k] = i < n ? __builtin_ldexp(alpha[i], -exponent) : 0.0;
        t.e[i * kLanes + k] = i + 1 < n ? __builtin_ldexp(beta[i], -exponent) : 0.0;
        t.z[i * kLanes + k] = i == 0 ? 1.0 : 0.0;
    }
}

// Writes one lane's quadrature: nodes sorted by insertion, for QL delivers them nearly in order.
void store_lane(const Group& t, int k, std::int64_t n, std::int64_t m, int exponent, double* nodes,
                double* weights) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
        const double node = __builtin_ldexp(t.d[i * kLanes + k], exponent);
        const double weight = t.z[i * kLanes + k] * t.z[i * kLanes + k];
        std::int64_t place = i;
        for (; place > 0 && nodes[place - 1] > node; --place) {
            nodes[place] = nodes[place - 1];
            weights[place] = weights[place - 1];
        }
        nodes[place] = node;
        weights[place] = weight;
        sum += weight;
    }
    for (std::int64_t i = 0; i < n; ++i) weights[i] /= sum;
    for (std::int64_t i = n; i < m; ++i) {
        nodes[i] = nodes[n - 1];
        weights[i] = 0.0;
    }
}

// The matrices of rows order[0] .. order[lanes - 1].
std::int64_t quadrature_of_group(const double* alphas, const double* betas, const std::int64_t* steps,
                                 const std::int64_t* order, int lanes, std::int64_t m, double* nodes,
                                 double* weights) {
    Group t = {nullptr, nullptr, nullptr, 1};
    for (int k = 0; k < lanes; ++k) t.n = steps[order[k]] > t.n ? steps[order[k]] : t.n;
    const std::int64_t size = t.n * kLanes;
    const auto bytes = static_cast<std::size_t>(3 * size) * sizeof(double);
    t.d = static_cast<double*>(std::aligned_alloc(64, bytes));
    if (t.d == nullptr) return kTridiagonalNoMemory;
    std::memset(t.d, 0, bytes);
    t.e = t.d + size;
    t.z = t.e + size;
    int exponents[kLanes];
    for (int k = 0; k < lanes; ++k) {
        const std::int64_t row = order[k];
        exponents[k] = exponent_of(alphas + row * m, betas + row * (m - 1), steps[row]);
        load_lane(t, k, alphas + row * m, betas + row * (m - 1), steps[row], exponents[k]);
    }
    const bool done = diagonalise(t);
    for (int k = 0; k < lanes && done; ++k) {
        const std::int64_t row = order[k];
        store_lane(t, k, steps[row], m, exponents[k], nodes + row * m, weights + row * m);
    }
    std::free(t.d);
    return done ? kTridiagonalDone : order[0];
}

}  // namespace

std::int64_t tridiagonal_quadrature(const double* alphas, const double* betas, const std::int64_t* steps,
                                    const std::int64_t* order, std::int64_t num, std::int64_t m,
                                    double* nodes, double* weights) {
    std::int64_t status = kTridiagonalDone;
    const std::int64_t groups = (num + kLanes - 1) / kLanes;
    double work = 0.0;  // squared sizes of the groups: neighbours in the order are of about the same size
    for (std::int64_t k = 0; k < num; ++k)
        work += static_cast<double>(steps[order[k]] * steps[order[k]]) / kLanes;
    parallel_any_order(groups, work, grain::kTridiagonal, [&](std::int64_t group) {
        const std::int64_t begin = group * kLanes;
        const int lanes = num - begin < kLanes ? static_cast<int>(num - begin) : kLanes;
        const std::int64_t outcome =
            quadrature_of_group(alphas, betas, steps, order + begin, lanes, m, nodes, weights);
        if (outcome != kTridiagonalDone) __atomic_store_n(&status, outcome, __ATOMIC_RELAXED);
    });
    return status;
}

}  // namespace HVP_ISA
}  // namespace hvp
