// momentum_delta_rule, reference backend: float64, one token after the other, one head after the
// other. It is the definition written out, and its gradient by the chain rule, so that it can be
// read against docs/math/momentum_delta_rule.md; speed is not its business.
//
// Memory. The backward pass walks the tokens of a sequence in reverse and needs the states before
// each. Keeping them all would take T states, so it keeps one at the start of each of about sqrt(T)
// runs of tokens and rebuilds a run's states when it gets there.
#include "mdn/kernels/momentum_delta_rule.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/kernels/reference/parts.h"

namespace mdn::kernels::reference {
namespace {

/// The operands of one token and value head. What the formulas call q and k is q_factor q and
/// k_factor k: the factors are 1 unless the call asks for normalised rows.
struct Token {
  const double* q;  // [K]
  const double* k;  // [K]
  const double* v;  // [V]
  double q_factor, k_factor;
  double alpha, mu, eta, beta, pi;
};

class Reader {
 public:
  Reader(const MomentumDeltaRuleProblem& p, const MomentumDeltaRuleInputs& x) : p_(p), x_(x) {}

  Token operator()(int64_t token, int64_t head) const {
    const int64_t key_head = head / (p_.HV / p_.H);
    Token t;
    t.q = as_double(x_.q) + (token * p_.H + key_head) * p_.K;
    t.k = as_double(x_.k) + (token * p_.H + key_head) * p_.K;
    t.v = as_double(x_.v) + (token * p_.HV + head) * p_.V;
    t.q_factor = p_.l2norm ? norm_factor(t.q, p_.K) : 1.0;
    t.k_factor = p_.l2norm ? norm_factor(t.k, p_.K) : 1.0;
    const int64_t gate = token * p_.HV + head;
    t.alpha = as_double(x_.alpha)[gate];
    t.mu = p_.momentum ? as_double(x_.mu)[gate] : 0.0;
    t.eta = as_double(x_.eta)[gate];
    t.beta = as_double(x_.beta)[gate];
    t.pi = x_.pi != nullptr ? as_double(x_.pi)[gate] : t.alpha;
    return t;
  }

 private:
  const MomentumDeltaRuleProblem& p_;
  const MomentumDeltaRuleInputs& x_;
};

/// Moves the states [V, K] over one token. `o` null: not wanted; `M` null: not kept, mu being 0.
void advance(const Token& t, int64_t K, int64_t V, double scale, double* S, double* M, double* o) {
  for (int64_t v = 0; v < V; ++v) {
    double* S_v = S + v * K;
    double* M_v = M != nullptr ? M + v * K : nullptr;
    // r = v - pi Sᵀk
    const double r = t.v[v] - t.pi * t.k_factor * dot(S_v, t.k, K);
    for (int64_t i = 0; i < K; ++i) {
      // M <- mu M - eta k rᵀ;  S <- alpha S - beta M
      const double before = M_v != nullptr ? M_v[i] : 0.0;
      const double after = t.mu * before - t.eta * t.k_factor * t.k[i] * r;
      S_v[i] = t.alpha * S_v[i] - t.beta * after;
      if (M_v != nullptr) {
        M_v[i] = after;
      }
    }
    if (o != nullptr) {
      // o = scale Sᵀq
      o[v] = scale * t.q_factor * dot(S_v, t.q, K);
    }
  }
}

/// What the gradient of one token is added to or written to.
struct TokenGradient {
  double* q;  // [K], added to; of q_factor q
  double* k;  // [K], added to; of k_factor k
  double* v;  // [V], written
  double alpha, mu, eta, beta, pi;
};

/// Gradient of `advance`. S0, M0 are the states before the token, S1, M1 those after it, all
/// [V, K]. dS, dM come in as the gradients of S1, M1 from all that follows, and leave as those of
/// S0, M0.
void retreat(const Token& t, int64_t K, int64_t V, double scale, const double* S0, const double* M0,
             const double* S1, const double* M1, const double* d_o, double* dS, double* dM,
             TokenGradient& grad) {
  grad.alpha = grad.mu = grad.eta = grad.beta = grad.pi = 0;
  for (int64_t v = 0; v < V; ++v) {
    const double* S0_v = S0 + v * K;
    const double* M0_v = M0 + v * K;
    double* dS_v = dS + v * K;
    double* dM_v = dM + v * K;
    const double prediction = t.k_factor * dot(S0_v, t.k, K);
    const double r = t.v[v] - t.pi * prediction;
    double k_dM = 0;  // k·dM
    for (int64_t i = 0; i < K; ++i) {
      // o = scale S1ᵀq
      grad.q[i] += scale * S1[v * K + i] * d_o[v];
      dS_v[i] += scale * t.q_factor * t.q[i] * d_o[v];
      // S1 = alpha S0 - beta M1
      grad.alpha += dS_v[i] * S0_v[i];
      grad.beta -= dS_v[i] * M1[v * K + i];
      dM_v[i] -= t.beta * dS_v[i];
      // M1 = mu M0 - eta k rᵀ
      grad.mu += dM_v[i] * M0_v[i];
      grad.k[i] -= t.eta * dM_v[i] * r;
      k_dM += t.k_factor * t.k[i] * dM_v[i];
    }
    grad.eta -= k_dM * r;
    const double dr = -t.eta * k_dM;
    // r = v - pi S0ᵀk
    grad.v[v] = dr;
    grad.pi -= prediction * dr;
    for (int64_t i = 0; i < K; ++i) {
      grad.k[i] -= t.pi * S0_v[i] * dr;
      dS_v[i] = t.alpha * dS_v[i] - t.pi * t.k_factor * t.k[i] * dr;
      dM_v[i] = t.mu * dM_v[i];
    }
  }
}

void check_supported(DType dtype) {
  MDN_CHECK(dtype == DType::kFloat64,
            "momentum_delta_rule: the reference backend has no {}; it has float64", name_of(dtype));
}

void check_workspace(const void* workspace) {
  MDN_CHECK(workspace != nullptr, "momentum_delta_rule: workspace is missing (a null pointer)");
}

}  // namespace

std::string unsupported(const MomentumDeltaRuleProblem& problem) {
  if (problem.dtype != DType::kFloat64) {
    return fmt::format("the reference backend has no {}; it has float64", name_of(problem.dtype));
  }
  return "";
}

MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& p) {
  const int64_t state = 2 * p.V * p.K;  // S and M
  const int64_t run = run_length(p.T);
  MomentumDeltaRuleSizes sizes;
  sizes.forward_workspace = sizeof(double) * static_cast<size_t>(state);
  // A state at the start of each run, one around each token of a run, the states' gradients, and
  // the gradients of a row of q and of k.
  sizes.backward_workspace =
      sizeof(double) * static_cast<size_t>(state * (run + (run + 1) + 1) + 2 * p.K);
  return sizes;
}

