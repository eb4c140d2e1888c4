#include "tests/support/momentum_delta_rule_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>
#include <random>

#include "mdn/core/error.h"
#include "tests/support/momentum_delta_rule_rounding.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleInputs;
using kernels::MomentumDeltaRuleProblem;
using kernels::MomentumDeltaRuleSizes;

std::vector<MomentumDeltaRuleCase> make_correctness_cases() {
  std::vector<MomentumDeltaRuleCase> cases;
  const auto add = [&](MomentumDeltaRuleCase c) { cases.push_back(std::move(c)); };
  add({.name = "one_token"});
  add({.name = "one_token_no_states", .B = 2, .H = 2, .HV = 2, .states = false});
  for (int64_t T : {2, 15, 16, 17, 63, 64, 65, 130}) {
    add({.name = "length_" + std::to_string(T), .T = T, .H = 2, .HV = 2, .K = 32, .V = 48});
  }
  add({.name = "several_segments", .B = 2, .T = 1100, .K = 16, .V = 32});
  add({.name = "several_segments_no_states", .T = 1029, .K = 32, .V = 16, .states = false});
  add({.name = "odd_channels", .B = 2, .T = 83, .H = 1, .HV = 1, .K = 13, .V = 21});
  add({.name = "one_channel", .T = 70, .K = 1, .V = 1});
  add({.name = "wide", .T = 100, .K = 128, .V = 256});
  add({.name = "wide_key", .T = 70, .K = 256, .V = 64});
  add({.name = "shared_heads", .B = 2, .T = 90, .H = 2, .HV = 6, .K = 24, .V = 40});
  add({.name = "shared_heads_l2norm", .T = 90, .H = 1, .HV = 3, .K = 20, .V = 16, .l2norm = true});
  add({.name = "l2norm", .B = 2, .T = 77, .H = 2, .HV = 2, .K = 32, .V = 32, .l2norm = true});
  add({.name = "packed",
       .T = 0,
       .H = 2,
       .HV = 2,
       .K = 32,
       .V = 32,
       .lengths = {1, 15, 0, 16, 17, 0, 0, 40, 65, 130, 0}});
  add({.name = "packed_many_segments", .T = 0, .K = 16, .V = 16, .lengths = {1, 700, 511, 513, 0}});
  add({.name = "packed_shared_l2norm",
       .T = 0,
       .H = 1,
       .HV = 2,
       .K = 17,
       .V = 33,
       .lengths = {3, 64, 0, 70},
       .l2norm = true});
  add({.name = "layer_gates",
       .T = 200,
       .H = 2,
       .HV = 2,
       .K = 32,
       .V = 64,
       .gates = Gates::kLayer,
       .l2norm = true});
  add({.name = "some_zeros",
       .T = 150,
       .H = 2,
       .HV = 2,
       .K = 16,
       .V = 32,
       .gates = Gates::kSomeZeros});
  add({.name = "some_zeros_random_pi",
       .T = 150,
       .H = 2,
       .HV = 2,
       .K = 16,
       .V = 32,
       .gates = Gates::kSomeZeros,
       .pi = Prediction::kRandom});
  add({.name = "all_zero", .T = 70, .gates = Gates::kAllZero});
  add({.name = "no_momentum", .T = 130, .K = 32, .V = 32, .gates = Gates::kNoMomentum});
  add({.name = "no_momentum_no_prediction",
       .T = 130,
       .K = 32,
       .V = 32,
       .gates = Gates::kNoMomentum,
       .pi = Prediction::kZero});
  add({.name = "without_momentum",
       .B = 2,
       .T = 130,
       .K = 32,
       .V = 48,
       .gates = Gates::kNoMomentum,
       .momentum = false});
  add({.name = "without_momentum_no_states",
       .T = 90,
       .K = 21,
       .V = 13,
       .gates = Gates::kNoMomentum,
       .pi = Prediction::kRandom,
       .states = false,
       .momentum = false});
  add({.name = "without_momentum_packed",
       .T = 0,
       .H = 2,
       .HV = 4,
       .K = 16,
       .V = 32,
       .lengths = {1, 0, 65, 600, 0},
       .gates = Gates::kNoMomentum,
       .l2norm = true,
       .momentum = false});
  add({.name = "alpha_mu_one", .T = 130, .K = 32, .V = 32, .gates = Gates::kAlphaMuOne});
  add({.name = "slow_momentum", .T = 130, .K = 32, .V = 32, .gates = Gates::kSlowMomentum});
  add({.name = "pi_zero", .T = 100, .K = 32, .V = 32, .pi = Prediction::kZero});
  add({.name = "pi_one", .T = 100, .K = 32, .V = 32, .pi = Prediction::kOne});
  add({.name = "pi_random", .B = 2, .T = 100, .K = 32, .V = 32, .pi = Prediction::kRandom});
  add({.name = "correlated_keys", .T = 200, .K = 64, .V = 64, .key_cosine = 0.5});
  add({.name = "correlated_keys_maximum",
       .T = 200,
       .K = 64,
       .V = 64,
       .gates = Gates::kMaximum,
       .key_cosine = 0.5});
  add({.name = "very_correlated_keys_maximum",
       .T = 200,
       .K = 64,
       .V = 64,
       .gates = Gates::kMaximum,
       .key_cosine = 0.95});
  add({.name = "very_correlated_keys_layer",
       .T = 200,
       .K = 64,
       .V = 64,
       .gates = Gates::kLayer,
       .key_cosine = 0.95,
       .value_scale = 30});
  add({.name = "large_values", .T = 150, .K = 32, .V = 32, .value_scale = 30, .state_scale = 10});
  return cases;
}

