// For operators without a derivative: going back through one is an error, not a lost gradient.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <vector>

namespace mdn::ops {

/// The boxed Autograd kernel of an operator with one output. Where an argument requires a gradient
/// the output does too, and asking for it throws, naming the operator. What is written in place
/// stays outside the graph.
inline void refuse_gradient(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                            torch::jit::Stack* stack) {
  std::vector<at::Tensor> inputs;
  if (at::GradMode::is_enabled()) {
    for (const c10::IValue& value : torch::jit::last(stack, op.schema().arguments().size())) {
      if (value.isTensor() && value.toTensor().defined() && value.toTensor().requires_grad()) {
        inputs.push_back(value.toTensor());
      }
    }
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  if (!inputs.empty()) {
    torch::autograd::set_history(
        stack->back().toTensor(),
        std::make_shared<torch::autograd::Error>(
            fmt::format("{} has no gradient; call it under torch.no_grad()", op.schema().name()),
            torch::autograd::collect_next_edges(inputs)));
  }
}

}  // namespace mdn::ops