void forward(const MomentumDeltaRuleForward& call) {
  check(call);
  const MomentumDeltaRuleProblem& p = call.problem;
  check_supported(p.dtype);
  check_cu_seqlens(p);
  check_workspace(call.workspace);
  const int64_t state = p.V * p.K;
  Workspace workspace(call.workspace);
  double* S = workspace.take(state);
  double* M = workspace.take(state);
  const Reader read(p, call.inputs);
  for (int64_t n = 0; n < p.N; ++n) {
    const Sequence tokens = sequence(p, n);
    for (int64_t head = 0; head < p.HV; ++head) {
      read_state(call.inputs.initial_S, n * p.HV + head, state, S);
      read_state(call.inputs.initial_M, n * p.HV + head, state, M);
      for (int64_t t = tokens.begin; t < tokens.begin + tokens.length; ++t) {
        double* o = as_double(call.o) + (t * p.HV + head) * p.V;
        advance(read(t, head), p.K, p.V, p.scale, S, M, o);
      }
      write_state(S, n * p.HV + head, state, call.final_S);
      write_state(M, n * p.HV + head, state, call.final_M);
    }
  }
}

void backward(const MomentumDeltaRuleBackward& call) {
  check(call);
  const MomentumDeltaRuleProblem& p = call.problem;
  check_supported(p.dtype);
  check_cu_seqlens(p);
  check_workspace(call.workspace);
  const int64_t K = p.K;
  const int64_t V = p.V;
  const int64_t state = V * K;
  const int64_t run = run_length(p.T);
  Workspace workspace(call.workspace);
  double* starts = workspace.take(run * 2 * state);        // S, M before each run
  double* states = workspace.take((run + 1) * 2 * state);  // S, M around each token of a run
  double* dS = workspace.take(state);
  double* dM = workspace.take(state);
  const Reader read(p, call.inputs);
  double* d_rows = workspace.take(2 * K);

  // Value heads that share a query/key head add to the same rows.
  std::fill_n(as_double(call.d_q), p.B * p.T * p.H * K, 0.0);
  std::fill_n(as_double(call.d_k), p.B * p.T * p.H * K, 0.0);

  for (int64_t n = 0; n < p.N; ++n) {
    const Sequence tokens = sequence(p, n);
    const int64_t end = tokens.begin + tokens.length;
    for (int64_t head = 0; head < p.HV; ++head) {
      const int64_t index = n * p.HV + head;
      double* S = states;
      double* M = states + state;
      read_state(call.inputs.initial_S, index, state, S);
      read_state(call.inputs.initial_M, index, state, M);
      int64_t runs = 0;
      for (int64_t t = tokens.begin; t < end; ++t) {
        if ((t - tokens.begin) % run == 0) {
          std::copy_n(states, 2 * state, starts + runs * 2 * state);
          ++runs;
        }
        advance(read(t, head), K, V, p.scale, S, M, nullptr);
      }
      read_state(call.d_final_S, index, state, dS);
      read_state(call.d_final_M, index, state, dM);
      for (int64_t r = runs - 1; r >= 0; --r) {
        const int64_t first = tokens.begin + r * run;
        const int64_t last = std::min(first + run, end);
        std::copy_n(starts + r * 2 * state, 2 * state, states);
        for (int64_t t = first; t < last; ++t) {
          double* after = states + (t - first + 1) * 2 * state;
          std::copy_n(after - 2 * state, 2 * state, after);
          advance(read(t, head), K, V, p.scale, after, after + state, nullptr);
        }
        for (int64_t t = last - 1; t >= first; --t) {
          const double* before = states + (t - first) * 2 * state;
          const double* after = before + 2 * state;
          const Token token = read(t, head);
          std::fill_n(d_rows, 2 * K, 0.0);
          TokenGradient grad;
          grad.q = d_rows;
          grad.k = d_rows + K;
          grad.v = as_double(call.d_v) + (t * p.HV + head) * V;
          const double* d_o = as_double(call.d_o) + (t * p.HV + head) * V;
          retreat(token, K, V, p.scale, before, before + state, after, after + state, d_o, dS, dM,
                  grad);

          const int64_t row = (t * p.H + head / (p.HV / p.H)) * K;
          double* d_q = as_double(call.d_q) + row;
          double* d_k = as_double(call.d_k) + row;
          add_row_gradient(token.q, token.q_factor, p.l2norm, grad.q, K, d_q);
          add_row_gradient(token.k, token.k_factor, p.l2norm, grad.k, K, d_k);
          const int64_t gate = t * p.HV + head;
          if (p.momentum) {
            as_double(call.d_mu)[gate] = grad.mu;
          }
          as_double(call.d_eta)[gate] = grad.eta;
          as_double(call.d_beta)[gate] = grad.beta;
          if (call.d_pi != nullptr) {
            as_double(call.d_alpha)[gate] = grad.alpha;
            as_double(call.d_pi)[gate] = grad.pi;
          } else {
            as_double(call.d_alpha)[gate] = grad.alpha + grad.pi;
          }
        }
      }
      write_state(dS, index, state, call.d_initial_S);
      write_state(dM, index, state, call.d_initial_M);
    }
  }
}

