// Gauss quadrature of tridiagonal matrices on CUDA; see device.h.
#pragma once

#include <cstdint>

#include "hvp/cuda/device.h"

namespace hvp {
namespace cuda {

std::int64_t tridiagonal_workspace_bytes(std::int64_t num, std::int64_t m);

struct TridiagonalArrays {
    const double* alphas;       // (num, m)
    const double* betas;        // (num, m - 1)
    const std::int64_t* steps;  // (num), in 1..m
    double* nodes;              // (num, m), ascending
    double* weights;            // (num, m)
    std::int64_t* failed;       // one number: the first matrix that did not converge, or -1
    void* workspace;
};

// Does what hvp::tridiagonal_quadrature does, one thread per matrix.
const char* tridiagonal_quadrature(std::int64_t num, std::int64_t m, const TridiagonalArrays& arrays,
                                   Queue queue);

}  // namespace cuda
}  // namespace hvp
