#include "mdn/model/verify.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

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

/// Results by the names that golden files give them.
using Results = std::vector<std::pair<std::string, at::Tensor>>;

/// Logits, loss, the logits after a prefill and `steps` further tokens, every gradient.
Results results_of(const Decoder& decoder, const at::Tensor& ids, int64_t steps) {
  Results results;
  results.emplace_back("logits", decoder.logits(decoder.hidden(ids)).detach());

  // labels: the ids shifted left by one, the last position ignored
  at::Tensor targets = at::full_like(ids, -100);
  targets.narrow(1, 0, ids.size(1) - 1).copy_(ids.narrow(1, 1, ids.size(1) - 1));
  const at::Tensor loss = decoder.loss(ids, targets);
  results.emplace_back("loss", loss.detach());

  {
    at::NoGradGuard no_grad;
    const int64_t prefill = ids.size(1) - steps;
    DecoderState state = decoder.new_state();
    std::vector<at::Tensor> got = {
        decoder.hidden(ids.narrow(1, 0, prefill), {}, &state).narrow(1, prefill - 1, 1)};
    for (int64_t t = prefill; t < ids.size(1); ++t) {
      got.push_back(decoder.hidden(ids.narrow(1, t, 1), {}, &state));
    }
    results.emplace_back("decode_logits", decoder.logits(at::cat(got, 1)));
  }

  std::vector<at::Tensor> leaves;
  for (const Parameter& p : decoder.parameters().entries()) {
    leaves.push_back(p.value);
  }
  const auto gradients = torch::autograd::grad({loss}, leaves);
  for (size_t i = 0; i < leaves.size(); ++i) {
    results.emplace_back("grad." + decoder.parameters().entries()[i].spec.name, gradients[i]);
  }
  return results;
}

double unit_roundoff(at::ScalarType type) {
  return type == at::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

double most_allowed(at::ScalarType type, const std::string& name, const at::Tensor& value) {
  const VerifyTolerances most = default_tolerances(type);
  return !name.starts_with("grad.") ? most.logits : value.dim() > 1 ? most.gradients : most.vectors;
}

/// Allowed errors of a 16-bit run, from float32 runs of the model with every weight off by one
/// rounding, a relative ±u of random sign: the root mean square of the answers, times what chance
/// adds to it in four standard deviations (1 + 4 / sqrt(2 n) for n independent errors, of which a
/// result has no more than 8).
std::vector<double> answers_to_rounding(const Config& config, const Parameters& exact,
                                        at::ScalarType type, const at::Tensor& ids, int64_t steps,
                                        const Results& want) {
  constexpr int kDraws = 16;  // single numbers need them: the mean square is known to a third
  std::vector<double> squares(want.size());
  at::Generator generator = at::detail::createCPUGenerator(7);
  for (int draw = 0; draw < kDraws; ++draw) {
    Parameters shaken = exact;
    for (Parameter& p : shaken.entries()) {
      const at::Tensor signs = at::rand(p.value.sizes(), generator).sub_(0.5).sign_();
      p.value = (p.value.detach() *
                 (1 + unit_roundoff(type) * signs).to(p.value.device(), p.value.scalar_type()));
    }
    shaken.set_requires_grad(true);
    const Results got = results_of(Decoder(config, std::move(shaken)), ids, steps);
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = relative_error(got[i].second, want[i].second.cpu());
      squares[i] += error * error / kDraws;
    }
  }
  std::vector<double> allowed;
  for (size_t i = 0; i < want.size(); ++i) {
    const auto& [name, value] = want[i];
    const double independent = std::min(static_cast<double>(value.numel()), 8.0);
    allowed.push_back(std::min(most_allowed(type, name, value),
                               (1 + 4 / std::sqrt(2 * independent)) * std::sqrt(squares[i])));
  }
  return allowed;
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
                                c10::Device device, const GivenTolerances& given) {
  const Config config = read_config(folder.string());
  const std::filesystem::path single = folder / "weights.safetensors";
  const auto load = [&](at::ScalarType wanted) {
    Parameters parameters =
        Parameters::load(config, std::filesystem::exists(single) ? single : folder, wanted, device);
    parameters.set_requires_grad(true);
    return parameters;
  };
  const SafetensorsFile golden(folder / "golden.safetensors");
  const at::Tensor ids = to_tensor(golden.at("input_ids")).to(device, at::kLong);
  MDN_CHECK(ids.dim() == 2 && ids.size(1) >= 2, "{}: input_ids must be [B, T] with T of at least 2",
            golden.path().string());
  MDN_CHECK(ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < config.vocab_size,
            "{}: input_ids must lie in the vocabulary of {}", golden.path().string(),
            config.vocab_size);
  const at::Tensor decode_logits = to_tensor(golden.at("decode_logits"));
  MDN_CHECK(decode_logits.dim() == 3 && decode_logits.size(1) >= 1 &&
                decode_logits.size(1) <= ids.size(1),
            "{}: decode_logits must be [B, n + 1, vocab] with n below the {} tokens of input_ids",
            golden.path().string(), ids.size(1));
  const int64_t steps = decode_logits.size(1) - 1;

  const Results got = results_of(Decoder(config, load(type)), ids, steps);
  std::vector<double> answers;
  if (type == at::kBFloat16 || type == at::kHalf) {
    const Parameters exact = load(at::kFloat);
    const Results want = results_of(Decoder(config, exact), ids, steps);
    answers = answers_to_rounding(config, exact, type, ids, steps, want);
  }
  std::vector<VerifyEntry> entries;
  size_t first_gradient = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const auto& [name, value] = got[i];
    const bool gradient = name.starts_with("grad.");
    first_gradient += gradient ? 0 : 1;
    const double usual = answers.empty() ? most_allowed(type, name, value) : answers[i];
    entries.push_back({name, relative_error(value, to_tensor(golden.at(name))),
                       (gradient ? given.gradients : given.logits).value_or(usual)});
  }
  // What is furthest from its bound first.
  std::stable_sort(entries.begin() + static_cast<std::ptrdiff_t>(first_gradient), entries.end(),
                   [](const VerifyEntry& a, const VerifyEntry& b) {
                     return !(a.error * b.allowed <= b.error * a.allowed);
                   });
  return entries;
}

}  // namespace mdn::model
