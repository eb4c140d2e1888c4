#include "mdn/ops/tensor.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/as_strided.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#ifdef MDN_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

namespace mdn::ops {
namespace {

constexpr int64_t kKernelAlignment = 16;  // bytes that CUDA kernels read at once

std::string list_text(at::IntArrayRef sizes) {
  return fmt::format("[{}]", fmt::join(sizes.begin(), sizes.end(), ", "));
}

}  // namespace

std::string shape_text(const at::Tensor& x) {
  return fmt::format("{} {} on {}", list_text(x.sizes()), c10::toString(x.scalar_type()),
                     x.device().str());
}

DType dtype_of(const char* op, at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      MDN_THROW("{}: dtype {} is not supported; use float32, bfloat16, float16 (CUDA) or float64",
                op, c10::toString(type));
  }
}

at::Tensor aligned(const at::Tensor& x) {
  const at::Tensor dense = x.contiguous();
  const bool starts_well =
      reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % kKernelAlignment == 0;
  return dense.is_cuda() && !starts_well ? dense.clone() : dense;
}

void TensorCheck::operator()(const at::Tensor& x, const char* name, at::IntArrayRef shape,
                             at::ScalarType type) const {
  MDN_CHECK(x.defined(), "{}: {} is missing", op, name);
  MDN_CHECK(x.sizes() == shape && x.scalar_type() == type && x.device() == device,
            "{}: {} is {}; it must be {} {} on {}", op, name, shape_text(x), list_text(shape),
            c10::toString(type), device.str());
}

at::Tensor to_device(const at::Tensor& x, c10::Device device) {
  return x.to(device, /*non_blocking=*/!x.is_pinned());
}

at::Tensor check_cu_seqlens(const char* op, const at::Tensor& cu_seqlens, int64_t B, int64_t T,
                            c10::Device device) {
  MDN_CHECK(
      cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == at::kLong && cu_seqlens.numel() >= 2,
      "{}: cu_seqlens is {}; it must be [sequences + 1] Long", op, shape_text(cu_seqlens));
  MDN_CHECK(B == 1, "{}: with cu_seqlens the batch must be 1 (sequences packed along T), got {}",
            op, B);
  const at::Tensor host = cu_seqlens.to(at::kCPU).contiguous();
  const int64_t* cu = host.const_data_ptr<int64_t>();
  const int64_t N = host.numel() - 1;
  MDN_CHECK(cu[0] == 0 && cu[N] == T,
            "{}: cu_seqlens runs from {} to {}; it must run from 0 to T = {}", op, cu[0], cu[N], T);
  for (int64_t n = 0; n < N; ++n) {
    MDN_CHECK(cu[n] <= cu[n + 1], "{}: cu_seqlens[{}] = {} is above cu_seqlens[{}] = {}", op, n,
              cu[n], n + 1, cu[n + 1]);
  }
  return device.is_cpu()       ? host
         : cu_seqlens.is_cpu() ? to_device(host, device)
                               : cu_seqlens.to(device).contiguous();
}

std::optional<int64_t> row_stride(const at::Tensor& x, int64_t last) {
  const auto element = static_cast<int64_t>(x.element_size());
  int64_t inner = 1, d = x.dim() - 1;
  bool lies = x.is_cuda();
  for (; d >= 0 && inner < last; --d) {
    lies = lies && (x.stride(d) == inner || x.size(d) == 1);
    inner *= x.size(d);
  }
  const int64_t stride = d >= 0 ? x.stride(d) : last;
  for (int64_t rows = stride; d >= 0; --d) {
    lies = lies && (x.stride(d) == rows || x.size(d) == 1);
    rows *= x.size(d);
  }
  lies = lies && inner == last && stride >= last && stride * element % kKernelAlignment == 0 &&
         reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kKernelAlignment == 0;
  return lies ? std::optional(stride) : std::nullopt;
}

namespace {

struct ColumnsPair {
  at::Tensor x, d_x;
};
thread_local ColumnsPair gradient_columns;

}  // namespace

GradientColumns::GradientColumns(const at::Tensor& x, const at::Tensor& d_x) {
  gradient_columns = {x, d_x};
}
GradientColumns::~GradientColumns() {
  gradient_columns = {};
}

at::Tensor gradient_of(const at::Tensor& x) {
  const auto& [all, d_all] = gradient_columns;
  if (all.defined() && x.is_alias_of(all)) {
    return d_all.as_strided(x.sizes(), x.strides(), x.storage_offset());
  }
  return at::empty(x.sizes(), x.options());
}

void check_first_order(const char* op) {
  MDN_CHECK(!at::GradMode::is_enabled(),
            "{}: second derivatives (create_graph=True) are not implemented", op);
}

void* DeviceScope::stream() const {
#ifdef MDN_CUDA
  if (device_.is_cuda()) {
    return c10::cuda::getCurrentCUDAStream(device_.index()).stream();
  }
#endif
  return nullptr;
}

}  // namespace mdn::ops
