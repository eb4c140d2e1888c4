#include "mdn/ops/kimi_delta_rule.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "mdn/kernels/kimi_delta_rule.h"
#include "mdn/ops/delta_rule.h"
#include "mdn/ops/kimi_delta_rule_chunks.h"
#include "mdn/ops/no_gradient.h"

namespace mdn::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
constexpr const char* kOp = "kimi_delta_rule";

// The tensors of a call, contiguous and checked, in the form every backend reads.
struct Call {
  kimi_chunks::Call x;
  OptionalTensor cu_seqlens;
  kernels::KimiDeltaRuleProblem problem;

  kernels::KimiDeltaRuleInputs inputs() const {
    return {data(x.q), data(x.k), data(x.v), data(x.alpha), data(x.beta), data(x.initial_S)};
  }
  // Whether the reference takes it.
  bool has_reference() const { return problem.dtype == DType::kFloat64 && x.q.is_cpu(); }
  // Whether the CUDA kernels take it; whatever they do not is the chunkwise program.
  bool has_kernels() const { return x.q.is_cuda() && kernels::cuda::unsupported(problem).empty(); }
  // Of whichever of the two does.
  kernels::KimiDeltaRuleSizes sizes(const kernels::KimiDeltaRuleProblem& p) const {
    return has_reference() ? kernels::reference::sizes(p) : kernels::cuda::sizes(p);
  }
  // The problem as these read it, with boundaries in the device's memory: `memory`.
  kernels::KimiDeltaRuleProblem on_device(Tensor& memory) const {
    kernels::KimiDeltaRuleProblem p = problem;
    if (cu_seqlens) {
      memory = to_device(*cu_seqlens, x.q.device());
      p.cu_seqlens = memory.const_data_ptr<int64_t>();
    }
    return p;
  }
};

Call make_call(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
               const Tensor& beta, const OptionalTensor& initial_S,
               const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  const auto [B, T, H, K, HV, V] = sizes_of_sequences(kOp, q, v);
  const auto type = q.scalar_type(), gate_type = gate_type_of(type);
  const TensorCheck check{kOp, q.device()};
  check(q, "q", {B, T, H, K}, type);
  check(k, "k", {B, T, H, K}, type);
  check(v, "v", {B, T, HV, V}, type);
  check(alpha, "alpha", {B, T, HV, K}, gate_type);
  check(beta, "beta", {B, T, HV}, gate_type);

  Call call;
  auto& p = call.problem;
  p.B = p.N = B;
  p.T = T;
  p.H = H;
  p.HV = HV;
  p.K = K;
  p.V = V;
  p.dtype = dtype_of(kOp, type);
  MDN_CHECK(p.dtype != DType::kFloat16 || q.is_cuda(),
            "{}: float16 on the CPU is not supported; use float32 or bfloat16", kOp);
  p.scale = scale_of(scale, K);
  MDN_CHECK(std::isfinite(p.scale), "{}: scale is {}; it must be finite", kOp, p.scale);
  p.l2norm = l2norm;
  if (cu_seqlens) {
    call.cu_seqlens = check_cu_seqlens(kOp, *cu_seqlens, B, T, at::kCPU);
    p.N = cu_seqlens->numel() - 1;
    p.cu_seqlens = call.cu_seqlens->const_data_ptr<int64_t>();
    call.x.bounds.assign(p.cu_seqlens, p.cu_seqlens + p.N + 1);
  }
  check(initial_S, "initial_S", {p.N, HV, V, K}, gate_type);
  call.x.q = aligned(q);
  call.x.k = aligned(k);
  call.x.v = aligned(v);
  call.x.alpha = aligned(alpha);
  call.x.beta = beta.contiguous();
  call.x.initial_S = aligned(initial_S);
  call.x.scale = p.scale;
  call.x.l2norm = l2norm;
  return call;
}

