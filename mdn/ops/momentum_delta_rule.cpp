#include "mdn/ops/momentum_delta_rule.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/ops/delta_rule.h"
#include "mdn/ops/no_gradient.h"

namespace mdn::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Backward =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The tensors of a call, contiguous, and the problem they pose. Sizes are checked here by name;
// what is left to the kernels' own check are relations that these checks imply.
struct Call {
  Tensor q, k, v, alpha, eta, beta;
  OptionalTensor mu, pi, initial_S, initial_M, cu_seqlens;  // no mu: without momentum
  kernels::MomentumDeltaRuleProblem problem;

  kernels::MomentumDeltaRuleInputs inputs() const {
    return {data(q),   data(k),    data(v),  data(alpha),     data(mu),
            data(eta), data(beta), data(pi), data(initial_S), data(initial_M)};
  }
  std::vector<int64_t> states_shape() const {
    return {problem.N, problem.HV, problem.V, problem.K};
  }
};

Call make_call(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
               const OptionalTensor& mu, const Tensor& eta, const Tensor& beta,
               const OptionalTensor& pi, const OptionalTensor& initial_S,
               const OptionalTensor& initial_M, const OptionalTensor& cu_seqlens,
               std::optional<double> scale, bool l2norm) {
  constexpr const char* kOp = "momentum_delta_rule";
  const auto [B, T, H, K, HV, V] = sizes_of_sequences(kOp, q, v);
  const auto type = q.scalar_type(), gate_type = gate_type_of(type);
  const TensorCheck check{kOp, q.device()};
  check(q, "q", {B, T, H, K}, type);
  check(k, "k", {B, T, H, K}, type);
  check(v, "v", {B, T, HV, V}, type);
  check(alpha, "alpha", {B, T, HV}, gate_type);
  check(mu, "mu", {B, T, HV}, gate_type);
  check(eta, "eta", {B, T, HV}, gate_type);
  check(beta, "beta", {B, T, HV}, gate_type);
  check(pi, "pi", {B, T, HV}, gate_type);

  Call call;
  auto& p = call.problem;
  p = {.B = B, .T = T, .H = H, .HV = HV, .K = K, .V = V, .N = B};
  if (cu_seqlens) {
    call.cu_seqlens = check_cu_seqlens(kOp, *cu_seqlens, B, T, q.device());
    p.N = cu_seqlens->numel() - 1;
    p.cu_seqlens = static_cast<const int64_t*>(data(call.cu_seqlens));
  }
  p.dtype = dtype_of(kOp, type);
  p.scale = scale_of(scale, K);
  p.l2norm = l2norm;
  p.momentum = mu.has_value();
  MDN_CHECK(p.momentum || !initial_M, "{}: initial_M is given without mu", kOp);
  MDN_CHECK(!p.momentum || initial_S.has_value() == initial_M.has_value(),
            "{}: initial_S and initial_M must be given together", kOp);
  check(initial_S, "initial_S", call.states_shape(), gate_type);
  check(initial_M, "initial_M", call.states_shape(), gate_type);

  call.q = aligned(q);
  call.k = aligned(k);
  call.v = aligned(v);
  call.alpha = aligned(alpha);
  call.mu = aligned(mu);
  call.eta = aligned(eta);
  call.beta = aligned(beta);
  call.pi = aligned(pi);
  call.initial_S = aligned(initial_S);
  call.initial_M = aligned(initial_M);
  return call;
}

// The one place where a dtype and device become a backend.
enum class Backend { kReference, kCpu, kCuda };

Backend backend_of(const Call& call) {
  const bool cuda = call.q.is_cuda();
  const Backend backend = cuda                                    ? Backend::kCuda
                          : call.problem.dtype == DType::kFloat64 ? Backend::kReference
                                                                  : Backend::kCpu;
  const std::string reason = backend == Backend::kCuda ? kernels::cuda::unsupported(call.problem)
                             : backend == Backend::kCpu
                                 ? kernels::cpu::unsupported(call.problem)
                                 : kernels::reference::unsupported(call.problem);
  MDN_CHECK(reason.empty(), "momentum_delta_rule: {}", reason);
  return backend;
}

kernels::MomentumDeltaRuleSizes sizes_of(Backend backend, const Call& call) {
  switch (backend) {
    case Backend::kReference:
      return kernels::reference::sizes(call.problem);
    case Backend::kCpu:
      return kernels::cpu::sizes(call.problem);
    case Backend::kCuda:
      return kernels::cuda::sizes(call.problem);
  }
  return {};
}

