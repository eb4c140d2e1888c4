// A chunk of momentum_delta_rule without its values: from q, k and the gates to the matrices of
// `Chunk`, and from the gradients of these matrices back. Costs C² K a chunk and does not depend on
// V. Formulas: docs/math/momentum_delta_rule.md.
#if defined(MDN_KERNELS_CPU_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MDN_KERNELS_CPU_CHUNK_INL_H_
#undef MDN_KERNELS_CPU_CHUNK_INL_H_
#else
#define MDN_KERNELS_CPU_CHUNK_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mdn/kernels/cpu/micro_gemm-inl.h"
#include "mdn/kernels/cpu/momentum_delta_rule_plan.h"
#include "mdn/kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE Vf set(float x) {
  return hn::Set(Df(), x);
}
HWY_INLINE Vf load_at(const float* from) {
  return hn::LoadU(Df(), from);
}

/// row *= factor = 1 / sqrt(Σ row² + eps); returns the factor.
inline float normalise_row(float* row, int64_t columns) {
  const float factor = 1.0f / std::sqrt(dot(row, row, columns) + static_cast<float>(kL2NormEps));
  for (int64_t j = 0; j < columns; j += kLanes) {
    store_floats(hn::Mul(set(factor), load_at(row + j)), row + j);
  }
  return factor;
}

/// d_row <- factor (d_row - unit (unit·d_row)): the gradient of normalise_row.
inline void normalise_row_gradient(const float* unit, float factor, int64_t columns, float* d_row) {
  const Vf along = set(-dot(unit, d_row, columns));
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vf across = hn::MulAdd(along, load_at(unit + j), load_at(d_row + j));
    store_floats(hn::Mul(set(factor), across), d_row + j);
  }
}

/// Reads q, k and the gates of one value head for chunk.tokens tokens from `token` on.
inline void load_chunk(const Plan& plan, const MomentumDeltaRuleProblem& p,
                       const MomentumDeltaRuleInputs& x, int64_t token, int64_t head,
                       const Chunk& chunk) {
  const int64_t tokens = chunk.tokens;
  const int64_t key_head = head / (p.HV / p.H);
  const int64_t offset = (token * p.H + key_head) * p.K;
  load_rows(x.q, p.dtype, offset, p.H * p.K, tokens, p.K, chunk.q, plan.ld_k, plan.K);
  load_rows(x.k, p.dtype, offset, p.H * p.K, tokens, p.K, chunk.k, plan.ld_k, plan.K);
  std::fill(chunk.k + tokens * plan.ld_k, chunk.k + round_up(tokens, kPanel) * plan.ld_k, 0.0f);
  if (p.l2norm) {
    for (int64_t t = 0; t < tokens; ++t) {
      chunk.q_factor[t] = normalise_row(chunk.q + t * plan.ld_k, plan.K);
      chunk.k_factor[t] = normalise_row(chunk.k + t * plan.ld_k, plan.K);
    }
  }
  const void* pi = x.pi != nullptr ? x.pi : x.alpha;
  const std::pair<const void*, float*> gates[] = {{x.alpha, chunk.alpha},
                                                  {x.mu, chunk.mu},
                                                  {x.eta, chunk.eta},
                                                  {x.beta, chunk.beta},
                                                  {pi, chunk.pi}};
  for (const auto& [from, to] : gates) {
    if (from == nullptr) {  // mu, without momentum
      std::fill_n(to, tokens, 0.0f);
      continue;
    }
    const float* gate = static_cast<const float*>(from) + token * p.HV + head;
    for (int64_t t = 0; t < tokens; ++t) {
      to[t] = gate[t * p.HV];
    }
  }
  std::fill(chunk.eta + tokens, chunk.eta + round_up(tokens, kPanel), 0.0f);  // read as vectors
  // a = Π alpha,  m = Π mu,  b = alpha b + beta m,  and before the token's write e = pi a, c = pi b
  float a = 1;
  float b = 0;
  float m = 1;
  for (int64_t t = 0; t < tokens; ++t) {
    chunk.e[t] = chunk.pi[t] * a;
    chunk.c[t] = chunk.pi[t] * b;
    a *= chunk.alpha[t];
    m *= chunk.mu[t];
    b = chunk.alpha[t] * b + chunk.beta[t] * m;
    chunk.a[t] = a;
    chunk.b[t] = b;
    chunk.m[t] = m;
  }
}

