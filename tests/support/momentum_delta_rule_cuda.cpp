#include "tests/support/momentum_delta_rule_cuda.h"

#include <algorithm>
#include <cstdlib>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleProblem;
using kernels::MomentumDeltaRuleStep;

constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0x5a;
constexpr DType kGate = DType::kFloat32;

}  // namespace

std::string no_cuda_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    return fmt::format("no CUDA device: {}", cudaGetErrorString(status));
  }
  return count > 0 ? "" : "no CUDA device";
}

DeviceBuffer::DeviceBuffer(size_t bytes) : bytes_(bytes) {
  // initcheck takes poisoned memory for initialised: tools/gpu_check.sh turns the poison off for
  // it.
  static const bool poison = std::getenv("MDN_TEST_NO_POISON") == nullptr;
  MDN_CUDA_CHECK(cudaMalloc(&data_, bytes_ + kGuard));
  if (poison) {
    MDN_CUDA_CHECK(cudaMemset(data_, 0xff, bytes_));
  }
  MDN_CUDA_CHECK(cudaMemset(static_cast<char*>(data_) + bytes_, kGuardByte, kGuard));
}

DeviceBuffer::DeviceBuffer(const std::vector<double>& values, DType dtype)
    : DeviceBuffer(values.size() * size_of(dtype)) {
  const std::vector<unsigned char> bytes = encode(values, dtype);
  MDN_CUDA_CHECK(cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
}

DeviceBuffer::~DeviceBuffer() {
  cudaFree(data_);
}

std::vector<unsigned char> DeviceBuffer::contents() const {
  std::vector<unsigned char> bytes(bytes_);
  MDN_CUDA_CHECK(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost));
  return bytes;
}

std::vector<double> DeviceBuffer::values(DType dtype) const {
  return decode(contents().data(), bytes_ / size_of(dtype), dtype);
}

void DeviceBuffer::fill(int byte) {
  MDN_CUDA_CHECK(cudaMemset(data_, byte, bytes_));
}

void DeviceBuffer::check_guard(const char* name) const {
  unsigned char guard[kGuard];
  MDN_CUDA_CHECK(
      cudaMemcpy(guard, static_cast<const char*>(data_) + bytes_, kGuard, cudaMemcpyDeviceToHost));
  for (size_t i = 0; i < kGuard; ++i) {
    MDN_CHECK(guard[i] == kGuardByte, "{}: byte {} past its end was written", name, i);
  }
}

Results run_cuda(const MomentumDeltaRuleData& data, DType dtype) {
  const DeviceBuffer q(data.q, dtype), k(data.k, dtype), v(data.v, dtype), d_o(data.d_o, dtype);
  const DeviceBuffer alpha(data.alpha, kGate), mu(data.mu, kGate), eta(data.eta, kGate),
      beta(data.beta, kGate), pi(data.pi, kGate);
  const DeviceBuffer S(data.S, kGate), M(data.M, kGate), d_S(data.d_S, kGate), d_M(data.d_M, kGate);
  const DeviceBuffer cu_seqlens(data.cu_seqlens.size() * sizeof(int64_t));
  if (!data.cu_seqlens.empty()) {
    MDN_CUDA_CHECK(cudaMemcpy(cu_seqlens.get(), data.cu_seqlens.data(), cu_seqlens.bytes(),
                              cudaMemcpyHostToDevice));
  }
  MomentumDeltaRuleProblem problem = data.problem(dtype);
  problem.cu_seqlens = cu_seqlens.get<int64_t>();
  const kernels::MomentumDeltaRuleSizes sizes = kernels::cuda::sizes(problem);
  const size_t states =
      static_cast<size_t>(data.N * data.c.HV * data.c.V * data.c.K) * sizeof(float);

  const size_t states_of_M = data.c.momentum ? states : 0;
  const DeviceBuffer o(v.bytes()), final_S(states), final_M(states_of_M), saved(sizes.saved),
      workspace(sizes.forward_workspace);
  MomentumDeltaRuleForward forward;
  forward.problem = problem;
  forward.inputs = {q.get(),   k.get(),    v.get(),  alpha.get(), mu.get(),
                    eta.get(), beta.get(), pi.get(), S.get(),     M.get()};
  forward.o = o.get();
  forward.final_S = final_S.get();
  forward.final_M = final_M.get();
  forward.saved = saved.get();
  forward.workspace = workspace.get();
  kernels::cuda::forward(forward, nullptr);

  const size_t wanted = data.wants_initial_gradient ? 1 : 0;
  const DeviceBuffer d_q(q.bytes()), d_k(k.bytes()), d_v(v.bytes()), d_alpha(alpha.bytes()),
      d_mu(mu.bytes()), d_eta(eta.bytes()), d_beta(beta.bytes()), d_pi(pi.bytes()),
      d_initial_S(wanted * states), d_initial_M(wanted * states_of_M),
      backward_workspace(sizes.backward_workspace);
  MomentumDeltaRuleBackward backward;
  backward.problem = problem;
  backward.inputs = forward.inputs;
  backward.saved = saved.get();
  backward.d_o = d_o.get();
  backward.d_final_S = d_S.get();
  backward.d_final_M = d_M.get();
  backward.d_q = d_q.get();
  backward.d_k = d_k.get();
  backward.d_v = d_v.get();
  backward.d_alpha = d_alpha.get();
  backward.d_mu = d_mu.get();
  backward.d_eta = d_eta.get();
  backward.d_beta = d_beta.get();
  backward.d_pi = d_pi.get();
  backward.d_initial_S = d_initial_S.get();
  backward.d_initial_M = d_initial_M.get();
  backward.workspace = backward_workspace.get();
  kernels::cuda::backward(backward, nullptr);
  MDN_CUDA_CHECK(cudaDeviceSynchronize());

  struct Output {
    const char* name;
    const DeviceBuffer& buffer;
    DType dtype;
  };
  const Output outputs[] = {{"o", o, dtype},
                            {"final_S", final_S, kGate},
                            {"final_M", final_M, kGate},
                            {"d_q", d_q, dtype},
                            {"d_k", d_k, dtype},
                            {"d_v", d_v, dtype},
                            {"d_alpha", d_alpha, kGate},
                            {"d_mu", d_mu, kGate},
                            {"d_eta", d_eta, kGate},
                            {"d_beta", d_beta, kGate},
                            {"d_pi", d_pi, kGate},
                            {"d_S", d_initial_S, kGate},
                            {"d_M", d_initial_M, kGate}};
  Results results;
  for (const Output& output : outputs) {
    output.buffer.check_guard(output.name);
    if (output.buffer.bytes() > 0) {
      results.push_back({output.name, output.buffer.values(output.dtype)});
    }
  }
  saved.check_guard("saved");
  workspace.check_guard("forward workspace");
  backward_workspace.check_guard("backward workspace");
  return results;
}