std::vector<MomentumDeltaRuleCase> make_speed_cases() {
  std::vector<MomentumDeltaRuleCase> cases;
  const auto add = [&](std::string name, int64_t B, int64_t T, int64_t H, int64_t K, int64_t V) {
    cases.push_back({.name = std::move(name),
                     .B = B,
                     .T = T,
                     .H = H,
                     .HV = H,
                     .K = K,
                     .V = V,
                     .gates = Gates::kLayer,
                     .states = false,
                     .l2norm = true});
  };
  add("mdn_400m", 1, 4096, 6, 128, 256);
  add("mdn_400m_hybrid", 1, 4096, 8, 128, 128);
  add("mdn_1b3", 1, 1024, 6, 256, 512);
  add("demo", 16, 256, 4, 64, 64);
  add("demo_narrow", 16, 256, 4, 32, 64);
  return cases;
}

/// Uniform in [low, high).
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53;
  }
  double normal() {
    // Box and Muller: the same numbers with every standard library.
    const double radius = std::sqrt(-2 * std::log(1 - uniform(0, 1)));
    return radius * std::cos(2 * M_PI * uniform(0, 1));
  }

 private:
  std::mt19937_64 engine_;
};

double round_to(double x, DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return x;
    case DType::kFloat32:
      return static_cast<float>(x);
    case DType::kBFloat16:
      return static_cast<float>(BFloat16(static_cast<float>(x)));
    case DType::kFloat16:
      return static_cast<float>(Float16(static_cast<float>(x)));
  }
  return x;
}

DType gate_type(DType dtype) {
  return dtype == DType::kFloat64 ? dtype : DType::kFloat32;
}

/// Gates of one token.
struct GateValues {
  double alpha, mu, eta, beta;
};

GateValues draw_gates(Gates gates, int64_t t, Random& random) {
  const auto u = [&](double low, double high) { return random.uniform(low, high); };
  GateValues mild{u(0.7, 1), u(0, 1), u(0, 2), u(0, 1)};
  switch (gates) {
    case Gates::kMild:
      return mild;
    case Gates::kLayer: {
      const double eta = u(0.1, 1.9);
      const double tangent = eta * u(0, 4);
      const double cap = 1 / (1 + tangent * tangent);  // cos²θ
      return {std::min(cap, u(0.8, 1)), u(0.8, 1), eta, u(0, 1) * (1 - cap)};
    }
    case Gates::kMaximum:
      return {u(0.9, 1), u(0.5, 0.9), 2, 1};
    case Gates::kSomeZeros:
      mild.alpha *= t % 13 != 7;
      mild.mu *= t % 5 != 3;
      mild.eta *= t % 11 != 2;
      mild.beta *= t % 9 != 4;
      return t % 29 == 17 ? GateValues{0, 0, 0, 0} : mild;
    case Gates::kAllZero:
      return {0, 0, 0, 0};
    case Gates::kNoMomentum:
      return {mild.alpha, 0, u(0, 1), mild.beta};
    case Gates::kAlphaMuOne:
      return {1, 1, u(0, 0.2), u(0, 0.1)};
    case Gates::kSlowMomentum:
      return {u(0.95, 1), u(0.97, 0.999), mild.eta, u(0, 0.1)};
    case Gates::kSlowDecay:
      return {u(0.998, 1), u(0.5, 0.9), u(0, 1), u(0, 0.3)};
  }
  return mild;
}

