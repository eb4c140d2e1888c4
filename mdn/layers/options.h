// Sizes and choices of every mixer, as plain data: what a configuration gives and a layer reads.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace mdn::layers {

/// How a linear-attention layer's output is gated (RMSNorm always; then times the gate).
enum class GateKind { kNone, kFull, kLowRank };

/// How momentum acts (docs/math/momentum_variants.md). kNone: no M at all.
enum class MomentumKind { kNone, kHeavyBall, kNesterov, kQuasiHyperbolic };

/// What the layers with q, k, v heads of a fast-weight state share. K = head_dim, V = value_dim.
struct HeadOptions {
  int64_t num_heads = 6;        // H: query/key heads
  int64_t num_value_heads = 6;  // HV, a multiple of H; value head j reads q/k head j / (HV/H)
  int64_t head_dim = 256;       // K
  int64_t value_dim = 512;      // V
  bool use_short_conv = true;   // else silu of the projection
  int64_t conv_size = 4;        // W
  double norm_eps = 1e-6;       // of the output's norm

  int64_t keys() const { return num_heads * head_dim; }           // channels of q and of k
  int64_t values() const { return num_value_heads * value_dim; }  // channels of v
  int64_t group() const { return num_value_heads / num_heads; }   // value heads a q/k head
};

struct MomentumDeltaNetOptions : HeadOptions {
  GateKind gate = GateKind::kFull;
  int64_t gate_rank = 0;                    // of kLowRank
  bool predict_with_alpha = true;           // use_p_times_alpha: pi = alpha, else 1
  bool output_correction = true;            // q <- q - exp(D_log) k
  std::optional<double> min_log_mu = -2.0;  // floor of log mu; absent: none
  double tau = 1.0;                         // of eta: sqrt(hidden_size / tau_factor)
  // What the published layer has no choice in.
  MomentumKind momentum = MomentumKind::kHeavyBall;
  bool alpha_cap = true;  // alpha <= cos² theta, else 1
  bool beta_cap = true;   // beta <= sin² theta, else 1

  /// Whether the rule and its gates are those of the published layer, for which there are kernels.
  bool published_rule() const {
    return momentum == MomentumKind::kHeavyBall && alpha_cap && beta_cap;
  }
};

struct GatedDeltaNetOptions : HeadOptions {
  bool gate = true;
  bool allow_neg_eigval = false;  // beta in (0, 2)
};

struct CombaOptions : HeadOptions {
  bool gate = true;
};

struct KimiDeltaAttentionOptions : HeadOptions {
  bool allow_neg_eigval = false;      // beta in (0, 2)
  std::optional<double> lower_bound;  // of log alpha, which then comes from a sigmoid
};

struct Mamba2Options {
  int64_t num_heads = 64;    // H
  int64_t head_dim = 64;     // P: a head's value channels
  int64_t state_size = 128;  // N: key channels
  int64_t num_groups = 1;    // G, divides H: head j reads B and C of group j / (H/G)
  int64_t conv_size = 4;     // W
  bool bias = false;         // of in_proj and out_proj
  bool conv_bias = true;
  bool norm = true;               // else the gate alone
  bool norm_before_gate = false;  // else the gate comes first
  double dt_limit_low = 0;
  double dt_limit_high = std::numeric_limits<double>::infinity();
  double norm_eps = 1e-5;

  int64_t inner() const { return num_heads * head_dim; }  // E
  /// Channels of the convolution: x, B, C.
  int64_t convolved() const { return inner() + 2 * num_groups * state_size; }
};

struct AttentionOptions {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;      // d
  bool qkv_bias = false;
  bool qk_norm = false;                // RMSNorm of each head's q and k before the rotation
  std::optional<int64_t> window_size;  // a query sees itself and window_size - 1 tokens before it
  double rope_theta = 10000.0;
};

}  // namespace mdn::layers