// What the program's forward pass saves is a state a chunk, or nothing in float64; the CUDA kernels
// save nothing. A packed call has at most this many chunks, and tracing, to which what is saved is
// opaque, can say so without its boundaries.
template <class Int>
Int most_chunks(bool packed, const Int& N, const Int& T) {
  constexpr int64_t C = kimi_chunks::kChunk;
  return packed ? (T + N * (C - 1)) / C : N * ((T + (C - 1)) / C);
}

Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                const Tensor& beta, const OptionalTensor& initial_S,
                const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm,
                bool save) {
  const Call call = make_call(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm);
  const auto& p = call.problem;
  const DeviceScope device(q);
  const Tensor nothing = at::empty({0}, call.x.beta.options());
  if (call.has_reference() || call.has_kernels()) {
    Tensor o = at::empty_like(call.x.v);
    Tensor final_S = at::empty({p.N, p.HV, p.V, p.K}, call.x.beta.options());
    Tensor boundaries;
    kernels::KimiDeltaRuleForward args{.problem = call.on_device(boundaries),
                                       .inputs = call.inputs(),
                                       .o = o.data_ptr(),
                                       .final_S = final_S.data_ptr()};
    const Tensor workspace = workspace_like(q, call.sizes(args.problem).forward_workspace);
    args.workspace = workspace.data_ptr();
    if (call.has_reference()) {
      kernels::reference::forward(args);
    } else {
      kernels::cuda::forward(args, device.stream());
    }
    return {o, final_S, nothing};
  }
  const bool saves = save && p.dtype != DType::kFloat64;
  Tensor states;
  if (saves) {
    states = at::empty({most_chunks(cu_seqlens.has_value(), p.N, p.T), p.HV, p.V, p.K},
                       call.x.beta.options());
  }
  const auto [o, final_S] = kimi_chunks::forward(call.x, states);
  return {o, final_S, saves ? states : nothing};
}

// Gradients in the order of the inputs; an absent initial state's is an empty tensor.
Backward backward(const Tensor& saved, const Tensor& d_o, const OptionalTensor& d_final_S,
                  const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                  const Tensor& beta, const OptionalTensor& initial_S,
                  const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  const Call call = make_call(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm);
  const auto& p = call.problem;
  const DeviceScope device(q);
  const TensorCheck check{"kimi_delta_rule_backward", q.device()};
  check(d_o, "d_o", v.sizes(), v.scalar_type());
  check(d_final_S, "d_final_S", {p.N, p.HV, p.V, p.K}, beta.scalar_type());
  const Tensor d_o_c = aligned(d_o);
  const OptionalTensor d_S = aligned(d_final_S);
  const Tensor nothing = at::empty({0}, call.x.beta.options());
  if (call.has_reference() || call.has_kernels()) {
    Tensor d_q = at::empty_like(call.x.q), d_k = at::empty_like(call.x.k);
    Tensor d_v = at::empty_like(call.x.v), d_alpha = at::empty_like(call.x.alpha);
    Tensor d_beta = at::empty_like(call.x.beta);
    Tensor d_initial_S = initial_S ? at::empty_like(*call.x.initial_S) : nothing;
    Tensor boundaries;
    kernels::KimiDeltaRuleBackward args{
        .problem = call.on_device(boundaries),
        .inputs = call.inputs(),
        .d_o = data(d_o_c),
        .d_final_S = data(d_S),
        .d_q = d_q.data_ptr(),
        .d_k = d_k.data_ptr(),
        .d_v = d_v.data_ptr(),
        .d_alpha = d_alpha.data_ptr(),
        .d_beta = d_beta.data_ptr(),
        .d_initial_S = initial_S ? d_initial_S.data_ptr() : nullptr};
    const Tensor workspace = workspace_like(q, call.sizes(args.problem).backward_workspace);
    args.workspace = workspace.data_ptr();
    if (call.has_reference()) {
      kernels::reference::backward(args);
    } else {
      kernels::cuda::backward(args, device.stream());
    }
    return {d_q, d_k, d_v, d_alpha, d_beta, d_initial_S};
  }
  const auto d = kimi_chunks::backward(call.x, saved, d_o_c, d_S);
  return {d.q, d.k, d.v, d.alpha, d.beta, initial_S ? d.initial_S : nothing};
}

