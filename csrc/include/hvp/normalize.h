// Layer and root-mean-square normalisation of rows, with first and second derivatives, each in one pass over
// memory.
//
// y = xhat w + b, xhat = (x - mean) rstd per row of `size` elements; RMS normalisation has no mean. An
// operand holds `batch` groups of `rows` rows (parameters: one row per group). Outputs are contiguous;
// statistics holds mean and rstd of each row in the compute type (float, or double for double). Sums over
// rows go through `workspace`, one partial row per chunk of rows, and are added in a fixed order: the result
// does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"
#include "hvp/operand.h"

namespace hvp {

struct NormalizeShape {
    Dtype type;            // of x, y and their gradients
    Dtype parameter_type;  // of w, b and their gradients: `type`, or float32 beside bfloat16
    bool centered;         // layer norm; otherwise RMS norm
    std::int64_t batch;
    std::int64_t rows;
    std::int64_t size;
};

// Rows per chunk depend on the shape alone; a sum over the rows of a group needs one partial row per chunk.
std::int64_t normalize_rows_per_chunk(std::int64_t rows);
std::int64_t normalize_chunks(std::int64_t rows);

struct NormalizeInputs {
    Operand x, w, statistics, g;
};

HVP_DECLARE_KERNEL(void normalize_forward(const NormalizeShape& shape, double eps, Operand x, Operand w,
                                          Operand b, void* y, void* statistics))

// Gradients for the cotangent g of y; a null output is not computed. The workspace has (batch, 2, chunks,
// size) elements of the compute type and may be null if neither dw nor db is wanted.
HVP_DECLARE_KERNEL(void normalize_backward(const NormalizeShape& shape, const NormalizeInputs& in, void* dx,
                                           void* dw, void* db, void* workspace))

// For cotangents u of dx, u_w of dw and u_b of db (the latter two both present or both null): gradients with
// respect to g (always), x and w (null: not computed). The workspace has (batch, chunks, size) elements, null
// without d_w.
HVP_DECLARE_KERNEL(void normalize_double_backward(const NormalizeShape& shape, const NormalizeInputs& in,
                                                  Operand u, Operand u_w, Operand u_b, void* d_g, void* d_x,
                                                  void* d_w, void* workspace))

}  // namespace hvp
