// How rows are cut into chunks; one copy for all instruction sets, since the caller sizes the workspace with
// it.
#include "hvp/normalize.h"

namespace hvp {

std::int64_t normalize_rows_per_chunk(std::int64_t rows) {
    const std::int64_t wanted = (rows + 63) / 64;
    return wanted < 8 ? 8 : wanted > 64 ? 64 : wanted;
}

std::int64_t normalize_chunks(std::int64_t rows) {
    const std::int64_t step = normalize_rows_per_chunk(rows);
    return (rows + step - 1) / step;
}

}  // namespace hvp
