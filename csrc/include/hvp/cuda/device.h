// What all CUDA kernels share on the host. All addresses are device addresses unless said otherwise; work is
// queued on the given stream of the given device, and nothing waits for it. Functions that queue work return
// null, or the text of an error.
#pragma once

namespace hvp {
namespace cuda {

using StreamHandle = void*;  // a cudaStream_t

struct Queue {
    int device;
    StreamHandle stream;
};

// Null when the driver finds a device, otherwise the reason why not.
const char* why_not();

}  // namespace cuda
}  // namespace hvp
