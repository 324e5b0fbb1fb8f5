// Implicit QL with Wilkinson shifts that carries only the first row of the eigenvectors, for a group of
// matrices in lockstep: index-major arrays with one lane per matrix, lanes masked while they wait for the
// others. What a lane computes does not depend on its neighbours. Each matrix is scaled by a power of two to
// norm about 1 first.
#include "hvp/tridiagonal.h"

#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr int kLanes = 16;  // two AVX-512 registers: one chain of square root and division hides the other
constexpr int kMaxSweeps = 120;
constexpr double kEps = 2.220446049250313e-16;
constexpr double kTiny = 1e-140;  // below it squares lose accuracy
constexpr double kGrow = 0x1p460;
constexpr double kShrink = 0x1p-460;

// One group of matrices; each pointer leads to arrays [index][lane].
struct Group {
    double* d;  // diagonal, then the nodes
    double* e;  // off-diagonal
    double* z;  // first row of the eigenvectors
    std::int64_t n;
};

// Per-lane state of one sweep; truth values are 0.0 and 1.0 so that all lanes have one width.
struct Sweep {
    double s[kLanes], c[kLanes], p[kLanes], g[kLanes], end[kLanes], live[kLanes];
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

// Finds for each lane the end of the unreduced part that starts at l; returns the largest one. Scanning to
// the end every time costs less than asking at each index whether all lanes have found theirs.
std::int64_t find_ends(const Group& t, std::int64_t l, Sweep& w) {
    for (int first = 0; first < kLanes; first += kWidth) {
        Vec end = Vec{} + static_cast<double>(t.n - 1);
        Vec d, size_low, size_high, e, size_e;
        load(t.d + l * kLanes + first, d);
        magnitude(d, size_low);
        for (std::int64_t i = l; i < t.n - 1; ++i) {
            const double index = static_cast<double>(i);
            load(t.d + (i + 1) * kLanes + first, d);
            load(t.e + i * kLanes + first, e);
            magnitude(d, size_high);
            magnitude(e, size_e);
            const Mask closes = size_e <= kEps * (size_low + size_high) + kEps * kEps;
            end = closes & (end > index) ? Vec{} + index : end;
            size_low = size_high;
        }
        store(end, w.end + first);
    }
    double last = 0.0;
    for (int k = 0; k < kLanes; ++k) last = w.end[k] > last ? w.end[k] : last;
    return static_cast<std::int64_t>(last);
}

void start_sweep(const Group& t, std::int64_t l, Sweep& w) {
    for (int k = 0; k < kLanes; ++k) {
        w.live[k] = w.end[k] > static_cast<double>(l) ? 1.0 : 0.0;
        w.s[k] = w.c[k] = 1.0;
        w.p[k] = w.g[k] = 0.0;
        if (w.live[k] == 0.0) continue;
        const double first = t.d[l * kLanes + k];
        const double e = t.e[l * kLanes + k];
        const double ratio = (t.d[(l + 1) * kLanes + k] - first) / (2.0 * e);
        const double root = __builtin_copysign(__builtin_sqrt(ratio * ratio + 1.0), ratio);
        w.g[k] = t.d[static_cast<std::int64_t>(w.end[k]) * kLanes + k] - first + e / (ratio + root);
    }
}

// y = 1 / sqrt(x) for positive x. Square root and division together would take half of the time: AVX-512 has
// an estimate of 14 bits, which two Newton steps bring to full precision but for the last bit or two.
inline __attribute__((always_inline)) void inverse_root(const Vec& x, Vec& y) {
#if defined(__AVX512F__)
    const Vec halved = 0.5 * x;
    y = _mm512_maskz_rsqrt14_pd(0xff, x);
    y = y * (1.5 - halved * y * y);
    y = y * (1.5 - halved * y * y);
#else
    for (int k = 0; k < kWidth; ++k) y[k] = 1.0 / __builtin_sqrt(x[k]);
#endif
}

// One implicit QL sweep: rotations in the planes (i, i + 1), i = last - 1 .. l, of all lanes whose unreduced
// part reaches beyond i. The state stays in registers from one rotation to the next; two registers of lanes
// hide each other's latency.
void sweep(const Group& t, std::int64_t l, std::int64_t last, Sweep& w) {
    constexpr int kHalves = kLanes / kWidth;
    Vec ws[kHalves], wc[kHalves], wp[kHalves], wg[kHalves], end[kHalves], live[kHalves];
    Vec high_d[kHalves], high_e[kHalves], high_z[kHalves];
    for (int h = 0; h < kHalves; ++h) {
        load(w.s + h * kWidth, ws[h]);
        load(w.c + h * kWidth, wc[h]);
        load(w.p + h * kWidth, wp[h]);
        load(w.g + h * kWidth, wg[h]);
        load(w.end + h * kWidth, end[h]);
        load(w.live + h * kWidth, live[h]);
        load(t.d + last * kLanes + h * kWidth, high_d[h]);
        load(t.e + last * kLanes + h * kWidth, high_e[h]);
        load(t.z + last * kLanes + h * kWidth, high_z[h]);
    }
    for (std::int64_t i = last - 1; i >= l; --i) {
        const double index = static_cast<double>(i);
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
            const std::int64_t at = i * kLanes + h * kWidth;
            Vec low_d, low_e, low_z, size_f, size_g, inverse;
            load(t.d + at, low_d);
            load(t.e + at, low_e);
            load(t.z + at, low_z);
            const Mask on = (end[h] > index) & (live[h] != 0.0);
            const Vec f = ws[h] * low_e;
            const Vec b = wc[h] * low_e;
            magnitude(f, size_f);
            magnitude(wg[h], size_g);
            const Mask small = (size_f < kTiny) & (size_g < kTiny);
            const Vec scale = small ? Vec{} + kGrow : Vec{} + 1.0;
            const Vec sf = f * scale;
            const Vec sg = wg[h] * scale;
            const Vec square = sf * sf + sg * sg;
            const Mask split = square == 0.0;  // the matrix falls apart here: the sweep of this lane ends
            const Mask turn = on & ~split;
            const Vec safe = split ? Vec{} + 1.0 : square;
            inverse_root(safe, inverse);
            const Vec root = square * inverse * (small ? Vec{} + kShrink : Vec{} + 1.0);
            const Vec s = sf * inverse;
            const Vec c = sg * inverse;
            const Vec g = high_d[h] - wp[h];
            const Vec r = (low_d - g) * s + 2.0 * c * b;
            const Vec p = s * r;
            store(turn ? g + p : on ? g : high_d[h], t.d + at + kLanes);
            store(on ? root : high_e[h], t.e + at + kLanes);
            store(turn ? s * low_z + c * high_z[h] : high_z[h], t.z + at + kLanes);
            high_z[h] = turn ? c * low_z - s * high_z[h] : low_z;
            high_d[h] = low_d;
            high_e[h] = low_e;
            wg[h] = turn ? c * r - b : wg[h];
            ws[h] = turn ? s : ws[h];
            wc[h] = turn ? c : wc[h];
            wp[h] = turn ? p : wp[h];
            live[h] = on & split ? Vec{} : live[h];
        }
    }
    for (int h = 0; h < kHalves; ++h) {
        store(high_z[h], t.z + l * kLanes + h * kWidth);
        store(wp[h], w.p + h * kWidth);
        store(wg[h], w.g + h * kWidth);
        store(live[h], w.live + h * kWidth);
    }
}

