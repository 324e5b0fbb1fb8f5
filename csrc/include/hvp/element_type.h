// Codes of the element types that kernels accept, as Python passes them.
#pragma once

namespace hvp {

enum class ElementType { float32 = 0, float64 = 1, bfloat16 = 2 };

}  // namespace hvp