/// P = q kᵀ, KK = k kᵀ, in every panel that meets the lower triangle.
inline void chunk_scores(const Plan& plan, const Chunk& chunk, float* k_transposed) {
  transpose(chunk.k, plan.ld_k, round_up(chunk.tokens, kPanel), plan.K, k_transposed, plan.ld_c);
  for_tiles(chunk.tokens, [&](auto rows, int64_t first) HWY_ATTR {
    for (int64_t j = 0; j < first + rows(); j += kPanel) {
      Tile<rows()> tile;
      clear(tile);
      accumulate<Left::kRowMajor>(tile, chunk.q + first * plan.ld_k, plan.ld_k, k_transposed + j,
                                  plan.ld_c, plan.K);
      store(tile, chunk.P + first * plan.ld_c + j, plan.ld_c);
      clear(tile);
      accumulate<Left::kRowMajor>(tile, chunk.k + first * plan.ld_k, plan.ld_k, k_transposed + j,
                                  plan.ld_c, plan.K);
      store(tile, chunk.KK + first * plan.ld_c + j, plan.ld_c);
    }
  });
}

/// The masks by their recurrence, and with them the maps from errors to outputs and errors:
///     Mu[t,j] = mu_t Mu[t-1,j];   G[t,j] = alpha_t G[t-1,j] + beta_t Mu[t,j];
///     H[t,j] = pi_t G[t-1,j];   o_from_r = scale P∘G diag(eta);   r_from_r = -KK∘H diag(eta)
inline void chunk_masks(const Plan& plan, float scale, const Chunk& chunk) {
  const int64_t padded = round_up(chunk.tokens, kPanel);
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    const int64_t row = t * plan.ld_c;
    float* G = chunk.G + row;
    float* Mu = chunk.Mu + row;
    float* o_from_r = chunk.o_from_r + row;
    float* r_from_r = chunk.r_from_r + row;
    const int64_t columns = t > 0 ? round_up(t, kPanel) : 0;  // that row t-1 reaches
    const Vf alpha = set(chunk.alpha[t]);
    const Vf mu = set(chunk.mu[t]);
    const Vf beta = set(chunk.beta[t]);
    const Vf minus_pi = set(-chunk.pi[t]);
    for (int64_t j = 0; j < columns; j += kLanes) {
      const Vf G_before = load_at(G - plan.ld_c + j);
      const Vf eta = load_at(chunk.eta + j);
      const Vf Mu_t = hn::Mul(mu, load_at(Mu - plan.ld_c + j));
      const Vf G_t = hn::MulAdd(alpha, G_before, hn::Mul(beta, Mu_t));
      store_floats(Mu_t, Mu + j);
      store_floats(G_t, G + j);
      const Vf P = hn::Mul(set(scale), load_at(chunk.P + row + j));
      store_floats(hn::Mul(hn::Mul(P, G_t), eta), o_from_r + j);
      const Vf H = hn::Mul(minus_pi, G_before);
      store_floats(hn::Mul(hn::Mul(load_at(chunk.KK + row + j), H), eta), r_from_r + j);
    }
    for (float* matrix : {G, Mu, o_from_r, r_from_r}) {
      std::fill(matrix + columns, matrix + padded, 0.0f);
    }
    Mu[t] = 1;
    G[t] = chunk.beta[t];
    o_from_r[t] = scale * chunk.P[row + t] * chunk.beta[t] * chunk.eta[t];
  }
}

