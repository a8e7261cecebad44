// CUDA streams and events. Compiled to error values where the headers are missing.
#include <stdexcept>

#include "shim.h"

#ifdef TORCH_EXT_CUDA

#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace {

c10::cuda::CUDAStream stream(int device, int64_t id) {
  return c10::cuda::CUDAStream(
      c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)), id));
}

using Event = c10::cuda::CUDAEvent;

} // namespace

Error torch_ext_set_device(int device) {
  return guarded([&] { c10::cuda::set_device(static_cast<c10::DeviceIndex>(device)); });
}
Error torch_ext_pci_bus_id(int device, char *text, int bytes) {
  return guarded([&] { C10_CUDA_CHECK(cudaDeviceGetPCIBusId(text, bytes, device)); });
}
Error torch_ext_stream_from_pool(int device, bool high_priority, int64_t *stream_id) {
  return guarded([&] { *stream_id = c10::cuda::getStreamFromPool(high_priority, static_cast<c10::DeviceIndex>(device)).id(); });
}
Error torch_ext_current_stream(int device, int64_t *stream_id) {
  return guarded([&] { *stream_id = c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).id(); });
}
Error torch_ext_set_current_stream(int device, int64_t stream_id) {
  return guarded([&] { c10::cuda::setCurrentCUDAStream(stream(device, stream_id)); });
}
Error torch_ext_stream_synchronize(int device, int64_t stream_id) {
  return guarded([&] { stream(device, stream_id).synchronize(); });
}
Error torch_ext_stream_handle(int device, int64_t stream_id, void **handle) {
  return guarded([&] { *handle = stream(device, stream_id).stream(); });
}
Error torch_ext_event_new(bool timed, void **event) {
  return guarded([&] { *event = timed ? new Event(cudaEventDefault) : new Event(); });
}
void torch_ext_event_free(void *event) { delete static_cast<Event *>(event); }
Error torch_ext_event_record(void *event, int device, int64_t stream_id) {
  return guarded([&] { static_cast<Event *>(event)->record(stream(device, stream_id)); });
}
Error torch_ext_event_block(void *event, int device, int64_t stream_id) {
  return guarded([&] { static_cast<Event *>(event)->block(stream(device, stream_id)); });
}
Error torch_ext_event_query(void *event, bool *done) {
  return guarded([&] { *done = static_cast<Event *>(event)->query(); });
}
Error torch_ext_event_synchronize(void *event) {
  return guarded([&] { static_cast<Event *>(event)->synchronize(); });
}
Error torch_ext_event_elapsed(void *from, void *to, float *milliseconds) {
  return guarded([&] { *milliseconds = static_cast<Event *>(from)->elapsed_time(*static_cast<Event *>(to)); });
}

#else

namespace {

Error unavailable() {
  return guarded([] { throw std::runtime_error("built without CUDA headers: there are no CUDA streams or events"); });
}

} // namespace

Error torch_ext_set_device(int) { return unavailable(); }
Error torch_ext_pci_bus_id(int, char *, int) { return unavailable(); }
Error torch_ext_stream_from_pool(int, bool, int64_t *) { return unavailable(); }
Error torch_ext_current_stream(int, int64_t *) { return unavailable(); }
Error torch_ext_set_current_stream(int, int64_t) { return unavailable(); }
Error torch_ext_stream_synchronize(int, int64_t) { return unavailable(); }
Error torch_ext_stream_handle(int, int64_t, void **) { return unavailable(); }
Error torch_ext_event_new(bool, void **) { return unavailable(); }
void torch_ext_event_free(void *) {}
Error torch_ext_event_record(void *, int, int64_t) { return unavailable(); }
Error torch_ext_event_block(void *, int, int64_t) { return unavailable(); }
Error torch_ext_event_query(void *, bool *) { return unavailable(); }
Error torch_ext_event_synchronize(void *) { return unavailable(); }
Error torch_ext_event_elapsed(void *, void *, float *) { return unavailable(); }

#endif
