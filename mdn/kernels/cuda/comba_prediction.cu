// A warp a token and key head.
#include "mdn/kernels/comba_prediction.h"

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 4;

__global__ void __launch_bounds__(kLanes* kWarps) comba_prediction_kernel(CombaPrediction call) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  let_next_start();
  wait_for_previous();
  if (row >= call.tokens * call.H) {
    return;
  }
  float squares = 0;
  for (int64_t c = lane; c < call.K; c += kLanes) {
    const float k = load_element(call.k, row * call.K + c, call.dtype);
    squares += k * k;
  }
  squares = sum_of_lanes<kLanes>(squares);
  const float s = call.key_scale[row % call.H];
  constexpr auto kEps = static_cast<float>(kL2NormEps);
  const float ratio = s * sqrtf((squares + kEps) / (s * s * squares + kEps));
  const int64_t group = call.HV / call.H;
  for (int64_t j = row * group + lane; j < (row + 1) * group; j += kLanes) {
    call.pi[j] = call.alpha[j] * ratio;
  }
}

}  // namespace

void comba_prediction(const CombaPrediction& call, Stream stream) {
  launch_early("launch of comba_prediction", comba_prediction_kernel,
               (call.tokens * call.H + kWarps - 1) / kWarps, kLanes * kWarps, 0,
               static_cast<cudaStream_t>(stream), call);
}

}  // namespace mdn::kernels::cuda