// One token by ATen's operations: S <- diag(alpha) S;  r = v - Sᵀk;  S <- S + beta k rᵀ.
Tensor composite_step(const kernels::KimiDeltaRuleStep& p, const Tensor& q_in, const Tensor& k_in,
                      const Tensor& v, const Tensor& alpha, const Tensor& beta, Tensor& S,
                      const OptionalTensor& slots) {
  const auto heads = [&](const Tensor& x) {
    Tensor wide = x.to(beta.scalar_type());
    if (p.l2norm) {
      wide = wide * (wide.square().sum(-1, true) + kernels::kL2NormEps).rsqrt();
    }
    return wide.repeat_interleave(p.HV / p.H, 1).unsqueeze(2);  // [B, HV, 1, K]
  };
  const Tensor q = heads(q_in), k = heads(k_in);
  // Padding rows take the place of slot 0 in the arithmetic and are not written.
  Tensor rows, owned;
  if (slots) {
    rows = at::nonzero(*slots >= 0).squeeze(1);
    owned = slots->clamp_min(0);
  }
  Tensor now = slots ? S.index_select(0, owned) : S.narrow(0, 0, p.B).clone();
  now.mul_(alpha.unsqueeze(2));
  const Tensor r = v.to(beta.scalar_type()) - (now * k).sum(-1);
  now.addcmul_((beta.unsqueeze(-1) * r).unsqueeze(-1), k);
  if (slots) {
    S.index_copy_(0, owned.index_select(0, rows), now.index_select(0, rows));
  } else {
    S.narrow(0, 0, p.B).copy_(now);
  }
  return ((now * q).sum(-1) * p.scale).to(v.scalar_type());
}

Tensor step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
            const Tensor& beta, Tensor& S, const OptionalTensor& slots, std::optional<double> scale,
            bool l2norm) {
  constexpr const char* kStep = "kimi_delta_rule_step";
  const auto [B, T, H, K, HV, V] = sizes_of_step(kStep, q, v);
  MDN_CHECK(S.dim() == 4, "{}: S must be [slots, HV, V, K], got {}", kStep, shape_text(S));
  const auto type = q.scalar_type(), gate_type = gate_type_of(type);
  const TensorCheck check{kStep, q.device()};
  check(k, "k", {B, H, K}, type);
  check(v, "v", {B, HV, V}, type);
  check(alpha, "alpha", {B, HV, K}, gate_type);
  check(beta, "beta", {B, HV}, gate_type);
  check(S, "S", {S.size(0), HV, V, K}, gate_type);
  check(slots, "slots", {B}, at::kLong);
  MDN_CHECK(S.is_contiguous(), "{}: S is updated in place and must be contiguous", kStep);
  const OptionalTensor slots_c = check_slots(kStep, slots, S, B);
  const DeviceScope device(q);
  const Tensor q_c = q.contiguous(), k_c = k.contiguous(), v_c = v.contiguous();
  const Tensor alpha_c = alpha.contiguous(), beta_c = beta.contiguous();
  Tensor o = at::empty_like(v_c);
  const kernels::KimiDeltaRuleStep args{.B = B,
                                        .H = H,
                                        .HV = HV,
                                        .K = K,
                                        .V = V,
                                        .dtype = dtype_of(kStep, type),
                                        .scale = scale_of(scale, K),
                                        .l2norm = l2norm,
                                        .q = data(q_c),
                                        .k = data(k_c),
                                        .v = data(v_c),
                                        .alpha = data(alpha_c),
                                        .beta = data(beta_c),
                                        .S = S.data_ptr(),
                                        .slots = static_cast<const int64_t*>(data(slots_c)),
                                        .o = o.data_ptr()};
  if (q.is_cuda() && kernels::cuda::unsupported(args).empty()) {
    kernels::cuda::step(args, device.stream());
    return o;
  }
  if (q.is_cuda()) {
    return composite_step(args, q_c, k_c, v_c, alpha_c, beta_c, S, slots_c);
  }
  if (args.dtype == DType::kFloat64) {
    kernels::reference::step(args);
  } else {
    kernels::cpu::step(args);
  }
  return o;
}

