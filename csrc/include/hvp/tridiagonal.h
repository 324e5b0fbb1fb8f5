// Gauss quadrature of many symmetric tridiagonal matrices at once.
#pragma once

#include <cstdint>

#include "hvp/isa.h"

namespace hvp {

constexpr std::int64_t kTridiagonalDone = -1;
constexpr std::int64_t kTridiagonalNoMemory = -2;

// alphas (num, m), betas (num, m - 1), steps (num) in 1..m; `order` lists the matrices so that neighbours
// have similar steps. Writes nodes (num, m), ascending, and weights (num, m). Returns kTridiagonalDone,
// kTridiagonalNoMemory, or the number of a matrix whose iteration did not converge.
HVP_DECLARE_KERNEL(std::int64_t tridiagonal_quadrature(const double* alphas, const double* betas,
                                                       const std::int64_t* steps, const std::int64_t* order,
                                                       std::int64_t num, std::int64_t m, double* nodes,
                                                       double* weights))

}  // namespace hvp
