// Symmetric d x d matrices, one per token, kept as packed upper triangles: rows i of lengths d - i, one after
// another.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"

namespace hvp {

// products[v][q - first] = (weight[v][i] - center[i]) (weight[v][j] - center[j]) for the packed pairs q = (i,
// j <= i..d) in [first, last) and the given rows of weight (rows, d). weight, center (d) and products are
// float or double.
HVP_DECLARE_KERNEL(void pair_products(Dtype dtype, const void* weight, const void* center, std::int64_t rows,
                                      std::int64_t d, std::int64_t first, std::int64_t last, void* products))

// packed[n][first..last) = moments[n][0..last - first) - mean[n][i] mean[n][j], for n < tokens.
// moments and mean (tokens, d) are of moment_dtype (float or double); packed is of packed_dtype (same, or
// bfloat16).
HVP_DECLARE_KERNEL(void pack_covariance(Dtype moment_dtype, Dtype packed_dtype, const void* moments,
                                        const void* mean, std::int64_t tokens, std::int64_t d,
                                        std::int64_t first, std::int64_t last, void* packed))

// out[k][n] = M_n vectors[k][n]; vectors and out (count, tokens, d) are in the accumulator type of dtype.
HVP_DECLARE_KERNEL(void packed_symmetric_matvec(Dtype dtype, const void* packed, const void* vectors,
                                                std::int64_t count, std::int64_t tokens, std::int64_t d,
                                                void* out))

}  // namespace hvp