// Meta functions: shapes without data.
Forward forward_meta(const Tensor& q, const Tensor&, const Tensor& v, const Tensor&,
                     const Tensor& beta, const OptionalTensor&, const OptionalTensor& cu_seqlens,
                     std::optional<double>, bool, bool save) {
  const c10::SymInt N = cu_seqlens ? cu_seqlens->sym_numel() - 1 : q.sym_size(0);
  const auto states = [&](const c10::SymInt& count) {
    return at::empty_symint({count, v.sym_size(2), v.sym_size(3), q.sym_size(3)}, beta.options());
  };
  return {at::empty_like(v, at::MemoryFormat::Contiguous), states(N),
          save && q.scalar_type() != at::kDouble
              ? states(most_chunks(cu_seqlens.has_value(), N, q.sym_size(1)))
              : at::empty({0}, beta.options())};
}

Backward backward_meta(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor& q,
                       const Tensor& k, const Tensor& v, const Tensor& alpha, const Tensor& beta,
                       const OptionalTensor& initial_S, const OptionalTensor&,
                       std::optional<double>, bool) {
  const auto like = [](const Tensor& x) { return at::empty_like(x, at::MemoryFormat::Contiguous); };
  return {like(q),     like(k),    like(v),
          like(alpha), like(beta), initial_S ? like(*initial_S) : at::empty({0}, beta.options())};
}

Tensor step_meta(const Tensor&, const Tensor&, const Tensor& v, const Tensor&, const Tensor&,
                 Tensor&, const OptionalTensor&, std::optional<double>, bool) {
  return at::empty_like(v, at::MemoryFormat::Contiguous);
}

// The operator under autograd's keys: forward and backward are operators too, so that tracing sees
// them.
class Autograd : public torch::autograd::Function<Autograd> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& alpha, const Tensor& beta,
                                                const OptionalTensor& initial_S,
                                                const OptionalTensor& cu_seqlens,
                                                std::optional<double> scale, bool l2norm) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mdn::kimi_delta_rule_forward", "")
                               .typed<decltype(ops::forward)>();
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [o, S, saved] =
        op.call(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm, true);
    const auto plain = [](const OptionalTensor& x) { return x.value_or(Tensor()); };
    ctx->save_for_backward({saved, q, k, v, alpha, beta, plain(initial_S), plain(cu_seqlens)});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["l2norm"] = l2norm;
    ctx->set_materialize_grads(false);
    return {o, S};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    check_first_order(kOp);
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mdn::kimi_delta_rule_backward", "")
                               .typed<decltype(ops::backward)>();
    const auto x = ctx->get_saved_variables();
    const auto optional = [](const Tensor& t) {
      return t.defined() ? OptionalTensor(t) : std::nullopt;
    };
    const Tensor d_o = grads[0].defined() ? grads[0] : at::zeros_like(x[3]);
    const auto d = op.call(
        x[0], d_o, optional(grads[1]), x[1], x[2], x[3], x[4], x[5], optional(x[6]), optional(x[7]),
        ctx->saved_data["scale"].toOptional<double>(), ctx->saved_data["l2norm"].toBool());
    return {std::get<0>(d), std::get<1>(d), std::get<2>(d),
            std::get<3>(d), std::get<4>(d), x[6].defined() ? std::get<5>(d) : Tensor(),
            Tensor(),       Tensor(),       Tensor()};
  }
};

