#include "mdn/model/verify.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/model/decoder.h"

namespace mdn::model {
namespace {

double relative_error(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor a = got.detach().to(at::kCPU, at::kDouble), b = want.to(at::kDouble);
  MDN_CHECK(a.numel() == b.numel(), "golden shape [{}] against [{}]", fmt::join(b.sizes(), ", "),
            fmt::join(a.sizes(), ", "));
  const double norm = b.norm().item<double>();
  const double error = (a.reshape(b.sizes()) - b).norm().item<double>();
  return norm > 0 ? error / norm : error;
}

}  // namespace

VerifyTolerances default_tolerances(at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return {.logits = 0.03, .gradients = 0.10, .vectors = 0.30};
    case at::kHalf:
      return {.logits = 0.005, .gradients = 0.02, .vectors = 0.06};
    default:
      return {};
  }
}

std::vector<VerifyEntry> verify(const std::filesystem::path& folder, at::ScalarType type,
                                c10::Device device, const VerifyTolerances& tolerances) {
  const Config config = read_config(folder.string());
  const std::filesystem::path single = folder / "weights.safetensors";
  Parameters parameters =
      Parameters::load(config, std::filesystem::exists(single) ? single : folder, type, device);
  parameters.set_requires_grad(true);
  const Decoder decoder(config, std::move(parameters));
  const SafetensorsFile golden(folder / "golden.safetensors");
  const at::Tensor ids = to_tensor(golden.at("input_ids")).to(device, at::kLong);
  MDN_CHECK(ids.dim() == 2 && ids.size(1) >= 2, "{}: input_ids must be [B, T] with T of at least 2",
            golden.path().string());
  MDN_CHECK(ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < config.vocab_size,
            "{}: input_ids must lie in the vocabulary of {}", golden.path().string(),
            config.vocab_size);

  std::vector<VerifyEntry> entries;
  const auto compare = [&](const std::string& name, const at::Tensor& got, double allowed) {
    entries.push_back({name, relative_error(got, to_tensor(golden.at(name))), allowed});
  };
  compare("logits", decoder.logits(decoder.hidden(ids)), tolerances.logits);

  // labels: the ids shifted left by one, the last position ignored
  at::Tensor targets = at::full_like(ids, -100);
  targets.narrow(1, 0, ids.size(1) - 1).copy_(ids.narrow(1, 1, ids.size(1) - 1));
  const at::Tensor loss = decoder.loss(ids, targets);
  compare("loss", loss, tolerances.logits);

  {
    at::NoGradGuard no_grad;
    const at::Tensor& want = to_tensor(golden.at("decode_logits"));
    const int64_t steps = want.size(1) - 1, prefill = ids.size(1) - steps;
    DecoderState state = decoder.new_state();
    std::vector<at::Tensor> got = {
        decoder.hidden(ids.narrow(1, 0, prefill), {}, &state).narrow(1, prefill - 1, 1)};
    for (int64_t t = prefill; t < ids.size(1); ++t) {
      got.push_back(decoder.hidden(ids.narrow(1, t, 1), {}, &state));
    }
    compare("decode_logits", decoder.logits(at::cat(got, 1)), tolerances.logits);
  }

  std::vector<at::Tensor> leaves;
  for (const Parameter& p : decoder.parameters().entries()) {
    leaves.push_back(p.value);
  }
  const auto gradients = torch::autograd::grad({loss}, leaves);
  const size_t first = entries.size();
  for (size_t i = 0; i < leaves.size(); ++i) {
    compare("grad." + decoder.parameters().entries()[i].spec.name, gradients[i],
            leaves[i].dim() > 1 ? tolerances.gradients : tolerances.vectors);
  }
  std::stable_sort(
      entries.begin() + static_cast<std::ptrdiff_t>(first), entries.end(),
      [](const VerifyEntry& a, const VerifyEntry& b) { return !(a.error <= b.error); });
  return entries;
}

}  // namespace mdn::model
