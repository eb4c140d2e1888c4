// The one way work is spread over CPU threads. OpenMP's pool is the one libtorch uses, so
// torch.set_num_threads and OMP_NUM_THREADS govern both and the two never oversubscribe.
#pragma once

#include <cstdint>
#include <functional>

namespace mdn {

/// Number of threads that parallel_for uses.
int num_threads();

/// Calls body(index, thread) for every index in [0, count), `thread` in [0, num_threads()). Which
/// thread gets which index is not fixed: results must not depend on it. An exception of a body is
/// rethrown on the calling thread after the loop.
void parallel_for(int64_t count, const std::function<void(int64_t index, int thread)>& body);

}  // namespace mdn
