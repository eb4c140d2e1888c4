// The product of few rows on a GPU against float64 on the CPU. Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mdn/kernels/linear.h"
#include "mdn/ops/tensor.h"

namespace mdn::generate {
namespace {

struct Form {
  bool norm, swiglu, add;
};

constexpr double kEps = 1e-6;

at::Tensor random(std::vector<int64_t> shape) {
  static const at::Generator generator = at::detail::createCPUGenerator(3);
  return at::randn(shape, generator, at::kFloat);
}

class CudaLinear : public testing::TestWithParam<at::ScalarType> {};

TEST_P(CudaLinear, AgreesWithFloat64) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const at::ScalarType type = GetParam();
  const double unit = type == at::kBFloat16 ? 0x1p-8 : type == at::kHalf ? 0x1p-11 : 0x1p-24;
  for (const auto& [in, out] : std::vector<std::pair<int64_t, int64_t>>{
           {8, 1}, {64, 3}, {1024, 4672}, {1536, 1024}, {2816, 1024}, {1032, 2049}, {96, 17}}) {
    for (const int64_t B : {1, 2, 3, 5, 8}) {
      for (const auto& [norm, swiglu, add] :
           {Form{false, false, false}, Form{true, false, false}, Form{true, true, false},
            Form{false, true, false}, Form{false, false, true}}) {
        SCOPED_TRACE(fmt::format("in {} out {} B {} norm {} swiglu {} add {}", in, out, B, norm,
                                 swiglu, add));
        const auto given = [&](const at::Tensor& t) { return t.to(type).to(at::kCUDA); };
        const auto exact = [](const at::Tensor& t) { return t.to(at::kCPU, at::kDouble); };
        const at::Tensor x = given(random({B, in}));
        const at::Tensor weight =
            given(random({swiglu ? 2 * out : out, in}) / std::sqrt(static_cast<double>(in)));
        const at::Tensor scale = random({in}).to(at::kCUDA);
        const at::Tensor held = given(random({B, out}));
        // In place where something is added.
        const at::Tensor y = add ? held.clone() : at::full_like(held, std::nan(""));
        const kernels::cuda::Linear call{.B = B,
                                         .in = in,
                                         .out = out,
                                         .dtype = ops::dtype_of("linear", type),
                                         .x = ops::data(x),
                                         .norm = norm ? ops::floats(scale) : nullptr,
                                         .eps = kEps,
                                         .weight = ops::data(weight),
                                         .swiglu = swiglu,
                                         .add = add ? y.data_ptr() : nullptr,
                                         .y = y.data_ptr()};
        if (type == at::kFloat && B > 4 && in > 1472) {
          EXPECT_NE(kernels::cuda::linear_unsupported(call), "");  // does not fit
          continue;
        }
        ASSERT_EQ(kernels::cuda::linear_unsupported(call), "");
        kernels::cuda::linear(call, ops::DeviceScope(x).stream());

        at::Tensor u = exact(x);
        if (norm) {
          u = u * (u.square().mean(-1, true) + kEps).rsqrt() * exact(scale);
        }
        at::Tensor want = at::mm(u, exact(weight).t());
        if (swiglu) {
          want = at::silu(want.narrow(1, 0, out)) * want.narrow(1, out, out);
        }
        if (add) {
          want = want + exact(held);
        }
        // As tests/ops/cuda_ops_test.cpp has it: the result is rounded, with a norm u before it,
        // and what lies between is float32.
        const double sums = 4 * (std::sqrt(static_cast<double>(in)) + 16) * 0x1p-24;
        const double allowed = 2 * (2 * unit + sums);
        EXPECT_LE((exact(y) - want).norm().item<double>(), allowed * want.norm().item<double>());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaLinear, testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const testing::TestParamInfo<at::ScalarType>& type) {
                           return std::string(c10::toString(type.param));
                         });

}  // namespace
}  // namespace mdn::generate
