// Lets a CPU build of PyTorch believe in one CUDA device, as far as its C++ asks for more than a tensor's
// device: the autograd engine's threads, streams and events, and pinned memory. Loaded before PyTorch, in a
// process of its own. What the device computes, and its memory, are in emulated_device.py.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <optional>

namespace at {

namespace accelerator {

// Stands in front of PyTorch's own function, which a CPU build compiles to "none".
__attribute__((visibility("default"))) std::optional<c10::DeviceType> getAccelerator(bool) {
    return c10::DeviceType::CUDA;
}

}  // namespace accelerator

namespace {

using NoGuard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;

c10::Device only_device() { return c10::Device(c10::DeviceType::CUDA, 0); }
c10::Stream only_stream() { return c10::Stream(c10::Stream::DEFAULT, only_device()); }

// One device with one stream, on which everything is done as soon as it is queued.
struct OnlyDevice : NoGuard {
    c10::Device exchangeDevice(c10::Device) const override { return only_device(); }
    c10::Device getDevice() const override { return only_device(); }
    c10::Stream getStream(c10::Device) const noexcept override { return only_stream(); }
    c10::Stream exchangeStream(c10::Stream) const noexcept override { return only_stream(); }
    void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
};

const OnlyDevice guard;
const c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);

}  // namespace

struct CUDAHooks : CUDAHooksInterface {  // PyTorch finds it by this name
    explicit CUDAHooks(CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