Tensor bytes(const Call& call, size_t size) {
  return at::empty({static_cast<int64_t>(size)}, call.q.options().dtype(at::kByte));
}

Forward forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                const OptionalTensor& mu, const Tensor& eta, const Tensor& beta,
                const OptionalTensor& pi, const OptionalTensor& initial_S,
                const OptionalTensor& initial_M, const OptionalTensor& cu_seqlens,
                std::optional<double> scale, bool l2norm, bool save) {
  const Call call =
      make_call(q, k, v, alpha, mu, eta, beta, pi, initial_S, initial_M, cu_seqlens, scale, l2norm);
  const Backend backend = backend_of(call);
  const DeviceScope device(call.q);
  const auto sizes = sizes_of(backend, call);
  Tensor o = at::empty_like(call.v);
  Tensor final_S = at::empty(call.states_shape(), call.alpha.options());
  Tensor final_M = call.mu ? at::empty_like(final_S) : at::empty({0}, call.alpha.options());
  Tensor saved = bytes(call, save ? sizes.saved : 0);
  const Tensor workspace = bytes(call, sizes.forward_workspace);
  const kernels::MomentumDeltaRuleForward args{.problem = call.problem,
                                               .inputs = call.inputs(),
                                               .o = o.data_ptr(),
                                               .final_S = final_S.data_ptr(),
                                               .final_M = call.mu ? final_M.data_ptr() : nullptr,
                                               .saved = save ? saved.data_ptr() : nullptr,
                                               .workspace = workspace.data_ptr()};
  switch (backend) {
    case Backend::kReference:
      kernels::reference::forward(args);
      break;
    case Backend::kCpu:
      kernels::cpu::forward(args);
      break;
    case Backend::kCuda:
      kernels::cuda::forward(args, device.stream());
      break;
  }
  return {o, final_S, final_M, saved};
}

// Gradients in the order of the inputs; an absent input's is an empty tensor.
Backward backward(const Tensor& saved, const Tensor& d_o, const OptionalTensor& d_final_S,
                  const OptionalTensor& d_final_M, const Tensor& q, const Tensor& k,
                  const Tensor& v, const Tensor& alpha, const OptionalTensor& mu, const Tensor& eta,
                  const Tensor& beta, const OptionalTensor& pi, const OptionalTensor& initial_S,
                  const OptionalTensor& initial_M, const OptionalTensor& cu_seqlens,
                  std::optional<double> scale, bool l2norm) {
  const Call call =
      make_call(q, k, v, alpha, mu, eta, beta, pi, initial_S, initial_M, cu_seqlens, scale, l2norm);
  const Backend backend = backend_of(call);
  const DeviceScope device(call.q);
  const auto sizes = sizes_of(backend, call);
  const TensorCheck check{"momentum_delta_rule_backward", q.device()};
  check(d_o, "d_o", v.sizes(), v.scalar_type());
  check(d_final_S, "d_final_S", call.states_shape(), alpha.scalar_type());
  MDN_CHECK(mu || !d_final_M, "momentum_delta_rule_backward: d_final_M is given without mu");
  check(saved, "saved", {static_cast<int64_t>(sizes.saved)}, at::kByte);
  check(d_final_M, "d_final_M", call.states_shape(), alpha.scalar_type());
  const Tensor d_o_c = aligned(d_o);
  const OptionalTensor d_S = aligned(d_final_S), d_M = aligned(d_final_M);

  const auto like = [](const OptionalTensor& x, const Tensor& options) {
    return x ? at::empty_like(*x) : at::empty({0}, options.options());
  };
  Tensor d_q = at::empty_like(call.q), d_k = at::empty_like(call.k), d_v = at::empty_like(call.v);
  Tensor d_alpha = at::empty_like(call.alpha), d_mu = like(call.mu, call.alpha);
  Tensor d_eta = at::empty_like(call.eta), d_beta = at::empty_like(call.beta);
  Tensor d_pi = like(call.pi, call.alpha);
  Tensor d_initial_S = like(call.initial_S, call.alpha);
  Tensor d_initial_M = like(call.initial_M, call.alpha);
  const Tensor workspace = bytes(call, sizes.backward_workspace);
  kernels::MomentumDeltaRuleBackward args{.problem = call.problem,
                                          .inputs = call.inputs(),
                                          .saved = saved.data_ptr(),
                                          .d_o = d_o_c.data_ptr(),
                                          .d_final_S = data(d_S),
                                          .d_final_M = data(d_M),
                                          .d_q = d_q.data_ptr(),
                                          .d_k = d_k.data_ptr(),
                                          .d_v = d_v.data_ptr(),
                                          .d_alpha = d_alpha.data_ptr(),
                                          .d_mu = mu ? d_mu.data_ptr() : nullptr,
                                          .d_eta = d_eta.data_ptr(),
                                          .d_beta = d_beta.data_ptr()};
  args.workspace = workspace.data_ptr();
  if (pi) {
    args.d_pi = d_pi.data_ptr();
  }
  if (initial_S) {
    args.d_initial_S = d_initial_S.data_ptr();
  }
  if (initial_M) {
    args.d_initial_M = d_initial_M.data_ptr();
  }
  switch (backend) {
    case Backend::kReference:
      kernels::reference::backward(args);
      break;
    case Backend::kCpu:
      kernels::cpu::backward(args);
      break;
    case Backend::kCuda:
      kernels::cuda::backward(args, device.stream());
      break;
  }
  return {d_q, d_k, d_v, d_alpha, d_mu, d_eta, d_beta, d_pi, d_initial_S, d_initial_M};
}

