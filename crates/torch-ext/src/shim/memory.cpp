// Counts the bytes of tensors in host memory, libtorch's and oneDNN's work space included.
#include <atomic>
#include <new>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "shim.h"

namespace {

std::atomic<int64_t> current_bytes{0};
std::atomic<int64_t> peak_bytes{0};

// Keeps libtorch's alignment.
constexpr size_t kHeader = 64;

c10::Allocator *inner = nullptr;

void count(int64_t bytes) {
  int64_t now = current_bytes.fetch_add(bytes) + bytes;
  int64_t peak = peak_bytes.load();
  while (now > peak && !peak_bytes.compare_exchange_weak(peak, now)) {
  }
}

void release(void *data) {
  if (data == nullptr) return;
  char *begin = static_cast<char *>(data) - kHeader;
  count(-static_cast<int64_t>(*reinterpret_cast<size_t *>(begin)));
  inner->raw_deallocate(begin);
}

// Hands out the inner allocator's memory behind a header that holds the size.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::kCPU)};
    char *begin = static_cast<char *>(inner->raw_allocate(bytes + kHeader));
    *new (begin) size_t = bytes;
    count(static_cast<int64_t>(bytes));
    void *data = begin + kHeader;
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *destination, const void *source, size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }
};

} // namespace

Error torch_ext_count_host_memory() {
  return guarded([] {
    if (inner != nullptr) return;
    static CountingAllocator counting;
    inner = c10::GetCPUAllocator();
    c10::SetCPUAllocator(&counting, /*priority=*/255);
    c10::SetAllocator(c10::kCPU, &counting, /*priority=*/255);
  });
}

int64_t torch_ext_host_bytes() { return current_bytes; }

int64_t torch_ext_take_host_peak_bytes() { return peak_bytes.exchange(current_bytes); }