/// o_from_x = scale [diag(a) q | -diag(b) q],  r_from_x = [-diag(e) k | diag(c) k],
/// x_from_r = [diag(eta g) k | -diag(eta n) k]
inline void chunk_state_maps(const Plan& plan, float scale, const Chunk& chunk) {
  const float* g = chunk.G + (chunk.tokens - 1) * plan.ld_c;
  const float* n = chunk.Mu + (chunk.tokens - 1) * plan.ld_c;
  for (int64_t t = 0; t < chunk.tokens; ++t) {
    const float* q = chunk.q + t * plan.ld_k;
    const float* k = chunk.k + t * plan.ld_k;
    float* o_from_x = chunk.o_from_x + t * plan.ld_x;
    float* r_from_x = chunk.r_from_x + t * plan.ld_x;
    float* x_from_r = chunk.x_from_r + t * plan.ld_x;
    const Vf a = set(scale * chunk.a[t]);
    const Vf b = set(-scale * chunk.b[t]);
    const Vf e = set(-chunk.e[t]);
    const Vf c = set(chunk.c[t]);
    const Vf eta_g = set(chunk.eta[t] * g[t]);
    const Vf eta_n = set(-chunk.eta[t] * n[t]);
    for (int64_t i = 0; i < plan.K; i += kLanes) {
      const Vf q_i = load_at(q + i);
      const Vf k_i = load_at(k + i);
      store_floats(hn::Mul(a, q_i), o_from_x + i);
      store_floats(hn::Mul(b, q_i), o_from_x + plan.K + i);
      store_floats(hn::Mul(e, k_i), r_from_x + i);
      store_floats(hn::Mul(c, k_i), r_from_x + plan.K + i);
      store_floats(hn::Mul(eta_g, k_i), x_from_r + i);
      store_floats(hn::Mul(eta_n, k_i), x_from_r + plan.K + i);
    }
  }
}

/// Everything of a chunk of `tokens` tokens that begins at `token`.
inline void build_chunk(const Plan& plan, const MomentumDeltaRuleProblem& p,
                        const MomentumDeltaRuleInputs& x, int64_t token, int64_t tokens,
                        int64_t head, float* k_transposed, Chunk& chunk) {
  chunk.tokens = tokens;
  load_chunk(plan, p, x, token, head, chunk);
  chunk_scores(plan, chunk, k_transposed);
  chunk_masks(plan, static_cast<float>(p.scale), chunk);
  chunk_state_maps(plan, static_cast<float>(p.scale), chunk);
}

/// Gradients of a chunk's matrices, with their rows' products with q and k.
struct ChunkGradient {
  const float *ox, *wx, *rx;  // [C, 2 K]: d_o Xᵀ, dw Xᵀ, R dXᵀ
  const float *oR, *F;        // [C, C]: d_o Rᵀ, dw Rᵀ, in every panel of the lower triangle
  float dS_S, dS_M, dM_M;     // <dS, S>, <dS, M>, <dM, M>
  float *dP, *Z;              // [C, C] to write
  float *dq, *dk;             // [C, K] to write
  float* vectors;             // [16, C]
  // Per token, stride HV; null mu: not wanted; null pi: alpha's contains it.
  float *alpha, *mu, *eta, *beta, *pi;
};