using Operator = std::tuple<Tensor, Tensor>;

Operator with_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                       const Tensor& beta, const OptionalTensor& initial_S,
                       const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  auto out = Autograd::apply(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm);
  return {out[0], out[1]};
}

// Without autograd nothing is saved.
Operator without_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                          const Tensor& beta, const OptionalTensor& initial_S,
                          const OptionalTensor& cu_seqlens, std::optional<double> scale,
                          bool l2norm) {
  const auto [o, S, saved] =
      forward(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm, false);
  return {o, S};
}

Operator operator_meta(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                       const Tensor& beta, const OptionalTensor& initial_S,
                       const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  const auto [o, S, saved] =
      forward_meta(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm, false);
  return {o, S};
}

}  // namespace

std::tuple<Tensor, Tensor> kimi_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& alpha, const Tensor& beta,
                                           const OptionalTensor& initial_S,
                                           const OptionalTensor& cu_seqlens,
                                           std::optional<double> scale, bool l2norm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mdn::kimi_delta_rule", "")
                             .typed<decltype(kimi_delta_rule)>();
  return op.call(q, k, v, alpha, beta, initial_S, cu_seqlens, scale, l2norm);
}

Tensor kimi_delta_rule_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                            const Tensor& beta, Tensor& S, const OptionalTensor& slots,
                            std::optional<double> scale, bool l2norm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mdn::kimi_delta_rule_step", "")
                             .typed<decltype(kimi_delta_rule_step)>();
  return op.call(q, k, v, alpha, beta, S, slots, scale, l2norm);
}

TORCH_LIBRARY_FRAGMENT(mdn, m) {
#define MDN_ROWS "Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor beta, "
#define MDN_REST \
  "Tensor? initial_S=None, Tensor? cu_seqlens=None, float? scale=None, bool l2norm=False"
  m.def("kimi_delta_rule(" MDN_ROWS MDN_REST ") -> (Tensor o, Tensor final_S)");
  m.def("kimi_delta_rule_forward(" MDN_ROWS MDN_REST
        ", bool save=False) -> (Tensor o, Tensor final_S, Tensor saved)");
  m.def("kimi_delta_rule_backward(Tensor saved, Tensor d_o, Tensor? d_final_S, " MDN_ROWS MDN_REST
        ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_alpha, Tensor d_beta, "
        "Tensor d_initial_S)");
  m.def("kimi_delta_rule_step(" MDN_ROWS
        "Tensor(a!) S, Tensor? slots=None, float? scale=None, bool l2norm=False) -> Tensor o");
#undef MDN_ROWS
#undef MDN_REST
}

TORCH_LIBRARY_IMPL(mdn, Autograd, m) {
  m.impl("kimi_delta_rule", with_autograd);
  m.impl("kimi_delta_rule_step", torch::CppFunction::makeFromBoxedFunction<&refuse_gradient>());
}

TORCH_LIBRARY_IMPL(mdn, Meta, m) {
  m.impl("kimi_delta_rule", operator_meta);
  m.impl("kimi_delta_rule_forward", forward_meta);
  m.impl("kimi_delta_rule_backward", backward_meta);
  m.impl("kimi_delta_rule_step", step_meta);
}

TORCH_LIBRARY_IMPL(mdn, CPU, m) {
  m.impl("kimi_delta_rule", without_autograd);
  m.impl("kimi_delta_rule_forward", forward);
  m.impl("kimi_delta_rule_backward", backward);
  m.impl("kimi_delta_rule_step", step);
}

TORCH_LIBRARY_IMPL(mdn, CUDA, m) {
  m.impl("kimi_delta_rule", without_autograd);
  m.impl("kimi_delta_rule_forward", forward);
  m.impl("kimi_delta_rule_backward", backward);
  m.impl("kimi_delta_rule_step", step);
}

}  // namespace mdn::ops
