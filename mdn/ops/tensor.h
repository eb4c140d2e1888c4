// Between torch tensors and raw-pointer kernels: checks that name the argument, dtypes, the device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <optional>
#include <string>

#include "mdn/core/dtype.h"
#include "mdn/core/error.h"

namespace mdn::ops {

/// "[2, 3] float32 on cpu"
std::string shape_text(const at::Tensor& x);

/// The kernels' name of a torch dtype; throws for one that no kernel has.
DType dtype_of(const char* op, at::ScalarType type);

inline const void* data(const at::Tensor& x) {
  return x.const_data_ptr();
}
inline const void* data(const std::optional<at::Tensor>& x) {
  return x ? x->const_data_ptr() : nullptr;
}

/// The numbers of a float32 tensor; null for an undefined one.
inline const float* floats(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<float>() : nullptr;
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& x) {
  return x ? std::optional(x->contiguous()) : std::nullopt;
}

/// x contiguous and, on CUDA, starting on a multiple of 16 bytes: kernels there read 16 at once,
/// and a view may start anywhere.
at::Tensor aligned(const at::Tensor& x);
inline std::optional<at::Tensor> aligned(const std::optional<at::Tensor>& x) {
  return x ? std::optional(aligned(*x)) : std::nullopt;
}

/// Checks arguments of one operator call: check(x, "alpha", {B, T, H}, at::kFloat).
struct TensorCheck {
  const char* op;
  c10::Device device;

  void operator()(const at::Tensor& x, const char* name, at::IntArrayRef shape,
                  at::ScalarType type) const;
  void operator()(const std::optional<at::Tensor>& x, const char* name, at::IntArrayRef shape,
                  at::ScalarType type) const {
    if (x) {
      (*this)(*x, name, shape, type);
    }
  }
};

/// A tensor of the CPU on a device, without waiting for what is queued there: memory that is not
/// pinned is read before the copy returns.
at::Tensor to_device(const at::Tensor& x, c10::Device device);

/// Checks sequence boundaries [N + 1] int64 of B = 1 rows of T tokens: start 0, end T, never
/// falling. Returns them contiguous on `device`. Boundaries on a GPU are copied back to be checked.
at::Tensor check_cu_seqlens(const char* op, const at::Tensor& cu_seqlens, int64_t B, int64_t T,
                            c10::Device device);

/// Whether the float32 CPU kernels of the small operators (short_conv, rms_norm, swiglu) take x.
inline bool use_cpu_kernel(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat;
}

/// Whether the CUDA kernels of the small operators take x's type and device.
inline bool use_cuda_kernel(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return x.is_cuda() && (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf);
}

/// Elements from row to row of x read as rows of `last` elements (the product of its last sizes),
/// where a CUDA kernel can read them as they lie: columns of wider rows that all start on multiples
/// of 16 bytes. Else nothing, and the kernel needs a contiguous copy.
std::optional<int64_t> row_stride(const at::Tensor& x, int64_t last);

/// While it lives, what gradient_of gives for columns of `x` are the same columns of `d_x`: the
/// kernels' gradients need no copying together. No column may be read by two such operators. For
/// one thread.
class GradientColumns {
 public:
  GradientColumns(const at::Tensor& x, const at::Tensor& d_x);
  ~GradientColumns();
  GradientColumns(const GradientColumns&) = delete;
  GradientColumns& operator=(const GradientColumns&) = delete;
};

/// Memory for the gradient of x, which a kernel can write at row_stride(x, ...): contiguous, or
/// columns as above.
at::Tensor gradient_of(const at::Tensor& x);

/// Memory for a kernel, on x's device.
inline at::Tensor workspace_like(const at::Tensor& x, size_t bytes) {
  return at::empty({static_cast<int64_t>(bytes)}, x.options().dtype(at::kByte));
}

/// Throws when a backward pass is itself being recorded: no operator here has second derivatives.
void check_first_order(const char* op);

/// Makes the tensor's device current for its lifetime, and names its current stream.
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor& x) : device_(x.device()), guard_(device_) {}
  void* stream() const;  // a cudaStream_t; null on the CPU

 private:
  c10::Device device_;
  c10::DeviceGuard guard_;
};

}  // namespace mdn::ops