/// Memory of `dtype` with a guard behind it. Starts as NaN (all bits set in each of the types).
class Buffer {
 public:
  Buffer(size_t bytes, DType dtype) : dtype_(dtype), bytes_(bytes) {
    const size_t alignment = 64;
    memory_ = std::make_unique<unsigned char[]>(bytes + kGuard + alignment);
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = memory_.get() + (alignment - address % alignment) % alignment;
    std::memset(data_, 0xff, bytes_);
    std::memset(data_ + bytes_, kGuardByte, kGuard);
  }
  Buffer(const std::vector<double>& values, DType dtype)
      : Buffer(values.size() * size_of(dtype), dtype) {
    const std::vector<unsigned char> bytes = encode(values, dtype);
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  /// Null when empty: an input that is not given, an output of no elements.
  void* get() { return bytes_ > 0 ? data_ : nullptr; }
  std::vector<double> values() const { return decode(data_, bytes_ / size_of(dtype_), dtype_); }
  void check_guard(const char* name) const {
    for (size_t i = 0; i < kGuard; ++i) {
      MDN_CHECK(data_[bytes_ + i] == kGuardByte, "{}: byte {} past its end was written", name, i);
    }
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kGuardByte = 0x5a;
  DType dtype_;
  size_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_ = nullptr;
};

/// One backend's functions.
struct Backend {
  MomentumDeltaRuleSizes (*sizes)(const MomentumDeltaRuleProblem&);
  void (*forward)(const MomentumDeltaRuleForward&);
  void (*backward)(const MomentumDeltaRuleBackward&);
};

Results run_on_host(const Backend& backend, const MomentumDeltaRuleData& data, DType dtype) {
  const DType gate = gate_type(dtype);
  Buffer q(data.q, dtype), k(data.k, dtype), v(data.v, dtype), d_o(data.d_o, dtype);
  Buffer alpha(data.alpha, gate), mu(data.mu, gate), eta(data.eta, gate), beta(data.beta, gate);
  Buffer pi(data.pi, gate), S(data.S, gate), M(data.M, gate), d_S(data.d_S, gate),
      d_M(data.d_M, gate);
  const MomentumDeltaRuleProblem problem = data.problem(dtype);
  const MomentumDeltaRuleSizes sizes = backend.sizes(problem);
  const size_t states = static_cast<size_t>(data.N * data.c.HV * data.c.V * data.c.K);
  const auto rows = [&](const std::vector<double>& like) {
    return Buffer(like.size() * size_of(dtype), dtype);
  };
  const auto gates = [&](const std::vector<double>& like) {
    return Buffer(like.size() * size_of(gate), gate);
  };

  Buffer o = rows(data.v);
  const size_t states_of_M = data.c.momentum ? states : 0;
  Buffer final_S(states * size_of(gate), gate), final_M(states_of_M * size_of(gate), gate);
  Buffer saved(sizes.saved, gate), workspace(sizes.forward_workspace, gate);
  MomentumDeltaRuleForward forward;
  forward.problem = problem;
  forward.inputs = {q.get(),   k.get(),    v.get(),  alpha.get(), mu.get(),
                    eta.get(), beta.get(), pi.get(), S.get(),     M.get()};
  forward.o = o.get();
  forward.final_S = final_S.get();
  forward.final_M = final_M.get();
  forward.saved = saved.get();
  forward.workspace = workspace.get();
  backend.forward(forward);

  Buffer d_q = rows(data.q), d_k = rows(data.k), d_v = rows(data.v);
  Buffer d_alpha = gates(data.alpha), d_mu = gates(data.mu), d_eta = gates(data.eta),
         d_beta = gates(data.beta), d_pi = gates(data.pi);
  const size_t wanted = data.wants_initial_gradient ? size_of(gate) : 0;
  Buffer d_initial_S(states * wanted, gate), d_initial_M(states_of_M * wanted, gate);
  Buffer backward_workspace(sizes.backward_workspace, gate);
  MomentumDeltaRuleBackward backward;
  backward.problem = problem;
  backward.inputs = forward.inputs;
  backward.saved = saved.get();
  backward.d_o = d_o.get();
  backward.d_final_S = d_S.get();
  backward.d_final_M = d_M.get();
  backward.d_q = d_q.get();
  backward.d_k = d_k.get();
  backward.d_v = d_v.get();
  backward.d_alpha = d_alpha.get();
  backward.d_mu = d_mu.get();
  backward.d_eta = d_eta.get();
  backward.d_beta = d_beta.get();
  backward.d_pi = d_pi.get();
  backward.d_initial_S = d_initial_S.get();
  backward.d_initial_M = d_initial_M.get();
  backward.workspace = backward_workspace.get();
  backend.backward(backward);

  Results results;
  const std::pair<const char*, Buffer*> outputs[] = {{"o", &o},
                                                     {"final_S", &final_S},
                                                     {"final_M", &final_M},
                                                     {"d_q", &d_q},
                                                     {"d_k", &d_k},
                                                     {"d_v", &d_v},
                                                     {"d_alpha", &d_alpha},
                                                     {"d_mu", &d_mu},
                                                     {"d_eta", &d_eta},
                                                     {"d_beta", &d_beta},
                                                     {"d_pi", &d_pi},
                                                     {"d_S", &d_initial_S},
                                                     {"d_M", &d_initial_M}};
  for (const auto& [name, buffer] : outputs) {
    buffer->check_guard(name);
    if (buffer->get() != nullptr) {
      results.push_back({name, buffer->values()});
    }
  }
  saved.check_guard("saved");
  workspace.check_guard("forward workspace");
  backward_workspace.check_guard("backward workspace");
  return results;
}

/// Elements of v times K that tolerances simulates, at least: a second or so.
constexpr double kSimulatedElements = 1e6;

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) {
    sum += value * value;
  }
  return std::sqrt(sum);
}

}  // namespace

