// mdn info: what a configuration amounts to, without allocating it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <map>

#include "apps/mdn/commands.h"
#include "mdn/model/config.h"
#include "mdn/model/weights.h"

namespace mdn::app {
namespace {

using model::Config;
using model::MixerKind;

struct Options {
  std::string config;
  int64_t batch = 1;
  int64_t length = 4096;
  bool weights = false;
};

// 417,537,012
std::string grouped(int64_t n) {
  const std::string digits = std::to_string(n);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) {
      text += ',';
    }
    text += digits[i];
  }
  return text;
}

std::string size_text(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", bytes, units[unit]);
}

// Elements a token leaves for the backward pass, counted from the layers' inputs, as they are
// written: norms keep their input, projections theirs, the operator q, k, v, o and the gates.
int64_t activations_per_token(const Config& c) {
  const auto& m = c.momentum_deltanet;
  const int64_t D = c.hidden_size, I = c.intermediate_size;
  const int64_t key = m.num_heads * m.head_dim, value = m.num_value_heads * m.value_dim;
  int64_t total = 2 * D + c.vocab_size;  // embeddings, final norm, logits
  for (MixerKind kind : c.layers) {
    total += 2 * D + 2 * D + 4 * I;  // residuals, norms, the MLP's gate, up, silu and product
    if (kind == MixerKind::kMomentumDeltaNet) {
      total += 3 * (2 * key + value);               // projections, convolutions, silu
      total += 4 * value + 16 * m.num_value_heads;  // o, gate, norm, product; gates
    } else {
      const int64_t kv = c.attention.num_kv_heads * (D / c.attention.num_heads);
      total += 3 * D + 4 * kv;
    }
  }
  return total;
}

void run(const Options& options) {
  const Config c = model::read_config(options.config);
  std::map<std::string, int64_t> parts;
  int64_t parameters = 0, decayed = 0;
  for (const model::WeightSpec& spec : model::weight_table(c)) {
    if (options.weights) {
      fmt::print("{:<60} [{}]{}\n", spec.name, fmt::join(spec.shape, ", "),
                 spec.decay ? "" : "  no decay");
    }
    parts[spec.part] += spec.numel();
    parameters += spec.numel();
    decayed += spec.decay ? spec.numel() : 0;
  }
  int64_t attention_layers = 0;
  for (MixerKind kind : c.layers) {
    attention_layers += kind == MixerKind::kAttention ? 1 : 0;
  }
  const auto& m = c.momentum_deltanet;
  const auto momentum_layers = static_cast<int64_t>(c.layers.size()) - attention_layers;
  fmt::print("{}: {}, {} layers ({} attention), width {}, MLP {}, vocabulary {}{}\n",
             options.config, c.model_type, c.layers.size(), attention_layers, c.hidden_size,
             c.intermediate_size, c.vocab_size, c.tie_word_embeddings ? ", tied head" : "");
  fmt::print("momentum layers: {} query/key heads of {}, {} value heads of {}\n\n", m.num_heads,
             m.head_dim, m.num_value_heads, m.value_dim);
  fmt::print("parameters          {:>16}\n", grouped(parameters));
  for (const auto& [part, count] : parts) {
    fmt::print("  {:<18}{:>16}  {:5.1f}%\n", part, grouped(count),
               100.0 * static_cast<double>(count) / static_cast<double>(parameters));
  }
  fmt::print("  with weight decay {:>16}\n\n", grouped(decayed));

  const auto P = static_cast<double>(parameters);
  const double tokens = static_cast<double>(options.batch * options.length);
  const double state = static_cast<double>(momentum_layers * m.num_value_heads) *
                       (2.0 * static_cast<double>(m.head_dim * m.value_dim)) * 4.0;
  const double conv =
      m.use_short_conv
          ? static_cast<double>(momentum_layers * (m.conv_size - 1) *
                                (2 * m.num_heads * m.head_dim + m.num_value_heads * m.value_dim)) *
                4.0
          : 0.0;
  fmt::print("memory                        float32     bfloat16\n");
  fmt::print("  weights                 {:>11}  {:>11}\n", size_text(4 * P), size_text(2 * P));
  fmt::print("  gradients               {:>11}  {:>11}\n", size_text(4 * P), size_text(4 * P));
  fmt::print("  AdamW, float32          {:>11}  {:>11}  (bfloat16: and float32 weights, {})\n",
             size_text(8 * P), size_text(8 * P), size_text(4 * P));
  const double activations = static_cast<double>(activations_per_token(c)) * tokens;
  fmt::print("  activations, {} x {:<6} {:>9}  {:>11}  (estimate)\n", options.batch, options.length,
             size_text(4 * activations), size_text(2 * activations));
  fmt::print("  state of a sequence     {:>11}  {:>11}  (float32 always; length does not matter)\n",
             size_text(state + conv), size_text(state + conv / 2));
  if (attention_layers > 0) {
    const int64_t kv = c.attention.num_kv_heads * (c.hidden_size / c.attention.num_heads);
    const int64_t kept = std::min(options.length, c.attention.window_size.value_or(options.length));
    const double cache = static_cast<double>(attention_layers * 2 * kv * kept);
    fmt::print("  KV cache at {:<6}      {:>11}  {:>11}\n", options.length, size_text(4 * cache),
               size_text(2 * cache));
  }
}

}  // namespace

void add_info(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "info",
      "Parameters by part and memory of weights, optimiser, activations and states of a\n"
      "configuration. Nothing of that size is allocated.");
  command->add_option("CONFIG", options->config, "a config.json, or a folder with one")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("--batch", options->batch, "rows, for the activations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--length", options->length, "tokens a row")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--weights", options->weights, "list every parameter with its shape");
  command->footer("Example: mdn info configs/mdn_400m.json --batch 8");
  command->callback([options] { run(*options); });
}

}  // namespace mdn::app
