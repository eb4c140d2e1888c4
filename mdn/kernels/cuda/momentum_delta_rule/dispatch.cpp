// The CUDA backend's entrance: what is supported, which kernels run, the bytes they need.
#include "mdn/kernels/cuda/momentum_delta_rule/dispatch.h"

#include <cuda_runtime_api.h>

#include <cstdlib>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/entrance.h"
#include "mdn/kernels/cuda/momentum_delta_rule/decode.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"

namespace mdn::kernels::cuda {
namespace {

bool portable_only() {
  static const bool only = [] {
    const char* value = std::getenv("MDN_CUDA_PORTABLE");
    return value != nullptr && std::string(value) != "0";
  }();
  return only;
}

std::string unsupported_sizes(DType dtype, int64_t K, int64_t V) {
  if (dtype == DType::kFloat64) {
    return "dtype float64; supported are float32, float16 and bfloat16";
  }
  if (K > kPortableMaxChannels || V > kPortableMaxChannels) {
    return fmt::format("K = {}, V = {}; supported are 1 to {} each", K, V, kPortableMaxChannels);
  }
  return "";
}

void check_supported(const MomentumDeltaRuleProblem& problem) {
  const std::string reason = unsupported(problem);
  MDN_CHECK(reason.empty(), "momentum_delta_rule on CUDA: {}", reason);
}

void check_workspace(const void* workspace, size_t bytes) {
  MDN_CHECK(bytes == 0 || workspace != nullptr,
            "momentum_delta_rule on CUDA: no workspace was given; this call needs {} bytes", bytes);
  check_workspace_address("momentum_delta_rule", workspace);
}

}  // namespace

Choice choose(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device) {
  Choice choice;
  if (portable_only() || device.major != 9 || device.minor != 0) {
    return choice;  // machine code for sm_90a runs on compute capability 9.0 alone
  }
  if (hopper_supports_forward(problem, device)) {
    choice.forward = Path::kHopper;
    if (hopper_supports_backward(problem, device)) {
      choice.backward = Path::kHopper;
    }
  }
  return choice;
}

std::string describe(const Choice& choice) {
  const auto name = [](Path path) { return path == Path::kHopper ? "hopper" : "portable"; };
  return fmt::format("forward {}, backward {}", name(choice.forward), name(choice.backward));
}

std::string unsupported(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device) {
  const std::string sizes = unsupported_sizes(problem.dtype, problem.K, problem.V);
  return sizes.empty() ? unsupported_device(device) : sizes;
}

std::string unsupported(const MomentumDeltaRuleProblem& problem) {
  return unsupported(problem, device_facts());
}

MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& problem) {
  check_supported(problem);
  const DeviceFacts& device = device_facts();
  const Choice choice = choose(problem, device);
  MomentumDeltaRuleSizes bytes;
  if (choice.forward == Path::kHopper) {
    bytes.forward_workspace = hopper_forward_workspace(problem, device);
  }
  if (choice.backward == Path::kHopper) {
    bytes.backward_workspace = hopper_backward_workspace(problem, device);
    bytes.saved = hopper_saved(problem, device);
  } else {
    bytes.backward_workspace = portable_backward_workspace(problem);
  }
  return bytes;
}

void forward(const MomentumDeltaRuleForward& call, Stream stream) {
  check(call);
  check_workspace(call.workspace, sizes(call.problem).forward_workspace);
  const DeviceFacts& device = device_facts();
  const auto queue = static_cast<cudaStream_t>(stream);
  const Choice choice = choose(call.problem, device);
  if (choice.forward == Path::kPortable) {
    portable_forward(call, queue);
    return;
  }
  MomentumDeltaRuleForward hopper = call;
  if (choice.backward == Path::kPortable) {
    hopper.saved = nullptr;  // nobody would read it
  }
  hopper_forward(hopper, device, queue);
}

void backward(const MomentumDeltaRuleBackward& call, Stream stream) {
  check(call);
  const MomentumDeltaRuleSizes bytes = sizes(call.problem);
  check_workspace(call.workspace, bytes.backward_workspace);
  const DeviceFacts& device = device_facts();
  const auto queue = static_cast<cudaStream_t>(stream);
  if (choose(call.problem, device).backward == Path::kPortable) {
    portable_backward(call, queue);
    return;
  }
  MDN_CHECK(bytes.saved == 0 || call.saved != nullptr,
            "momentum_delta_rule on CUDA: the backward pass needs what the forward pass saved, and "
            "saved is a null pointer");
  hopper_backward(call, device, queue);
}

void step(const MomentumDeltaRuleStep& call, Stream stream) {
  check(call);
  const DeviceFacts& device = device_facts();
  std::string reason = unsupported_sizes(call.dtype, call.K, call.V);
  if (reason.empty()) {
    reason = unsupported_device(device);
  }
  MDN_CHECK(reason.empty(), "momentum_delta_rule step on CUDA: {}", reason);
  decode_step(call, static_cast<cudaStream_t>(stream));
}

}  // namespace mdn::kernels::cuda