const std::vector<MomentumDeltaRuleCase>& correctness_cases() {
  static const std::vector<MomentumDeltaRuleCase> cases = make_correctness_cases();
  return cases;
}

const std::vector<MomentumDeltaRuleCase>& speed_cases() {
  static const std::vector<MomentumDeltaRuleCase> cases = make_speed_cases();
  return cases;
}

std::ostream& operator<<(std::ostream& out, const MomentumDeltaRuleCase& c) {
  return out << c.name;
}

MomentumDeltaRuleData::MomentumDeltaRuleData(const MomentumDeltaRuleCase& given, DType dtype,
                                             uint64_t seed)
    : c(given) {
  Random random(seed);
  if (!c.lengths.empty()) {
    c.B = 1;
    cu_seqlens.push_back(0);
    for (int64_t length : c.lengths) {
      cu_seqlens.push_back(cu_seqlens.back() + length);
    }
    c.T = cu_seqlens.back();
  }
  N = c.lengths.empty() ? c.B : static_cast<int64_t>(c.lengths.size());
  scale = 1 / std::sqrt(static_cast<double>(c.K));

  const int64_t tokens = c.B * c.T;
  const DType gate = gate_type(dtype);
  const auto normal = [&](int64_t count, double deviation, DType type) {
    std::vector<double> x(static_cast<size_t>(count));
    for (double& value : x) {
      value = round_to(deviation * random.normal(), type);
    }
    return x;
  };
  // Unit rows with mean cosine c: normalised sqrt(c) u + sqrt(1 - c) z with a u common to all rows
  // of a head; with l2norm, of any length instead.
  const auto unit_rows = [&](double cosine) {
    std::vector<double> common(static_cast<size_t>(c.H * c.K));
    std::vector<double> x(static_cast<size_t>(tokens * c.H * c.K));
    for (double& value : common) {
      value = random.normal();
    }
    for (int64_t row = 0; row < tokens * c.H; ++row) {
      double squares = 0;
      double* x_row = x.data() + row * c.K;
      for (int64_t i = 0; i < c.K; ++i) {
        x_row[i] = std::sqrt(cosine) * common[(row % c.H) * c.K + i] +
                   std::sqrt(1 - cosine) * random.normal();
        squares += x_row[i] * x_row[i];
      }
      const double length = c.l2norm ? random.uniform(0.2, 5) : 1.0;
      for (int64_t i = 0; i < c.K; ++i) {
        x_row[i] = round_to(x_row[i] * length / std::sqrt(squares), dtype);
      }
    }
    return x;
  };
  q = unit_rows(0);
  k = unit_rows(c.key_cosine);
  v = normal(tokens * c.HV * c.V, c.value_scale, dtype);
  d_o = normal(tokens * c.HV * c.V, 1, dtype);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t head = 0; head < c.HV; ++head) {
      const GateValues g = draw_gates(c.gates, token % c.T + 3 * head, random);
      alpha.push_back(round_to(g.alpha, gate));
      if (c.momentum) {
        mu.push_back(round_to(g.mu, gate));
      }
      eta.push_back(round_to(g.eta, gate));
      beta.push_back(round_to(g.beta, gate));
      if (c.pi != Prediction::kTied) {
        const double drawn = round_to(random.uniform(0, 1), gate);
        pi.push_back(c.pi == Prediction::kZero ? 0 : c.pi == Prediction::kOne ? 1 : drawn);
      }
    }
  }
  if (c.states) {
    const int64_t count = N * c.HV * c.V * c.K;
    const int64_t count_of_M = c.momentum ? count : 0;
    S = normal(count, c.state_scale, gate);
    M = normal(count_of_M, c.state_scale, gate);
    d_S = normal(count, 0.25, gate);
    d_M = normal(count_of_M, 0.25, gate);
  }
}

