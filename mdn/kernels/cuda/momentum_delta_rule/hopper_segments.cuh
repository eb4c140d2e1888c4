// The chunks of a segment (hopper_segments.h), in device code.
#pragma once

#include <cstdint>

namespace mdn::kernels::cuda {

/// First chunk of segment `i` of a sequence of `chunks` chunks; `segments`: their number.
__device__ __forceinline__ int segment_begin(int chunks, int i, int segments) {
  return static_cast<int>(int64_t{chunks} * i / segments);
}

}  // namespace mdn::kernels::cuda
