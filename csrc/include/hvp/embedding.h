// Weight gradient of an embedding: sums gradient rows into the table rows that their tokens name.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"

namespace hvp {

// table (table_rows, columns) is overwritten. Token order[i] names table row sorted_rows[i] (ascending), and
// reads row order[i] of grad (tokens, columns).
HVP_DECLARE_KERNEL(void embedding_backward(Dtype dtype, const std::int64_t* order,
                                           const std::int64_t* sorted_rows, std::int64_t tokens,
                                           const void* grad, std::int64_t table_rows, std::int64_t columns,
                                           void* table))

}  // namespace hvp