MomentumDeltaRuleProblem MomentumDeltaRuleData::problem(DType dtype) const {
  MomentumDeltaRuleProblem p;
  p.B = c.B;
  p.T = c.T;
  p.H = c.H;
  p.HV = c.HV;
  p.K = c.K;
  p.V = c.V;
  p.N = N;
  p.cu_seqlens = cu_seqlens.empty() ? nullptr : cu_seqlens.data();
  p.dtype = dtype;
  p.scale = scale;
  p.l2norm = c.l2norm;
  p.momentum = c.momentum;
  return p;
}

std::vector<std::pair<std::string, std::vector<double>*>> MomentumDeltaRuleData::tensors() {
  std::vector<std::pair<std::string, std::vector<double>*>> all = {
      {"q", &q},     {"k", &k},       {"v", &v},   {"alpha", &alpha}, {"mu", &mu},
      {"eta", &eta}, {"beta", &beta}, {"pi", &pi}, {"S", &S},         {"M", &M}};
  std::erase_if(all, [](const auto& entry) { return entry.second->empty(); });
  return all;
}

std::vector<unsigned char> encode(const std::vector<double>& values, DType dtype) {
  std::vector<unsigned char> bytes(values.size() * size_of(dtype));
  const auto put = [&](size_t i, auto value) {
    std::memcpy(bytes.data() + i * sizeof(value), &value, sizeof(value));
  };
  for (size_t i = 0; i < values.size(); ++i) {
    const auto single = static_cast<float>(values[i]);
    switch (dtype) {
      case DType::kFloat64:
        put(i, values[i]);
        break;
      case DType::kFloat32:
        put(i, single);
        break;
      case DType::kFloat16:
        put(i, Float16(single));
        break;
      case DType::kBFloat16:
        put(i, BFloat16(single));
        break;
    }
  }
  return bytes;
}

std::vector<double> decode(const void* memory, size_t count, DType dtype) {
  std::vector<double> values(count);
  const auto read = [&](size_t i, auto like) {
    std::memcpy(&like, static_cast<const unsigned char*>(memory) + i * sizeof(like), sizeof(like));
    return like;
  };
  for (size_t i = 0; i < count; ++i) {
    switch (dtype) {
      case DType::kFloat64:
        values[i] = read(i, double{});
        break;
      case DType::kFloat32:
        values[i] = static_cast<double>(read(i, float{}));
        break;
      case DType::kFloat16:
        values[i] = static_cast<float>(read(i, Float16{}));
        break;
      case DType::kBFloat16:
        values[i] = static_cast<float>(read(i, BFloat16{}));
        break;
    }
  }
  return values;
}

const std::vector<double>& at(const Results& results, const std::string& name) {
  for (const Values& values : results) {
    if (values.name == name) {
      return values.x;
    }
  }
  MDN_THROW("no result named {}", name);
}