// Diagonalises all lanes; false when one of them does not converge.
bool diagonalise(const Group& t) {
    Sweep w;
    for (std::int64_t l = 0; l < t.n - 1; ++l) {
        int sweeps = 0;
        for (std::int64_t last = find_ends(t, l, w); last > l; last = find_ends(t, l, w)) {
            if (++sweeps > kMaxSweeps) return false;
            start_sweep(t, l, w);
            sweep(t, l, last, w);
            for (int k = 0; k < kLanes; ++k) {
                const auto end = static_cast<std::int64_t>(w.end[k]);
                if (end <= l) continue;
                if (w.live[k] != 0.0) {
                    t.d[l * kLanes + k] -= w.p[k];
                    t.e[l * kLanes + k] = w.g[k];
                }
                t.e[end * kLanes + k] = 0.0;
            }
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

}  // namespace

std::int64_t tridiagonal_quadrature(const double* alphas, const double* betas, const std::int64_t* steps,
                                    const std::int64_t* order, std::int64_t num, std::int64_t m,
                                    double* nodes, double* weights) {
    std::int64_t status = kTridiagonalDone;
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t begin = 0; begin < num; begin += kLanes) {
        const int lanes = num - begin < kLanes ? static_cast<int>(num - begin) : kLanes;
        Group t = {nullptr, nullptr, nullptr, 1};
        for (int k = 0; k < lanes; ++k) t.n = steps[order[begin + k]] > t.n ? steps[order[begin + k]] : t.n;
        const std::int64_t size = t.n * kLanes;
        const auto bytes = static_cast<std::size_t>(3 * size) * sizeof(double);
        t.d = static_cast<double*>(std::aligned_alloc(64, bytes));
        std::int64_t outcome = kTridiagonalNoMemory;
        if (t.d != nullptr) {
            std::memset(t.d, 0, bytes);
            t.e = t.d + size;
            t.z = t.e + size;
            int exponents[kLanes];
            for (int k = 0; k < lanes; ++k) {
                const std::int64_t row = order[begin + k];
                exponents[k] = exponent_of(alphas + row * m, betas + row * (m - 1), steps[row]);
                load_lane(t, k, alphas + row * m, betas + row * (m - 1), steps[row], exponents[k]);
            }
            outcome = diagonalise(t) ? kTridiagonalDone : order[begin];
            for (int k = 0; k < lanes && outcome == kTridiagonalDone; ++k) {
                const std::int64_t row = order[begin + k];
                store_lane(t, k, steps[row], m, exponents[k], nodes + row * m, weights + row * m);
            }
        }
        std::free(t.d);
        if (outcome != kTridiagonalDone) {
#pragma omp atomic write
            status = outcome;
        }
    }
    return status;
}

}  // namespace HVP_ISA
}  // namespace hvp
