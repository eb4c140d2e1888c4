// The stepper of a build without CUDA, where no model can lie on a device.
#include "mdn/core/error.h"
#include "mdn/generate/cuda_stepper.h"

namespace mdn::generate {

struct CudaStepper::Graph {};

bool CudaStepper::supports(const model::Decoder&) {
  return false;
}

CudaStepper::CudaStepper(const model::Decoder& decoder) : device_(at::kCPU), step_(decoder) {
  MDN_THROW("the stepper needs a build with CUDA");
}

CudaStepper::~CudaStepper() = default;

CudaStepper::Next CudaStepper::step(const std::vector<int64_t>&, const std::vector<int64_t>&,
                                    model::DecoderState&, const Drawing*) {
  return {};
}

CudaStepper::Next CudaStepper::step_alone(int64_t, int64_t, model::DecoderState&, const Drawing*) {
  return {};
}

}  // namespace mdn::generate
