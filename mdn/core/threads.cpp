#include "mdn/core/threads.h"

#include <omp.h>

#include <atomic>
#include <exception>

namespace mdn {

int num_threads() {
  return omp_get_max_threads();
}

void parallel_for(int64_t count, const std::function<void(int64_t, int)>& body) {
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (int64_t index = 0; index < count; ++index) {
    if (failed.load(std::memory_order_relaxed)) {
      continue;
    }
    try {
      body(index, omp_get_thread_num());
    } catch (...) {
      if (!failed.exchange(true)) {
        failure = std::current_exception();
      }
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

}  // namespace mdn
