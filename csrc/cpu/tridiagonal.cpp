// Implicit QL with Wilkinson shifts that carries only the first row of the eigenvectors, for a group of
// matrices in lockstep: index-major arrays with one lane per matrix, lanes masked while they wait for the
// others. What a lane computes does not depend on its neighbours. Each matrix is scaled by a power of two to
// norm about 1 first.
#include "hvp/tridiagonal.h"

#include <cstdlib>

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
    double s[kLanes], c[kLanes], p[kLanes], g[kLanes], end[kLanes], live[kLanes], open[kLanes];
};

// Finds for each lane the end of the unreduced part that starts at l; returns the largest one.
std::int64_t find_ends(const Group& t, std::int64_t l, Sweep& w) {
    for (int k = 0; k < kLanes; ++k) {
        w.end[k] = static_cast<double>(t.n - 1);
        w.open[k] = 1.0;
    }
    for (std::int64_t i = l; i < t.n - 1; ++i) {
        const double* d = t.d + i * kLanes;
        const double* e = t.e + i * kLanes;
        const double index = static_cast<double>(i);
        double remaining = 0.0;
#pragma omp simd reduction(+ : remaining)
        for (int k = 0; k < kLanes; ++k) {
            const double limit = kEps * (__builtin_fabs(d[k]) + __builtin_fabs(d[k + kLanes])) + kEps * kEps;
            const bool closes = __builtin_fabs(e[k]) <= limit;
            w.end[k] = closes && w.open[k] != 0.0 ? index : w.end[k];
            w.open[k] = closes ? 0.0 : w.open[k];
            remaining += w.open[k];
        }
        if (remaining == 0.0) break;
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

// One rotation in the plane (i, i + 1) of all lanes whose unreduced part reaches beyond i.
void rotate(const Group& t, std::int64_t i, Sweep& w) {
    double* d = t.d + i * kLanes;
    double* e = t.e + i * kLanes;
    double* z = t.z + i * kLanes;
    double *ws = w.s, *wc = w.c, *wp = w.p, *wg = w.g, *live = w.live;
    const double* end = w.end;
    const double index = static_cast<double>(i);
#pragma omp simd
    for (int k = 0; k < kLanes; ++k) {
        const bool on = (index < end[k]) & (live[k] != 0.0);
        const double f = ws[k] * e[k];
        const double b = wc[k] * e[k];
        const bool small = (__builtin_fabs(f) < kTiny) & (__builtin_fabs(wg[k]) < kTiny);
        const double scale = small ? kGrow : 1.0;
        const double sf = f * scale;
        const double sg = wg[k] * scale;
        const double root = __builtin_sqrt(sf * sf + sg * sg);
        const bool split = root == 0.0;  // the matrix falls apart here: the sweep of this lane ends
        const bool turn = on & !split;
        const double inverse = 1.0 / (split ? 1.0 : root);
        const double s = sf * inverse;
        const double c = sg * inverse;
        const double g = d[k + kLanes] - wp[k];
        const double r = (d[k] - g) * s + 2.0 * c * b;
        const double p = s * r;
        d[k + kLanes] = turn ? g + p : on ? g : d[k + kLanes];
        e[k + kLanes] = on ? root * (small ? kShrink : 1.0) : e[k + kLanes];
        const double low = z[k];
        const double high = z[k + kLanes];
        z[k + kLanes] = turn ? s * low + c * high : high;
        z[k] = turn ? c * low - s * high : low;
        wg[k] = turn ? c * r - b : wg[k];
        ws[k] = turn ? s : ws[k];
        wc[k] = turn ? c : wc[k];
        wp[k] = turn ? p : wp[k];
        live[k] = on & split ? 0.0 : live[k];
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
            for (std::int64_t i = last - 1; i >= l; --i) rotate(t, i, w);
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
        t.d = static_cast<double*>(std::calloc(static_cast<std::size_t>(3 * size), sizeof(double)));
        std::int64_t outcome = kTridiagonalNoMemory;
        if (t.d != nullptr) {
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