Tensor step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
            const OptionalTensor& mu, const Tensor& eta, const Tensor& beta, Tensor& S,
            const OptionalTensor& M, const OptionalTensor& pi, const OptionalTensor& slots,
            std::optional<double> scale, bool l2norm) {
  constexpr const char* kOp = "momentum_delta_rule_step";
  const auto [B, T, H, K, HV, V] = sizes_of_step(kOp, q, v);
  MDN_CHECK(S.dim() == 4, "{}: S must be [slots, HV, V, K], got {}", kOp, shape_text(S));
  const auto type = q.scalar_type(), gate_type = gate_type_of(type);
  const TensorCheck check{kOp, q.device()};
  check(k, "k", {B, H, K}, type);
  check(v, "v", {B, HV, V}, type);
  check(alpha, "alpha", {B, HV}, gate_type);
  check(mu, "mu", {B, HV}, gate_type);
  check(eta, "eta", {B, HV}, gate_type);
  check(beta, "beta", {B, HV}, gate_type);
  check(pi, "pi", {B, HV}, gate_type);
  const bool half_states = q.is_cuda() && S.scalar_type() == at::kHalf;
  const at::ScalarType state_type = half_states ? at::kHalf : gate_type;
  check(S, "S", {S.size(0), HV, V, K}, state_type);
  check(M, "M", S.sizes(), state_type);
  check(slots, "slots", {B}, at::kLong);
  MDN_CHECK(mu.has_value() == M.has_value(), "{}: mu and M must be given together", kOp);
  MDN_CHECK(S.is_contiguous() && (!M || M->is_contiguous()),
            "{}: S and M are updated in place and must be contiguous", kOp);
  const OptionalTensor slots_c = check_slots(kOp, slots, S, B);
  const std::array<Tensor, 6> x = {q.contiguous(),     k.contiguous(),   v.contiguous(),
                                   alpha.contiguous(), eta.contiguous(), beta.contiguous()};
  const OptionalTensor mu_c = contiguous(mu), pi_c = contiguous(pi);
  const DeviceScope device(q);
  Tensor o = at::empty_like(x[2]);
  const kernels::MomentumDeltaRuleStep args{
      .B = B,
      .H = H,
      .HV = HV,
      .K = K,
      .V = V,
      .dtype = dtype_of(kOp, type),
      .scale = scale_of(scale, K),
      .l2norm = l2norm,
      .q = data(x[0]),
      .k = data(x[1]),
      .v = data(x[2]),
      .alpha = data(x[3]),
      .mu = data(mu_c),
      .eta = data(x[4]),
      .beta = data(x[5]),
      .pi = data(pi_c),
      .S = S.data_ptr(),
      .M = M ? M->data_ptr() : nullptr,
      .slots = static_cast<const int64_t*>(data(slots_c)),
      .o = o.data_ptr(),
      .state_dtype = half_states ? DType::kFloat16 : DType::kFloat32};
  if (q.is_cuda()) {
    kernels::cuda::step(args, device.stream());
  } else if (args.dtype == DType::kFloat64) {
    kernels::reference::step(args);
  } else {
    kernels::cpu::step(args);
  }
  return o;
}

