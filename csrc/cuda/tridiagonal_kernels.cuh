// Device code of the tridiagonal quadrature: implicit QL with Wilkinson shifts that carries only the first
// row of the eigenvectors, one thread per matrix. The arrays of a warp's 32 matrices are interleaved, so that
// lanes at the same index read adjacent words.
#pragma once

#include "hvp/cuda/tridiagonal.h"
#include "warp.cuh"

namespace hvp {
namespace cuda {

constexpr int kTridiagonalThreads =
    kWarpSize;  // one warp per block spreads few matrices over many processors
constexpr int kMaxSweeps = 120;
constexpr double kEps = 2.220446049250313e-16;
constexpr double kTiny = 1e-140;  // below it squares lose accuracy
constexpr int kGrowth = 460;      // power of two that brings them back

// One matrix; element i of each array is at i * kWarpSize.
struct Tridiagonal {
    double* d;  // diagonal, then the nodes
    double* e;  // off-diagonal
    double* z;  // first row of the eigenvectors
    std::int64_t n;
};

// The power of two that brings the largest entry into [1/2, 1).
__device__ inline int exponent_of(const double* alpha, const double* beta, std::int64_t n) {
    double largest = 0.0;
    for (std::int64_t i = 0; i < n; ++i) largest = fmax(largest, fabs(alpha[i]));
    for (std::int64_t i = 0; i + 1 < n; ++i) largest = fmax(largest, fabs(beta[i]));
    int exponent = 0;
    if (largest > 0.0) (void)frexp(largest, &exponent);
    return exponent;
}

// The end of the unreduced part that starts at l.
__device__ inline std::int64_t find_end(const Tridiagonal& t, std::int64_t l) {
    std::int64_t i = l;
    double low = fabs(t.d[l * kWarpSize]);
    for (; i + 1 < t.n; ++i) {
        const double high = fabs(t.d[(i + 1) * kWarpSize]);
        if (fabs(t.e[i * kWarpSize]) <= kEps * (low + high) + kEps * kEps) break;
        low = high;
    }
    return i;
}

// One implicit QL sweep over the unreduced part l .. last: rotations in the planes (i, i + 1), i = last - 1
// .. l.
__device__ inline void sweep(const Tridiagonal& t, std::int64_t l, std::int64_t last) {
    const double corner = t.d[l * kWarpSize], first_e = t.e[l * kWarpSize];
    const double ratio = (t.d[(l + 1) * kWarpSize] - corner) / (2.0 * first_e);
    const double root_of_ratio = copysign(sqrt(ratio * ratio + 1.0), ratio);
    double high_d = t.d[last * kWarpSize], high_z = t.z[last * kWarpSize];
    double g = high_d - corner + first_e / (ratio + root_of_ratio);
    double s = 1.0, c = 1.0, p = 0.0;
    for (std::int64_t i = last - 1; i >= l; --i) {
        const double low_d = t.d[i * kWarpSize], low_e = t.e[i * kWarpSize], low_z = t.z[i * kWarpSize];
        const double f = s * low_e, b = c * low_e;
        const int growth = fabs(f) < kTiny && fabs(g) < kTiny ? kGrowth : 0;
        const double grown_f = growth == 0 ? f : ldexp(f, growth),
                     grown_g = growth == 0 ? g : ldexp(g, growth);
        const double root = sqrt(grown_f * grown_f + grown_g * grown_g);
        t.e[(i + 1) * kWarpSize] = growth == 0 ? root : ldexp(root, -growth);
        if (root == 0.0) {  // the matrix falls apart here
            t.d[(i + 1) * kWarpSize] = high_d - p;
            t.z[(i + 1) * kWarpSize] = high_z;
            t.e[last * kWarpSize] = 0.0;
            return;
        }
        s = grown_f / root;
        c = grown_g / root;
        const double shifted = high_d - p;
        const double r = (low_d - shifted) * s + 2.0 * c * b;
        p = s * r;
        t.d[(i + 1) * kWarpSize] = shifted + p;
        t.z[(i + 1) * kWarpSize] = s * low_z + c * high_z;
        high_z = c * low_z - s * high_z;
        high_d = low_d;
        g = c * r - b;
    }
    t.z[l * kWarpSize] = high_z;
    t.d[l * kWarpSize] = high_d - p;
    t.e[l * kWarpSize] = g;
    t.e[last * kWarpSize] = 0.0;
}

__device__ inline bool diagonalise(const Tridiagonal& t) {
    for (std::int64_t l = 0; l + 1 < t.n; ++l) {
        int sweeps = 0;
        for (std::int64_t last = find_end(t, l); last > l; last = find_end(t, l)) {
            if (++sweeps > kMaxSweeps) return false;
            sweep(t, l, last);
        }
    }
    return true;
}

// Writes the quadrature: nodes sorted by insertion, for QL delivers them nearly in order; weights of sum 1.
__device__ inline void write_quadrature(const Tridiagonal& t, std::int64_t m, int exponent, double* nodes,
                                        double* weights) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < t.n; ++i) {
        const double node = t.d[i * kWarpSize], weight = t.z[i * kWarpSize] * t.z[i * kWarpSize];
        std::int64_t place = i;
        for (; place > 0 && nodes[place - 1] > node; --place) {
            nodes[place] = nodes[place - 1];
            weights[place] = weights[place - 1];
        }
        nodes[place] = node;
        weights[place] = weight;
        sum += weight;
    }
    for (std::int64_t i = 0; i < t.n; ++i) {
        nodes[i] = ldexp(nodes[i], exponent);
        weights[i] /= sum;
    }
    for (std::int64_t i = t.n; i < m; ++i) {
        nodes[i] = nodes[t.n - 1];
        weights[i] = 0.0;
    }
}

__global__ void __launch_bounds__(kTridiagonalThreads)
    quadrature(std::int64_t num, std::int64_t m, TridiagonalArrays arrays) {
    const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTridiagonalThreads + threadIdx.x;
    if (index >= num) return;
    const std::int64_t size = m * kWarpSize, steps = arrays.steps[index];
    double* memory = static_cast<double*>(arrays.workspace) + blockIdx.x * 3 * size + threadIdx.x;
    const Tridiagonal t = {memory, memory + size, memory + 2 * size, steps < 1 ? 1 : steps > m ? m : steps};
    const double *alpha = arrays.alphas + index * m, *beta = arrays.betas + index * (m - 1);
    const int exponent = exponent_of(alpha, beta, t.n);
    for (std::int64_t i = 0; i < t.n; ++i) {
        t.d[i * kWarpSize] = ldexp(alpha[i], -exponent);
        t.e[i * kWarpSize] = i + 1 < t.n ? ldexp(beta[i], -exponent) : 0.0;
        t.z[i * kWarpSize] = i == 0 ? 1.0 : 0.0;
    }
    const bool done = diagonalise(t);
    write_quadrature(t, m, exponent, arrays.nodes + index * m, arrays.weights + index * m);
    // -1 is the largest unsigned number: the smallest failing index wins, whatever the order.
    if (!done)
        atomicMin(reinterpret_cast<unsigned long long*>(arrays.failed),
                  static_cast<unsigned long long>(index));
}

__global__ void clear_failed(std::int64_t* failed) { *failed = -1; }

}  // namespace cuda
}  // namespace hvp
