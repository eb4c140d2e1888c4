// Compares a model against a golden file: logits, loss, every gradient, prefill and decode.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace mdn::model {

/// Relative error in the 2-norm, ‖got - want‖ / ‖want‖, against the allowed one.
struct VerifyEntry {
  std::string name;  // logits, loss, decode_logits, grad.<parameter>
  double error = 0;
  double allowed = 0;
  bool ok() const { return error <= allowed; }  // false for NaN
};

/// The most that is ever allowed. float32 and float64: the goldens' own accuracy, for they are
/// float32. bfloat16 and float16: `verify` computes its bounds for the model (docs/numerics.md) and
/// these cap them.
struct VerifyTolerances {
  double logits = 1e-5;     // logits, loss, decode_logits
  double gradients = 1e-4;  // of matrices
  double vectors = 1e-4;    // of vectors: sums over all tokens of terms of either sign
};
VerifyTolerances default_tolerances(at::ScalarType type);

/// Bounds that the caller sets; absent: the model's.
struct GivenTolerances {
  std::optional<double> logits;     // logits, loss, decode_logits
  std::optional<double> gradients;  // of every parameter
};

/// Folder with config.json, weights.safetensors (or model.safetensors) and golden.safetensors:
/// input_ids [B, T], logits, loss, grad.* of every parameter, decode_logits [B, n + 1, vocab], the
/// last position's logits after a prefill of T - n tokens and after each further token. Entries in
/// the order: logits, loss, decode_logits, gradients from the worst.
std::vector<VerifyEntry> verify(const std::filesystem::path& folder, at::ScalarType type,
                                c10::Device device, const GivenTolerances& given = {});

}  // namespace mdn::model