void step(const MomentumDeltaRuleStep& call) {
  check(call);
  check_supported(call.dtype);
  MDN_CHECK(
      call.state_dtype == DType::kFloat32,
      "momentum_delta_rule on the reference backend: float16 states; only CUDA has them, here they "
      "have the type of the gates");
  check_slots(call);
  const int64_t K = call.K;
  const int64_t V = call.V;
  MomentumDeltaRuleProblem p;
  p.B = call.B;
  p.T = 1;
  p.H = call.H;
  p.HV = call.HV;
  p.K = K;
  p.V = V;
  p.l2norm = call.l2norm;
  p.momentum = call.mu != nullptr;
  MomentumDeltaRuleInputs x;
  x.q = call.q;
  x.k = call.k;
  x.v = call.v;
  x.alpha = call.alpha;
  x.mu = call.mu;
  x.eta = call.eta;
  x.beta = call.beta;
  x.pi = call.pi;
  const Reader read(p, x);
  for (int64_t b = 0; b < call.B; ++b) {
    const int64_t slot = call.slots != nullptr ? call.slots[b] : b;
    if (slot < 0) {
      continue;
    }
    for (int64_t head = 0; head < call.HV; ++head) {
      double* S = as_double(call.S) + (slot * call.HV + head) * V * K;
      double* M = p.momentum ? as_double(call.M) + (slot * call.HV + head) * V * K : nullptr;
      advance(read(b, head), K, V, call.scale, S, M, as_double(call.o) + (b * call.HV + head) * V);
    }
  }
}

}  // namespace mdn::kernels::reference