// Meta functions: shapes without data.
Forward forward_meta(const Tensor& q, const Tensor&, const Tensor& v, const Tensor& alpha,
                     const OptionalTensor& mu, const Tensor&, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor& cu_seqlens,
                     std::optional<double>, bool, bool) {
  const c10::SymInt N = cu_seqlens ? cu_seqlens->sym_numel() - 1 : q.sym_size(0);
  const c10::SymIntArrayRef heads = v.sym_sizes();
  const std::vector<c10::SymInt> states = {N, heads[2], heads[3], q.sym_size(3)};
  const auto state = [&] { return at::empty_symint(states, alpha.options()); };
  // How much is saved is the backend's affair; in a trace it is opaque.
  return {at::empty_like(v, at::MemoryFormat::Contiguous), state(),
          mu ? state() : at::empty({0}, alpha.options()),
          at::empty({0}, q.options().dtype(at::kByte))};
}

Backward backward_meta(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                       const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
                       const OptionalTensor& mu, const Tensor& eta, const Tensor& beta,
                       const OptionalTensor& pi, const OptionalTensor& initial_S,
                       const OptionalTensor& initial_M, const OptionalTensor&,
                       std::optional<double>, bool) {
  const auto like = [](const Tensor& x) { return at::empty_like(x, at::MemoryFormat::Contiguous); };
  const auto maybe = [&](const OptionalTensor& x) {
    return x ? like(*x) : at::empty({0}, alpha.options());
  };
  return {like(q),   like(k),    like(v),   like(alpha),      maybe(mu),
          like(eta), like(beta), maybe(pi), maybe(initial_S), maybe(initial_M)};
}

Tensor step_meta(const Tensor&, const Tensor&, const Tensor& v, const Tensor&,
                 const OptionalTensor&, const Tensor&, const Tensor&, Tensor&,
                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                 std::optional<double>, bool) {
  return at::empty_like(v, at::MemoryFormat::Contiguous);
}