/// From the gradients of the chunk's matrices to those of q, k (as the chunk holds them) and of the
/// gates.
inline void chunk_gradient(const Plan& plan, float scale, int64_t HV, const Chunk& chunk,
                           const ChunkGradient& grad) {
  const int64_t tokens = chunk.tokens;
  const int64_t padded = round_up(tokens, kPanel);
  const int64_t last = tokens - 1;
  const float* g = chunk.G + last * plan.ld_c;
  const float* n = chunk.Mu + last * plan.ld_c;
  float* vectors = grad.vectors;
  float *da = vectors, *db = da + plan.C, *dc = db + plan.C, *de = dc + plan.C;
  float *k_rS = de + plan.C, *k_rM = k_rS + plan.C, *deta = k_rM + plan.C;
  float *carry_G = deta + plan.C, *carry_Mu = carry_G + plan.C;

  // dq = scale (a oS - b oM),  dk = -e wS + c wM + eta (g rS - n rM), and the rows' products
  for (int64_t t = 0; t < tokens; ++t) {
    const float* q = chunk.q + t * plan.ld_k;
    const float* k = chunk.k + t * plan.ld_k;
    const float* ox = grad.ox + t * plan.ld_x;
    const float* wx = grad.wx + t * plan.ld_x;
    const float* rx = grad.rx + t * plan.ld_x;
    const Vf a = set(scale * chunk.a[t]);
    const Vf b = set(-scale * chunk.b[t]);
    const Vf e = set(-chunk.e[t]);
    const Vf c = set(chunk.c[t]);
    const Vf eta_g = set(chunk.eta[t] * g[t]);
    const Vf eta_n = set(-chunk.eta[t] * n[t]);
    Vf q_oS = hn::Zero(Df()), q_oM = q_oS, k_wS = q_oS, k_wM = q_oS, s_rS = q_oS, s_rM = q_oS;
    for (int64_t i = 0; i < plan.K; i += kLanes) {
      const Vf q_i = load_at(q + i);
      const Vf k_i = load_at(k + i);
      const Vf oS = load_at(ox + i);
      const Vf oM = load_at(ox + plan.K + i);
      const Vf wS = load_at(wx + i);
      const Vf wM = load_at(wx + plan.K + i);
      const Vf rS = load_at(rx + i);
      const Vf rM = load_at(rx + plan.K + i);
      store_floats(hn::MulAdd(a, oS, hn::Mul(b, oM)), grad.dq + t * plan.ld_k + i);
      const Vf from_w = hn::MulAdd(e, wS, hn::Mul(c, wM));
      const Vf from_r = hn::MulAdd(eta_g, rS, hn::Mul(eta_n, rM));
      store_floats(hn::Add(from_w, from_r), grad.dk + t * plan.ld_k + i);
      q_oS = hn::MulAdd(q_i, oS, q_oS);
      q_oM = hn::MulAdd(q_i, oM, q_oM);
      k_wS = hn::MulAdd(k_i, wS, k_wS);
      k_wM = hn::MulAdd(k_i, wM, k_wM);
      s_rS = hn::MulAdd(k_i, rS, s_rS);
      s_rM = hn::MulAdd(k_i, rM, s_rM);
    }
    da[t] = scale * sum(q_oS);
    db[t] = -scale * sum(q_oM);
    dc[t] = sum(k_wM);
    de[t] = -sum(k_wS);
    k_rS[t] = sum(s_rS);
    k_rM[t] = sum(s_rM);
  }
  // The end of the chunk reads the masks' last row: dG[last,j] += eta_j k_j·rS_j and
  // dMu[last,j] -= eta_j k_j·rM_j. They are what the reverse recurrence starts from.
  for (int64_t t = 0; t < tokens; ++t) {
    carry_G[t] = chunk.eta[t] * k_rS[t];
    carry_Mu[t] = -chunk.eta[t] * k_rM[t];
    deta[t] = g[t] * k_rS[t] - n[t] * k_rM[t];
  }
  for (float* vector : {carry_G, carry_Mu, deta}) {
    std::fill(vector + tokens, vector + padded, 0.0f);
  }
  float carry_b = -grad.dS_M;
  float carry_m = grad.dM_M;
  float carry_a = grad.dS_S;

  // Reverse recurrence of the masks, all columns at once (mathematics, section 4). The panels hold
  // entries above the diagonal that are not gradients of anything: they meet factors that are 0
  // there (G[t,j] and Mu[t,j] for j > t) or columns whose recurrence is already over.
  for (int64_t t = last; t >= 0; --t) {
    const int64_t row = t * plan.ld_c;
    const int64_t columns = round_up(t + 1, kPanel);
    const Vf alpha = set(chunk.alpha[t]);
    const Vf mu = set(chunk.mu[t]);
    const Vf beta = set(chunk.beta[t]);
    const Vf pi = set(chunk.pi[t]);
    Vf sum_alpha = hn::Zero(Df()), sum_mu = sum_alpha, sum_beta = sum_alpha, sum_pi = sum_alpha;
    for (int64_t j = 0; j < columns; j += kLanes) {
      const Vf eta = load_at(chunk.eta + j);
      const Vf s_oR = hn::Mul(set(scale), load_at(grad.oR + row + j));
      const Vf F = load_at(grad.F + row + j);
      const Vf P = load_at(chunk.P + row + j);
      const Vf KK = load_at(chunk.KK + row + j);
      const Vf G = load_at(chunk.G + row + j);
      const Vf Mu = load_at(chunk.Mu + row + j);
      Vf G_before = hn::Zero(Df());
      Vf Mu_before = G_before;
      if (t > 0) {
        G_before = load_at(chunk.G + row - plan.ld_c + j);
        Mu_before = load_at(chunk.Mu + row - plan.ld_c + j);
      }
      const Vf H = hn::Mul(pi, G_before);
      const Vf Y = hn::Mul(s_oR, eta);
      const Vf E = hn::Neg(hn::Mul(F, eta));
      store_floats(hn::Mul(Y, G), grad.dP + row + j);
      store_floats(hn::Mul(E, H), grad.Z + row + j);
      const Vf from_o = hn::Mul(hn::Mul(s_oR, P), G);
      const Vf from_r = hn::Mul(hn::Mul(F, KK), H);
      store_floats(hn::Add(load_at(deta + j), hn::Sub(from_o, from_r)), deta + j);
      const Vf grad_G = hn::MulAdd(Y, P, load_at(carry_G + j));
      const Vf grad_Mu = hn::MulAdd(beta, grad_G, load_at(carry_Mu + j));
      const Vf grad_H = hn::Mul(E, KK);
      sum_beta = hn::MulAdd(grad_G, Mu, sum_beta);
      sum_mu = hn::MulAdd(grad_Mu, Mu_before, sum_mu);
      sum_alpha = hn::MulAdd(grad_G, G_before, sum_alpha);
      sum_pi = hn::MulAdd(grad_H, G_before, sum_pi);
      store_floats(hn::MulAdd(alpha, grad_G, hn::Mul(pi, grad_H)), carry_G + j);
      store_floats(hn::Mul(mu, grad_Mu), carry_Mu + j);
    }
    std::fill(grad.dP + row + columns, grad.dP + row + padded, 0.0f);
    std::fill(grad.Z + row + columns, grad.Z + row + padded, 0.0f);

    // The column of the initial M, and the decay of the initial S.
    const float a_before = t > 0 ? chunk.a[t - 1] : 1.0f;
    const float b_before = t > 0 ? chunk.b[t - 1] : 0.0f;
    const float m_before = t > 0 ? chunk.m[t - 1] : 1.0f;
    const float grad_b = carry_b + db[t];
    const float grad_m = carry_m + chunk.beta[t] * grad_b;
    const float grad_a = carry_a + da[t];
    carry_b = chunk.alpha[t] * grad_b + chunk.pi[t] * dc[t];
    carry_m = chunk.mu[t] * grad_m;
    carry_a = chunk.alpha[t] * grad_a + chunk.pi[t] * de[t];

    const float dalpha = sum(sum_alpha) + grad_b * b_before + grad_a * a_before;
    const float dpi = sum(sum_pi) + dc[t] * b_before + de[t] * a_before;
    grad.beta[t * HV] = sum(sum_beta) + grad_b * chunk.m[t];
    if (grad.mu != nullptr) {
      grad.mu[t * HV] = sum(sum_mu) + grad_m * m_before;
    }
    if (grad.pi != nullptr) {
      grad.alpha[t * HV] = dalpha;
      grad.pi[t * HV] = dpi;
    } else {
      grad.alpha[t * HV] = dalpha + dpi;
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    grad.eta[t * HV] = deta[t];
  }

  // dq += dP k,  dk += dPᵀ q + (Z + Zᵀ) k
  for_tiles(tokens, [&](auto rows, int64_t first) HWY_ATTR {
    const int64_t diagonal = first * plan.ld_c + first;
    const int64_t below = tokens - first;
    for (int64_t i = 0; i < plan.K; i += kPanel) {
      Tile<rows()> tile;
      load(tile, grad.dq + first * plan.ld_k + i, plan.ld_k);
      accumulate<Left::kRowMajor>(tile, grad.dP + first * plan.ld_c, plan.ld_c, chunk.k + i,
                                  plan.ld_k, first + rows());
      store(tile, grad.dq + first * plan.ld_k + i, plan.ld_k);
      load(tile, grad.dk + first * plan.ld_k + i, plan.ld_k);
      accumulate<Left::kRowMajor>(tile, grad.Z + first * plan.ld_c, plan.ld_c, chunk.k + i,
                                  plan.ld_k, first + rows());
      accumulate<Left::kTransposed>(tile, grad.dP + diagonal, plan.ld_c,
                                    chunk.q + first * plan.ld_k + i, plan.ld_k, below);
      accumulate<Left::kTransposed>(tile, grad.Z + diagonal, plan.ld_c,
                                    chunk.k + first * plan.ld_k + i, plan.ld_k, below);
      store(tile, grad.dk + first * plan.ld_k + i, plan.ld_k);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggle
