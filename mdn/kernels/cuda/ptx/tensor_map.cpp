#include "mdn/kernels/cuda/ptx/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"

namespace mdn::kernels::cuda::ptx {
namespace {

/// The driver's function, found through the runtime: nothing links against libcuda.
PFN_cuTensorMapEncodeTiled_v12000 encode_function() {
  static const auto function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    MDN_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                    cudaEnableDefault, &result));
    MDN_CHECK(result == cudaDriverEntryPointSuccess && entry != nullptr,
              "the CUDA driver has no cuTensorMapEncodeTiled (it must support CUDA 12)");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return function;
}

}  // namespace

CUtensorMap make_tensor_map(DType dtype, const void* pointer, int64_t tokens, int64_t heads,
                            int64_t channels) {
  MDN_CHECK(dtype == DType::kBFloat16 || dtype == DType::kFloat16,
            "tensor map: dtype is {}, must be bfloat16 or float16", name_of(dtype));
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(tokens)};
  const cuuint64_t strides[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};  // bytes
  const cuuint32_t box[3] = {kBoxChannels, 1, kBoxTokens};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map{};
  const CUresult status = encode_function()(
      &map,
      dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      3, const_cast<void*>(pointer), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MDN_CHECK(status == CUDA_SUCCESS,
            "tensor map of [{}, {}, {}] at {}: the driver refused it (error {})", tokens, heads,
            channels, pointer, static_cast<int>(status));
  return map;
}

}  // namespace mdn::kernels::cuda::ptx
