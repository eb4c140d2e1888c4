// Forward pass, backward pass and step of momentum_delta_rule captured in one CUDA graph: nothing
// in them may wait, allocate or read device memory on the host. Packed sequences, so that the table
// of chunks is made inside the graph, and replays with other lengths must follow them.
#include <gtest/gtest.h>

#include "mdn/kernels/cuda/check.h"
#include "tests/support/momentum_delta_rule_cuda.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleStep;

class Graphs : public testing::TestWithParam<DType> {};

TEST_P(Graphs, ReplayEqualsDirectCalls) {
  if (const std::string why = no_cuda_device(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  const DType dtype = GetParam();
  constexpr DType kGate = DType::kFloat32;
  const MomentumDeltaRuleCase c{
      .name = "graph", .T = 0, .H = 2, .HV = 2, .K = 64, .V = 64, .lengths = {100, 1, 29, 70}};
  const MomentumDeltaRuleData data(c, dtype);
  const std::vector<int64_t> other_lengths = {0, 64, 64, 200, 200};
  ASSERT_EQ(other_lengths.back(), data.cu_seqlens.back());

  const DeviceBuffer q(data.q, dtype), k(data.k, dtype), v(data.v, dtype), d_o(data.d_o, dtype);
  const DeviceBuffer alpha(data.alpha, kGate), mu(data.mu, kGate), eta(data.eta, kGate),
      beta(data.beta, kGate), S(data.S, kGate), M(data.M, kGate);
  const DeviceBuffer cu(data.cu_seqlens.size() * sizeof(int64_t));
  MomentumDeltaRuleForward forward;
  forward.problem = data.problem(dtype);
  forward.problem.cu_seqlens = cu.get<int64_t>();
  const auto sizes = kernels::cuda::sizes(forward.problem);
  const DeviceBuffer workspace(sizes.forward_workspace), saved(sizes.saved),
      backward_workspace(sizes.backward_workspace);
  DeviceBuffer o(v.bytes()), final_S(S.bytes()), final_M(M.bytes()), d_q(q.bytes()), d_k(k.bytes()),
      d_v(v.bytes()), d_alpha(alpha.bytes()), d_mu(mu.bytes()), d_eta(eta.bytes()),
      d_beta(beta.bytes()), d_S(S.bytes()), d_M(M.bytes()), step_o(v.bytes());
  forward.inputs = {q.get(),   k.get(),    v.get(), alpha.get(), mu.get(),
                    eta.get(), beta.get(), nullptr, S.get(),     M.get()};
  forward.o = o.get();
  forward.final_S = final_S.get();
  forward.final_M = final_M.get();
  forward.saved = saved.get();
  forward.workspace = workspace.get();
  MomentumDeltaRuleBackward backward;
  backward.problem = forward.problem;
  backward.inputs = forward.inputs;
  backward.saved = saved.get();
  backward.d_o = d_o.get();
  backward.d_q = d_q.get();
  backward.d_k = d_k.get();
  backward.d_v = d_v.get();
  backward.d_alpha = d_alpha.get();
  backward.d_mu = d_mu.get();
  backward.d_eta = d_eta.get();
  backward.d_beta = d_beta.get();
  backward.d_initial_S = d_S.get();
  backward.d_initial_M = d_M.get();
  backward.workspace = backward_workspace.get();
  MomentumDeltaRuleStep step;  // continues the final states with the first tokens again
  step.B = data.N;
  step.H = c.H;
  step.HV = c.HV;
  step.K = c.K;
  step.V = c.V;
  step.dtype = dtype;
  step.q = q.get();
  step.k = k.get();
  step.v = v.get();
  step.alpha = alpha.get();
  step.mu = mu.get();
  step.eta = eta.get();
  step.beta = beta.get();
  step.S = final_S.get();
  step.M = final_M.get();
  step.o = step_o.get();

  cudaStream_t stream = nullptr;
  MDN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto queue = [&] {
    kernels::cuda::forward(forward, stream);
    kernels::cuda::backward(backward, stream);
    kernels::cuda::step(step, stream);
  };
  const auto set_lengths = [&](const std::vector<int64_t>& lengths) {
    MDN_CUDA_CHECK(cudaMemcpy(cu.get(), lengths.data(), cu.bytes(), cudaMemcpyHostToDevice));
  };
  DeviceBuffer* const outputs[] = {&o,    &final_S, &final_M, &d_q, &d_k, &d_v,   &d_alpha,
                                   &d_mu, &d_eta,   &d_beta,  &d_S, &d_M, &step_o};
  const auto poison = [&] {
    for (DeviceBuffer* output : outputs) {
      output->fill(0xff);
    }
    // Fills go to the default stream, which a non-blocking stream does not wait for.
    MDN_CUDA_CHECK(cudaDeviceSynchronize());
  };
  const auto results = [&] {
    MDN_CUDA_CHECK(cudaStreamSynchronize(stream));
    std::vector<std::vector<unsigned char>> all;
    for (const DeviceBuffer* output : outputs) {
      all.push_back(output->contents());
    }
    return all;
  };

  cudaGraph_t graph = nullptr;
  MDN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  queue();
  MDN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t replay = nullptr;
  MDN_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  for (const std::vector<int64_t>& lengths : {data.cu_seqlens, other_lengths}) {
    set_lengths(lengths);
    poison();
    queue();
    const auto direct = results();
    poison();
    MDN_CUDA_CHECK(cudaGraphLaunch(replay, stream));
    const auto replayed = results();
    ASSERT_EQ(direct.size(), replayed.size());
    for (size_t i = 0; i < direct.size(); ++i) {
      EXPECT_TRUE(direct[i] == replayed[i]) << "output " << i;
    }
  }
  MDN_CUDA_CHECK(cudaGraphExecDestroy(replay));
  MDN_CUDA_CHECK(cudaGraphDestroy(graph));
  MDN_CUDA_CHECK(cudaStreamDestroy(stream));
}

std::string dtype_name(const testing::TestParamInfo<DType>& info) {
  return name_of(info.param);
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRuleCuda, Graphs,
                         testing::Values(DType::kFloat32, DType::kBFloat16, DType::kFloat16),
                         dtype_name);

}  // namespace
}  // namespace mdn::test