bool is_gradient(const std::string& name) {
  return name.starts_with("d_");
}

Results run_reference(const MomentumDeltaRuleData& data) {
  return run_on_host(
      {kernels::reference::sizes, kernels::reference::forward, kernels::reference::backward}, data,
      DType::kFloat64);
}

Results run_cpu(const MomentumDeltaRuleData& data, DType dtype) {
  return run_on_host({kernels::cpu::sizes, kernels::cpu::forward, kernels::cpu::backward}, data,
                     dtype);
}

double relative_error(const std::vector<double>& x, const std::vector<double>& reference) {
  MDN_CHECK(x.size() == reference.size(), "{} numbers against {}", x.size(), reference.size());
  std::vector<double> difference(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    difference[i] = x[i] - reference[i];
  }
  const double off = norm(difference);
  const double whole = norm(reference);
  if (whole == 0) {
    return off == 0 ? 0.0 : std::numeric_limits<double>::infinity();
  }
  return off / whole;
}

std::vector<std::pair<std::string, double>> tolerances(const MomentumDeltaRuleData& data,
                                                       DType dtype, const Results& reference,
                                                       const std::vector<int64_t>& chunks,
                                                       bool rounds_operands) {
  Rounding rounding;
  if (rounds_operands) {  // beside which sums in float32 are exact
    rounding.inputs = format_of(dtype);
    rounding.half = format_of(DType::kFloat16);
  } else {
    rounding.unit = unit_roundoff(gate_type(dtype));
  }
  rounding.gradients = std::any_of(reference.begin(), reference.end(),
                                   [](const Values& values) { return is_gradient(values.name); });
  // Small results need more draws until their mean square is known, and cost less; so do few causes
  // of errors.
  const double elements = static_cast<double>(data.v.size()) * static_cast<double>(data.c.K);
  const double fewest = rounds_operands ? 16 : 1;
  const auto draws = static_cast<int>(std::clamp(kSimulatedElements / elements, fewest, 32.0));
  std::vector<double> expected(reference.size());  // root mean square of the draws
  for (const int64_t chunk : chunks) {
    rounding.chunk = chunk;
    std::vector<double> squares(reference.size());
    for (int draw = 1; draw <= draws; ++draw) {
      const Results results = run_with_rounding(data, rounding, static_cast<uint64_t>(draw));
      for (size_t i = 0; i < reference.size(); ++i) {
        const double error = relative_error(at(results, reference[i].name), reference[i].x);
        squares[i] += error * error / draws;
      }
    }
    for (size_t i = 0; i < reference.size(); ++i) {
      expected[i] = std::max(expected[i], std::sqrt(squares[i]));
    }
  }
  std::vector<std::pair<std::string, double>> result;
  for (size_t i = 0; i < reference.size(); ++i) {
    const Values& values = reference[i];
    const bool of_rows =
        values.name == "o" || values.name == "d_q" || values.name == "d_k" || values.name == "d_v";
    // ‖x‖ of n independent errors stays below 1 + 4 / sqrt(2 n) of its expected size at four
    // standard deviations. Errors of one result have common causes: no more than 8 count. With
    // rounded operands one may be alone: <dS, S> of a chunk, or <dS, M>, <dM, M>, are part of each
    // of its tokens' gradients of these gates.
    const bool of_decay =
        values.name == "d_alpha" || values.name == "d_mu" || values.name == "d_beta";
    const double independent =
        rounds_operands && of_decay ? 1.0 : std::min(static_cast<double>(values.x.size()), 8.0);
    const double spread = 1 + 4 / std::sqrt(2 * independent);
    result.emplace_back(values.name,
                        unit_roundoff(of_rows ? dtype : gate_type(dtype)) + spread * expected[i]);
  }
  return result;
}

std::string compare(const Results& results, const Results& reference,
                    const std::vector<std::pair<std::string, double>>& tolerances) {
  std::string report;
  for (const auto& [name, tolerance] : tolerances) {
    const double error = relative_error(at(results, name), at(reference, name));
    if (!(error <= tolerance)) {
      report += fmt::format("{}: relative error {:.3g}, allowed {:.3g}\n", name, error, tolerance);
    }
  }
  return report;
}

}  // namespace mdn::test