Results run_cuda_steps(const MomentumDeltaRuleData& data, DType dtype, DType state_dtype) {
  const MomentumDeltaRuleCase& c = data.c;
  const DeviceBuffer S(data.S, state_dtype), M(data.M, state_dtype);
  std::vector<double> o(data.v.size());
  for (int64_t t = 0; t < c.T; ++t) {
    const auto token = [&](const std::vector<double>& x, int64_t columns) {
      std::vector<double> rows;
      for (int64_t b = 0; b < (x.empty() ? 0 : c.B); ++b) {
        const auto row = x.begin() + (b * c.T + t) * columns;
        rows.insert(rows.end(), row, row + columns);
      }
      return rows;
    };
    const DeviceBuffer q(token(data.q, c.H * c.K), dtype), k(token(data.k, c.H * c.K), dtype),
        v(token(data.v, c.HV * c.V), dtype), alpha(token(data.alpha, c.HV), kGate),
        mu(token(data.mu, c.HV), kGate), eta(token(data.eta, c.HV), kGate),
        beta(token(data.beta, c.HV), kGate), pi(token(data.pi, c.HV), kGate), out(v.bytes());
    MomentumDeltaRuleStep call;
    call.B = c.B;
    call.H = c.H;
    call.HV = c.HV;
    call.K = c.K;
    call.V = c.V;
    call.dtype = dtype;
    call.scale = data.scale;
    call.l2norm = c.l2norm;
    call.q = q.get();
    call.k = k.get();
    call.v = v.get();
    call.alpha = alpha.get();
    call.mu = mu.get();
    call.eta = eta.get();
    call.beta = beta.get();
    call.pi = pi.get();
    call.S = S.get();
    call.M = M.get();
    call.o = out.get();
    call.state_dtype = state_dtype;
    kernels::cuda::step(call, nullptr);
    MDN_CUDA_CHECK(cudaDeviceSynchronize());
    out.check_guard("o");
    const std::vector<double> values = out.values(dtype);
    for (int64_t b = 0; b < c.B; ++b) {
      const int64_t row = c.HV * c.V;
      std::copy_n(values.begin() + b * row, row, o.begin() + (b * c.T + t) * row);
    }
  }
  S.check_guard("S");
  M.check_guard("M");
  Results results = {{"o", o}, {"final_S", S.values(state_dtype)}};
  if (c.momentum) {
    results.push_back({"final_M", M.values(state_dtype)});
  }
  return results;
}

}  // namespace mdn::test
