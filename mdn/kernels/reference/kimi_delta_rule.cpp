// kimi_delta_rule, reference backend: float64, one token after the other, one head after the other.
// It is the definition written out, and its gradient by the chain rule, so that it can be read
// against docs/math/kimi_delta_rule.md. Memory of the backward pass: see the momentum delta rule's.
#include "mdn/kernels/kimi_delta_rule.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/kernels/check.h"
#include "mdn/kernels/reference/parts.h"

namespace mdn::kernels::reference {
namespace {

constexpr const char* kOp = "kimi_delta_rule";

/// The operands of one token and value head. What the formulas call q and k is q_factor q and
/// k_factor k: the factors are 1 unless the call asks for normalised rows.
struct Token {
  const double* q;      // [K]
  const double* k;      // [K]
  const double* v;      // [V]
  const double* alpha;  // [K]
  double q_factor, k_factor;
  double beta;
};

class Reader {
 public:
  Reader(const KimiDeltaRuleProblem& p, const KimiDeltaRuleInputs& x) : p_(p), x_(x) {}

  Token operator()(int64_t token, int64_t head) const {
    const int64_t row = (token * p_.H + head / (p_.HV / p_.H)) * p_.K;
    const int64_t gate = token * p_.HV + head;
    Token t;
    t.q = as_double(x_.q) + row;
    t.k = as_double(x_.k) + row;
    t.v = as_double(x_.v) + gate * p_.V;
    t.alpha = as_double(x_.alpha) + gate * p_.K;
    t.q_factor = p_.l2norm ? norm_factor(t.q, p_.K) : 1.0;
    t.k_factor = p_.l2norm ? norm_factor(t.k, p_.K) : 1.0;
    t.beta = as_double(x_.beta)[gate];
    return t;
  }