// The operator under autograd's keys: forward and backward are operators too, so that tracing sees
// through them.
class Autograd : public torch::autograd::Function<Autograd> {
 public:
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
      const Tensor& alpha, const OptionalTensor& mu, const Tensor& eta, const Tensor& beta,
      const OptionalTensor& pi, const OptionalTensor& initial_S, const OptionalTensor& initial_M,
      const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mdn::momentum_delta_rule_forward", "")
                               .typed<decltype(ops::forward)>();
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [o, S, M, saved] = op.call(q, k, v, alpha, mu, eta, beta, pi, initial_S, initial_M,
                                          cu_seqlens, scale, l2norm, true);
    const auto plain = [](const OptionalTensor& x) { return x.value_or(Tensor()); };
    ctx->save_for_backward({saved, q, k, v, alpha, plain(mu), eta, beta, plain(pi),
                            plain(initial_S), plain(initial_M), plain(cu_seqlens)});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["l2norm"] = l2norm;
    ctx->set_materialize_grads(false);
    return {o, S, M};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    check_first_order("momentum_delta_rule");
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mdn::momentum_delta_rule_backward", "")
                               .typed<decltype(ops::backward)>();
    const auto x = ctx->get_saved_variables();
    const auto optional = [](const Tensor& t) {
      return t.defined() ? OptionalTensor(t) : std::nullopt;
    };
    const Tensor d_o = grads[0].defined() ? grads[0] : at::zeros_like(x[3]);
    const auto scale = ctx->saved_data["scale"].toOptional<double>();
    const OptionalTensor mu = optional(x[5]);
    const auto d =
        op.call(x[0], d_o, optional(grads[1]), mu ? optional(grads[2]) : std::nullopt, x[1], x[2],
                x[3], x[4], mu, x[6], x[7], optional(x[8]), optional(x[9]), optional(x[10]),
                optional(x[11]), scale, ctx->saved_data["l2norm"].toBool());
    const auto given = [](const Tensor& input, const Tensor& gradient) {
      return input.defined() ? gradient : Tensor();
    };
    return {std::get<0>(d),
            std::get<1>(d),
            std::get<2>(d),
            std::get<3>(d),
            given(x[5], std::get<4>(d)),
            std::get<5>(d),
            std::get<6>(d),
            given(x[8], std::get<7>(d)),
            given(x[9], std::get<8>(d)),
            given(x[10], std::get<9>(d)),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> with_autograd(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
    const OptionalTensor& mu, const Tensor& eta, const Tensor& beta, const OptionalTensor& pi,
    const OptionalTensor& initial_S, const OptionalTensor& initial_M,
    const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  auto out = Autograd::apply(q, k, v, alpha, mu, eta, beta, pi, initial_S, initial_M, cu_seqlens,
                             scale, l2norm);
  return {out[0], out[1], out[2]};
}

// Without autograd nothing is saved.
std::tuple<Tensor, Tensor, Tensor> without_autograd(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
    const OptionalTensor& mu, const Tensor& eta, const Tensor& beta, const OptionalTensor& pi,
    const OptionalTensor& initial_S, const OptionalTensor& initial_M,
    const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  const auto [o, S, M, saved] = forward(q, k, v, alpha, mu, eta, beta, pi, initial_S, initial_M,
                                        cu_seqlens, scale, l2norm, false);
  return {o, S, M};
}

std::tuple<Tensor, Tensor, Tensor> operator_meta(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
    const OptionalTensor& mu, const Tensor& eta, const Tensor& beta, const OptionalTensor& pi,
    const OptionalTensor& initial_S, const OptionalTensor& initial_M,
    const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  const auto [o, S, M, saved] = forward_meta(q, k, v, alpha, mu, eta, beta, pi, initial_S,
                                             initial_M, cu_seqlens, scale, l2norm, false);
  return {o, S, M};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> momentum_delta_rule(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
    const OptionalTensor& mu, const Tensor& eta, const Tensor& beta, const OptionalTensor& pi,
    const OptionalTensor& initial_S, const OptionalTensor& initial_M,
    const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mdn::momentum_delta_rule", "")
                             .typed<decltype(momentum_delta_rule)>();
  return op.call(q, k, v, alpha, mu, eta, beta, pi, initial_S, initial_M, cu_seqlens, scale,
                 l2norm);
}

Tensor momentum_delta_rule_step(const Tensor& q, const Tensor& k, const Tensor& v,
                                const Tensor& alpha, const OptionalTensor& mu, const Tensor& eta,
                                const Tensor& beta, Tensor& S, const OptionalTensor& M,
                                const OptionalTensor& pi, const OptionalTensor& slots,
                                std::optional<double> scale, bool l2norm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mdn::momentum_delta_rule_step", "")
                             .typed<decltype(momentum_delta_rule_step)>();
  return op.call(q, k, v, alpha, mu, eta, beta, S, M, pi, slots, scale, l2norm);
}

TORCH_LIBRARY_FRAGMENT(mdn, m) {
#define MDN_GATES \
  "Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? mu, Tensor eta, Tensor beta, "
#define MDN_REST                                                      \
  "Tensor? pi=None, Tensor? initial_S=None, Tensor? initial_M=None, " \
  "Tensor? cu_seqlens=None, float? scale=None, bool l2norm=False"
  m.def("momentum_delta_rule(" MDN_GATES MDN_REST
        ") -> (Tensor o, Tensor final_S, Tensor final_M)");
  m.def("momentum_delta_rule_forward(" MDN_GATES MDN_REST
        ", bool save=False) -> (Tensor o, Tensor final_S, Tensor final_M, Tensor saved)");
  m.def(
      "momentum_delta_rule_backward(Tensor saved, Tensor d_o, Tensor? d_final_S, "
      "Tensor? d_final_M, " MDN_GATES MDN_REST
      ") -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_alpha, Tensor d_mu, Tensor d_eta, "
      "Tensor d_beta, Tensor d_pi, Tensor d_initial_S, Tensor d_initial_M)");
  m.def("momentum_delta_rule_step(" MDN_GATES
        "Tensor(a!) S, Tensor(b!)? M, Tensor? pi=None, Tensor? slots=None, float? scale=None, "
        "bool l2norm=False) -> Tensor o");
#undef MDN_GATES
#undef MDN_REST
}

TORCH_LIBRARY_IMPL(mdn, Autograd, m) {
  m.impl("momentum_delta_rule", with_autograd);
  m.impl("momentum_delta_rule_step", torch::CppFunction::makeFromBoxedFunction<&refuse_gradient>());
}

TORCH_LIBRARY_IMPL(mdn, Meta, m) {
  m.impl("momentum_delta_rule", operator_meta);
  m.impl("momentum_delta_rule_forward", forward_meta);
  m.impl("momentum_delta_rule_backward", backward_meta);
  m.impl("momentum_delta_rule_step", step_meta);
}

TORCH_LIBRARY_IMPL(mdn, CPU, m) {
  m.impl("momentum_delta_rule", without_autograd);
  m.impl("momentum_delta_rule_forward", forward);
  m.impl("momentum_delta_rule_backward", backward);
  m.impl("momentum_delta_rule_step", step);
}

TORCH_LIBRARY_IMPL(mdn, CUDA, m) {
  m.impl("momentum_delta_rule", without_autograd);
  m.impl("momentum_delta_rule_forward", forward);
  m.impl("momentum_delta_rule_backward", backward);
  m.impl("momentum_delta_rule_step", step);
}

}  // namespace mdn::ops
