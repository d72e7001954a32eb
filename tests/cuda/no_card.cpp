// Lets PyTorch without CUDA run fake CUDA tensors: their shapes, dtypes, autograd and autocast, and no
// kernel. Preloaded (LD_PRELOAD) before PyTorch's libraries. A CUDA build brings these three parts:
//
//   1. the accelerator of the process: autograd runs the backward pass of its tensors in a device thread;
//   2. a device guard, which dispatch and autograd enter for each op: here a device 0 with one stream;
//   3. the CUDA hooks, which are asked whether there is a context.

#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <optional>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);

struct OneIdleDevice final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  // The base class gives devices and streams without an index, which autograd refuses.
  Device getDevice() const override { return kDevice; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, kDevice); }
  Stream exchangeStream(Stream) const noexcept override { return getStream(kDevice); }
  // The base class raises for events, by which the streams of a backward pass wait for each other.
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};

OneIdleDevice guard;
c10::impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);

}  // namespace

namespace at {

namespace accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace accelerator

struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