 private:
  const KimiDeltaRuleProblem& p_;
  const KimiDeltaRuleInputs& x_;
};

/// Moves the state [V, K] over one token. `o` null: not wanted.
void advance(const Token& t, int64_t K, int64_t V, double scale, double* S, double* o) {
  for (int64_t v = 0; v < V; ++v) {
    double* S_v = S + v * K;
    // S <- diag(alpha) S;  r = v - Sᵀk;  S <- S + beta k rᵀ
    for (int64_t i = 0; i < K; ++i) {
      S_v[i] *= t.alpha[i];
    }
    const double r = t.v[v] - t.k_factor * dot(S_v, t.k, K);
    for (int64_t i = 0; i < K; ++i) {
      S_v[i] += t.beta * t.k_factor * t.k[i] * r;
    }
    if (o != nullptr) {
      // o = scale Sᵀq
      o[v] = scale * t.q_factor * dot(S_v, t.q, K);
    }
  }
}

/// What the gradient of one token is added to or written to.
struct TokenGradient {
  double* q;      // [K], added to; of q_factor q
  double* k;      // [K], added to; of k_factor k
  double* v;      // [V], written
  double* alpha;  // [K], added to
  double beta;    // written
};

/// Gradient of `advance`. S0 is the state before the token, S1 that after it, both [V, K]. dS comes
/// in as the gradient of S1 from all that follows, and leaves as that of S0.
void retreat(const Token& t, int64_t K, int64_t V, double scale, const double* S0, const double* S1,
             const double* d_o, double* dS, TokenGradient& grad) {
  grad.beta = 0;
  for (int64_t v = 0; v < V; ++v) {
    const double* S0_v = S0 + v * K;
    double* dS_v = dS + v * K;
    double prediction = 0;  // (diag(alpha) S0)ᵀk
    double k_dS = 0;        // k·dS
    for (int64_t i = 0; i < K; ++i) {
      // o = scale S1ᵀq
      grad.q[i] += scale * S1[v * K + i] * d_o[v];
      dS_v[i] += scale * t.q_factor * t.q[i] * d_o[v];
      prediction += t.alpha[i] * S0_v[i] * t.k_factor * t.k[i];
      k_dS += t.k_factor * t.k[i] * dS_v[i];
    }
    // S1 = diag(alpha) S0 + beta k rᵀ,  r = v - (diag(alpha) S0)ᵀk
    const double r = t.v[v] - prediction;
    grad.beta += k_dS * r;
    const double dr = t.beta * k_dS;
    grad.v[v] = dr;
    for (int64_t i = 0; i < K; ++i) {
      grad.k[i] += t.beta * r * dS_v[i] - t.alpha[i] * S0_v[i] * dr;
      const double d_decayed = dS_v[i] - t.k_factor * t.k[i] * dr;
      grad.alpha[i] += d_decayed * S0_v[i];
      dS_v[i] = t.alpha[i] * d_decayed;
    }
  }
}

void check_supported(DType dtype) {
  MDN_CHECK(dtype == DType::kFloat64,
            "kimi_delta_rule: the reference backend has no {}; it has float64", name_of(dtype));
}

}  // namespace

KimiDeltaRuleSizes sizes(const KimiDeltaRuleProblem& p) {
  const int64_t state = p.V * p.K;
  const int64_t run = run_length(p.T);
  KimiDeltaRuleSizes sizes;
  sizes.forward_workspace = sizeof(double) * static_cast<size_t>(state);
  // A state at the start of each run, one around each token of a run, the state's gradient, and the
  // gradients of a row of q and of k.
  sizes.backward_workspace =
      sizeof(double) * static_cast<size_t>(state * (run + (run + 1) + 1) + 2 * p.K);
  return sizes;
}

void forward(const KimiDeltaRuleForward& call) {
  check(call);
  const KimiDeltaRuleProblem& p = call.problem;
  check_supported(p.dtype);
  check_cu_seqlens(kOp, p);
  const int64_t state = p.V * p.K;
  double* S = as_double(call.workspace);
  const Reader read(p, call.inputs);
  for (int64_t n = 0; n < p.N; ++n) {
    const Sequence tokens = sequence(p, n);
    for (int64_t head = 0; head < p.HV; ++head) {
      read_state(call.inputs.initial_S, n * p.HV + head, state, S);
      for (int64_t t = tokens.begin; t < tokens.begin + tokens.length; ++t) {
        advance(read(t, head), p.K, p.V, p.scale, S, as_double(call.o) + (t * p.HV + head) * p.V);
      }
      write_state(S, n * p.HV + head, state, call.final_S);
    }
  }
}

void backward(const KimiDeltaRuleBackward& call) {
  check(call);
  const KimiDeltaRuleProblem& p = call.problem;
  check_supported(p.dtype);
  check_cu_seqlens(kOp, p);
  const int64_t K = p.K;
  const int64_t V = p.V;
  const int64_t state = V * K;
  const int64_t run = run_length(p.T);
  Workspace workspace(call.workspace);
  double* starts = workspace.take(run * state);        // S before each run
  double* states = workspace.take((run + 1) * state);  // S around each token of a run
  double* dS = workspace.take(state);
  double* d_rows = workspace.take(2 * K);
  const Reader read(p, call.inputs);

  // Value heads that share a query/key head add to the same rows.
  std::fill_n(as_double(call.d_q), p.B * p.T * p.H * K, 0.0);
  std::fill_n(as_double(call.d_k), p.B * p.T * p.H * K, 0.0);
  std::fill_n(as_double(call.d_alpha), p.B * p.T * p.HV * K, 0.0);

  for (int64_t n = 0; n < p.N; ++n) {
    const Sequence tokens = sequence(p, n);
    const int64_t end = tokens.begin + tokens.length;
    for (int64_t head = 0; head < p.HV; ++head) {
      const int64_t index = n * p.HV + head;
      read_state(call.inputs.initial_S, index, state, states);
      int64_t runs = 0;
      for (int64_t t = tokens.begin; t < end; ++t) {
        if ((t - tokens.begin) % run == 0) {
          std::copy_n(states, state, starts + runs * state);
          ++runs;
        }
        advance(read(t, head), K, V, p.scale, states, nullptr);
      }
      read_state(call.d_final_S, index, state, dS);
      for (int64_t r = runs - 1; r >= 0; --r) {
        const int64_t first = tokens.begin + r * run;
        const int64_t last = std::min(first + run, end);
        std::copy_n(starts + r * state, state, states);
        for (int64_t t = first; t < last; ++t) {
          double* after = states + (t - first + 1) * state;
          std::copy_n(after - state, state, after);
          advance(read(t, head), K, V, p.scale, after, nullptr);
        }
        for (int64_t t = last - 1; t >= first; --t) {
          const double* before = states + (t - first) * state;
          const Token token = read(t, head);
          const int64_t gate = t * p.HV + head;
          std::fill_n(d_rows, 2 * K, 0.0);
          TokenGradient grad;
          grad.q = d_rows;
          grad.k = d_rows + K;
          grad.v = as_double(call.d_v) + gate * V;
          grad.alpha = as_double(call.d_alpha) + gate * K;
          retreat(token, K, V, p.scale, before, before + state, as_double(call.d_o) + gate * V, dS,
                  grad);
          const int64_t row = (t * p.H + head / (p.HV / p.H)) * K;
          add_row_gradient(token.q, token.q_factor, p.l2norm, grad.q, K, as_double(call.d_q) + row);
          add_row_gradient(token.k, token.k_factor, p.l2norm, grad.k, K, as_double(call.d_k) + row);
          as_double(call.d_beta)[gate] = grad.beta;
        }
      }
      write_state(dS, index, state, call.d_initial_S);
    }
  }
}

void step(const KimiDeltaRuleStep& call) {
  check(call);
  check_supported(call.dtype);
  check_slots(kOp, call.slots, call.B);
  KimiDeltaRuleProblem p;
  p.B = call.B;
  p.T = 1;
  p.H = call.H;
  p.HV = call.HV;
  p.K = call.K;
  p.V = call.V;
  p.l2norm = call.l2norm;
  const KimiDeltaRuleInputs x{
      .q = call.q, .k = call.k, .v = call.v, .alpha = call.alpha, .beta = call.beta};
  const Reader read(p, x);
  for (int64_t b = 0; b < call.B; ++b) {
    const int64_t slot = call.slots != nullptr ? call.slots[b] : b;
    if (slot < 0) {
      continue;
    }
    for (int64_t head = 0; head < call.HV; ++head) {
      double* S = as_double(call.S) + (slot * call.HV + head) * call.V * call.K;
      advance(read(b, head), call.K, call.V, call.scale, S,
              as_double(call.o) + (b * call.HV + head) * call.V);
    }
  }
}

}  // namespace mdn::kernels::reference
