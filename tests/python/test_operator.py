"""The torch operators from Python: derivatives, tracing, meta shapes, errors."""

import math

import mdn
import pytest
import torch

GATES = ("alpha", "mu", "eta", "beta")


def make(
    B=2, T=7, H=2, HV=4, K=3, V=5, dtype=torch.float64, pi=False, states=False, N=None, seed=0
):
    """Random arguments: unit-scale q, k, v, gates inside their ranges."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    gate_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    x = {"q": normal(B, T, H, K), "k": normal(B, T, H, K), "v": normal(B, T, HV, V)}
    x = {name: value.to(dtype) for name, value in x.items()}
    for name, least, most in zip(GATES, (0.3, 0.1, 0.2, 0.1), (1.0, 0.9, 1.5, 0.9), strict=True):
        uniform = torch.rand(B, T, HV, generator=generator, dtype=torch.float64)
        x[name] = (least + (most - least) * uniform).to(gate_dtype)
    if pi:
        x["pi"] = torch.rand(B, T, HV, generator=generator, dtype=torch.float64).to(gate_dtype)
    if states:
        shape = (B if N is None else N, HV, V, K)
        x["initial_S"] = normal(*shape).to(gate_dtype)
        x["initial_M"] = normal(*shape).to(gate_dtype)
    return x


def with_gradients(x):
    return {name: value.clone().requires_grad_() for name, value in x.items()}


def recurrence(
    q, k, v, alpha, mu, eta, beta, pi=None, initial_S=None, initial_M=None, scale=None, l2norm=False
):
    """The formulas, token by token, by torch's own operations; states are [B, HV, V, K]."""
    if l2norm:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    group = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(group, dim=2) for x in (q, k))
    pi = alpha if pi is None else pi
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    B, T, HV, V = v.shape
    S = v.new_zeros(B, HV, V, q.shape[-1]) if initial_S is None else initial_S
    M = v.new_zeros(B, HV, V, q.shape[-1]) if initial_M is None else initial_M
    outputs = []
    for t in range(T):
        a, m, e, b, p = (x[:, t, :, None] for x in (alpha, mu, eta, beta, pi))
        r = v[:, t] - p * torch.einsum("bhvk,bhk->bhv", S, k[:, t])
        M = m[..., None] * M - e[..., None] * torch.einsum("bhv,bhk->bhvk", r, k[:, t])
        S = a[..., None] * S - b[..., None] * M
        outputs.append(scale * torch.einsum("bhvk,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1), S, M


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pi", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("l2norm", [False, True])
def test_equals_the_recurrence(pi, states, l2norm):
    x = make(T=19, pi=pi, states=states)
    got = mdn.momentum_delta_rule(**x, l2norm=l2norm, scale=0.7)
    want = recurrence(**x, l2norm=l2norm, scale=0.7)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-13  # float64: 1e-16 times a few hundred operations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [1, 7, 64, 150])
def test_lower_precision_against_float64(dtype, T):
    x = make(B=1, T=T, H=2, HV=2, K=16, V=32, dtype=dtype, states=True)
    got = mdn.momentum_delta_rule(**x, l2norm=True)
    want = mdn.momentum_delta_rule(**{n: v.double() for n, v in x.items()}, l2norm=True)
    # Inside, float32 carries both: rounding of 2^-24 over some 100 dependent operations a chunk,
    # amplified by the recurrence; bfloat16 rounds the output to 2^-9 besides.
    tolerances = (1e-5, 1e-5, 1e-5) if dtype == torch.float32 else (4e-3, 1e-5, 1e-5)
    for a, b, tolerance in zip(got, want, tolerances, strict=True):
        assert a.dtype == (dtype if a is got[0] else torch.float32)
        assert relative(a, b) < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_equals_one_by_one(dtype):
    lengths = [5, 0, 1, 9, 4]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    x = make(B=1, T=sum(lengths), pi=True, states=True, N=len(lengths), dtype=dtype)
    o, S, M = mdn.momentum_delta_rule(**x, cu_seqlens=ends)
    for n, length in enumerate(lengths):
        states = {name: x[name][n : n + 1] for name in ("initial_S", "initial_M")}
        if length == 0:
            assert torch.equal(S[n], states["initial_S"][0])
            assert torch.equal(M[n], states["initial_M"][0])
            continue
        part = {
            name: value[:, ends[n] : ends[n + 1]]
            for name, value in x.items()
            if not name.startswith("initial")
        }
        one = mdn.momentum_delta_rule(**part, **states)
        tolerance = 1e-14 if dtype == torch.float64 else 1e-6
        for a, b in zip((o[:, ends[n] : ends[n + 1]], S[n], M[n]), one, strict=True):
            assert relative(a, b.squeeze(0) if b.shape != a.shape else b) < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_equal_the_whole(dtype):
    x = make(T=9, K=16, V=32, dtype=dtype, pi=True, states=True)
    o, S, M = mdn.momentum_delta_rule(**x, l2norm=True)
    slots = torch.tensor([2, 0])
    state_S = torch.full((3, *S.shape[1:]), math.nan, dtype=S.dtype)
    state_M = state_S.clone()
    state_S[slots], state_M[slots] = x["initial_S"], x["initial_M"]
    names = ("q", "k", "v", *GATES)
    steps = [
        mdn.momentum_delta_rule_step(
            *(x[name][:, t] for name in names),
            state_S,
            state_M,
            pi=x["pi"][:, t],
            slots=slots,
            l2norm=True,
        )
        for t in range(9)
    ]
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    assert relative(torch.stack(steps, 1), o) < tolerance
    assert relative(state_S[slots], S) < tolerance
    assert relative(state_M[slots], M) < tolerance
    assert state_S[1].isnan().all()  # nobody's slot


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("states", [False, True])
def test_without_mu_it_is_zero(dtype, states):
    x = make(T=70, dtype=dtype, states=states, pi=True)
    x["mu"] = torch.zeros_like(x["mu"])
    if states:
        x["initial_M"] = torch.zeros_like(x["initial_M"])
    full = with_gradients(x)
    o, S, _ = mdn.momentum_delta_rule(**full, l2norm=True)
    plain = with_gradients({n: t for n, t in x.items() if n not in ("mu", "initial_M")})
    got, got_S, got_M = mdn.momentum_delta_rule(**{"mu": None, **plain}, l2norm=True)
    assert got_M.numel() == 0
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert relative(got, o) < tolerance and relative(got_S, S) < tolerance
    got_gradients = torch.autograd.grad(got.square().sum() + got_S.sum(), list(plain.values()))
    gradients = torch.autograd.grad(o.square().sum() + S.sum(), [full[n] for n in plain])
    for name, a, b in zip(plain, got_gradients, gradients, strict=True):
        assert relative(a, b) < 10 * tolerance, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_without_mu_equal_the_whole(dtype):
    x = make(T=9, K=19, V=8, dtype=dtype, states=True)
    del x["initial_M"]
    x["mu"] = None
    o, S, _ = mdn.momentum_delta_rule(**x)
    state = x["initial_S"].clone()
    names = ("q", "k", "v", *GATES)
    steps = [
        mdn.momentum_delta_rule_step(
            *(None if x[name] is None else x[name][:, t] for name in names), state, None
        )
        for t in range(9)
    ]
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    assert relative(torch.stack(steps, 1), o) < tolerance
    assert relative(state, S) < tolerance


def test_padding_rows_touch_nothing():
    x = make(T=1)
    S, M = torch.ones(1, 4, 5, 3).double(), torch.ones(1, 4, 5, 3).double()
    arguments = [x[name][:, 0] for name in ("q", "k", "v", *GATES)]
    mdn.momentum_delta_rule_step(*arguments, S, M, slots=torch.tensor([-1, -1]))
    assert (S == 1).all() and (M == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_noncontiguous_arguments(dtype):
    x = make(K=16, V=16, dtype=dtype, pi=True, states=True)
    strided = {}
    for name, value in x.items():
        last = value.dim() - 1
        spread = torch.full((*value.shape[:last], 2 * value.shape[last]), math.nan, dtype=dtype)
        spread[..., ::2] = value
        strided[name] = spread[..., ::2].requires_grad_()
        assert not strided[name].is_contiguous()
    plain = with_gradients(x)
    got = mdn.momentum_delta_rule(**strided)
    want = mdn.momentum_delta_rule(**plain)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    # an output gradient that is a transposed view
    d_o = torch.randn(*got[0].shape[::-1]).to(dtype).permute(3, 2, 1, 0)
    a = torch.autograd.grad(got[0], list(strided.values()), d_o)
    b = torch.autograd.grad(want[0], list(plain.values()), d_o.contiguous())
    for name, u, w in zip(x, a, b, strict=True):
        assert torch.equal(u, w), name


def test_published_states_round_trip():
    S, M = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    ours = mdn.from_published_states(S, M)
    assert ours[0].shape == (2, 3, 5, 4) and all(x.is_contiguous() for x in ours)
    assert torch.equal(ours[0][1, 2, 3], S[1, 2, :, 3])
    assert all(torch.equal(a, b) for a, b in zip(mdn.to_published_states(*ours), (S, M)))
    half = mdn.from_published_states(S.bfloat16(), M.bfloat16())
    assert half[0].dtype == torch.float32


# --- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("pi", [False, True])
@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(pi, l2norm, packed):
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6]) if packed else None
    sizes = {"B": 1, "T": 6, "N": 4} if packed else {"B": 2, "T": 5}
    x = with_gradients(make(**sizes, H=1, HV=2, K=2, V=3, pi=pi, states=True))
    names = list(x)

    def function(*values):
        arguments = dict(zip(names, values, strict=True))
        return mdn.momentum_delta_rule(**arguments, cu_seqlens=cu_seqlens, l2norm=l2norm)

    # All inputs at once, all outputs (o and both final states); no second derivatives exist.
    assert torch.autograd.gradcheck(function, tuple(x.values()), check_undefined_grad=True)


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_gradients_of_some_outputs_only(missing):
    x = make(T=11, states=True)
    ours, theirs = with_gradients(x), with_gradients(x)

    def loss(outputs):
        return sum((o * o.detach().cos()).sum() for i, o in enumerate(outputs) if i not in missing)

    a = torch.autograd.grad(loss(mdn.momentum_delta_rule(**ours)), list(ours.values()))
    b = torch.autograd.grad(
        loss(recurrence(**theirs)), list(theirs.values()), materialize_grads=True
    )
    for name, u, w in zip(x, a, b, strict=True):
        assert (u - w).norm() <= 1e-12 * (1 + w.norm()), name


def test_gradients_only_where_asked():
    x = make()
    x["v"].requires_grad_()
    o, _, _ = mdn.momentum_delta_rule(**x)
    o.sum().backward()
    assert x["v"].grad is not None and x["q"].grad is None


def test_nothing_is_recorded_without_gradients():
    x = make()
    o, S, M = mdn.momentum_delta_rule(**x)
    assert not (o.requires_grad or S.requires_grad or M.requires_grad)
    with torch.no_grad():
        o, _, _ = mdn.momentum_delta_rule(**with_gradients(x))
    assert not o.requires_grad
    with torch.inference_mode():
        mdn.momentum_delta_rule(**with_gradients(x))


def test_second_derivatives_are_refused():
    x = with_gradients(make())
    o, _, _ = mdn.momentum_delta_rule(**x)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(o.sum(), x["q"], create_graph=True)


@pytest.mark.parametrize("T", [5, 200])
def test_float32_gradients_against_float64(T):
    x = make(B=1, T=T, H=2, HV=4, K=16, V=32, dtype=torch.float32, pi=True, states=True)
    low, high = with_gradients(x), with_gradients({n: v.double() for n, v in x.items()})

    def gradients(arguments):
        outputs = mdn.momentum_delta_rule(**arguments, l2norm=True)
        loss = sum((o * torch.linspace(-1, 1, o.numel()).to(o).view_as(o)).sum() for o in outputs)
        return torch.autograd.grad(loss, list(arguments.values()))

    for name, a, b in zip(x, gradients(low), gradients(high), strict=True):
        assert a.dtype == torch.float32
        assert relative(a, b) < 1e-4, name


def test_a_step_has_no_gradient():
    x = with_gradients({name: value[:, 0] for name, value in make(T=1).items()})
    S, M = torch.zeros(2, 4, 5, 3).double(), torch.zeros(2, 4, 5, 3).double()
    o = mdn.momentum_delta_rule_step(*x.values(), S, M)
    assert S.abs().sum() > 0 and not S.requires_grad
    with pytest.raises(RuntimeError, match="momentum_delta_rule_step has no gradient"):
        o.sum().backward()
    with torch.no_grad():
        assert not mdn.momentum_delta_rule_step(*x.values(), S, M).requires_grad


# --- tracing ------------------------------------------------------------------------------------

FORMS = [
    pytest.param({}, id="plain"),
    pytest.param({"pi": True}, id="pi"),
    pytest.param({"states": True}, id="states"),
    pytest.param({"momentum": False, "pi": True}, id="without momentum"),
    pytest.param({"pi": True, "states": True, "B": 1, "N": 3}, id="packed"),
    pytest.param({"dtype": torch.float32, "K": 16, "V": 16, "T": 400}, id="float32"),
]


def form(options):
    options = dict(options)
    momentum = options.pop("momentum", True)
    x = make(**options)
    if not momentum:
        x["mu"] = None
    if "N" in options:
        x["cu_seqlens"] = torch.tensor([0, 2, 3, 7])
    return x


def differentiable(x):
    return {
        n: v.requires_grad_() if v is not None and v.is_floating_point() else v
        for n, v in x.items()
    }


def test_some_form_saves_something():
    """So that the tests below see a `saved` whose size only the backend knows."""
    x = form({"dtype": torch.float32, "K": 16, "V": 16, "T": 400})
    assert torch.ops.mdn.momentum_delta_rule_forward(**x, save=True)[3].numel() > 0
    assert torch.ops.mdn.momentum_delta_rule_forward(**x, save=False)[3].numel() == 0


@pytest.mark.parametrize("options", FORMS)
def test_opcheck_operator(options):
    torch.library.opcheck(
        torch.ops.mdn.momentum_delta_rule.default, (), differentiable(form(options))
    )


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("options", FORMS)
def test_opcheck_forward(options, save):
    torch.library.opcheck(
        torch.ops.mdn.momentum_delta_rule_forward.default, (), {**form(options), "save": save}
    )


@pytest.mark.parametrize("options", FORMS)
def test_opcheck_backward(options):
    x = form(options)
    o, S, M, saved = torch.ops.mdn.momentum_delta_rule_forward(**x, save=True)
    ones_M = torch.ones_like(M) if x["mu"] is not None else None
    for d_S, d_M in ((torch.ones_like(S), ones_M), (None, None)):
        torch.library.opcheck(
            torch.ops.mdn.momentum_delta_rule_backward.default,
            (saved, torch.ones_like(o), d_S, d_M),
            x,
        )


@pytest.mark.parametrize("slots", [None, torch.tensor([1, 0])])
@pytest.mark.parametrize("pi", [False, True])
def test_opcheck_step(pi, slots):
    x = {name: value[:, 0] for name, value in make(T=1, pi=pi).items()}
    S = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.mdn.momentum_delta_rule_step.default,
        (),
        {**x, "S": S, "M": S.clone(), "slots": slots},
    )
    torch.library.opcheck(
        torch.ops.mdn.momentum_delta_rule_step.default,
        (),
        {**x, "mu": None, "S": S, "M": None, "slots": slots},
    )


def test_meta_shapes():
    x = {n: v.to("meta") for n, v in make(T=6, dtype=torch.bfloat16).items()}
    o, S, M = mdn.momentum_delta_rule(**x)
    assert o.shape == (2, 6, 4, 5) and o.dtype == torch.bfloat16 and o.is_meta
    assert S.shape == M.shape == (2, 4, 5, 3) and S.dtype == torch.float32
    ends = torch.empty(4, dtype=torch.long, device="meta")
    one = {n: v.to("meta").requires_grad_() for n, v in make(B=1, T=6, pi=True).items()}
    o, S, M = mdn.momentum_delta_rule(**one, cu_seqlens=ends)
    assert S.shape == (3, 4, 5, 3) and o.requires_grad
    gradients = torch.autograd.grad(o.sum(), list(one.values()))
    assert [g.shape for g in gradients] == [v.shape for v in one.values()]
    step = [v[:, 0] for v in x.values()]
    assert mdn.momentum_delta_rule_step(*step, S, M).shape == (2, 4, 5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", FORMS)
def test_compiled_equals_eager(options, dynamic):
    torch._dynamo.reset()

    def function(x):
        o, S, M = mdn.momentum_delta_rule(**x, l2norm=True)
        return (o.sin().sum() + S.square().sum() + M.sum(), o)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed in (1, 2):
        results = []
        for call in (function, compiled):
            x = differentiable(form({**options, "seed": seed}))
            loss, o = call(x)
            wanted = [v for v in x.values() if v is not None and v.requires_grad]
            results.append((o.detach(), *torch.autograd.grad(loss, wanted)))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_compiled_step_updates_in_place():
    torch._dynamo.reset()
    x = [value[:, 0] for value in make(T=1).values()]
    S, M = (torch.randn(2, 4, 5, 3, dtype=torch.float64) for _ in range(2))
    S2, M2 = S.clone(), M.clone()
    compiled = torch.compile(mdn.momentum_delta_rule_step, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(*x, S, M), mdn.momentum_delta_rule_step(*x, S2, M2)
    )
    assert torch.equal(S, S2) and torch.equal(M, M2)


# --- errors -------------------------------------------------------------------------------------


def changed(x, **changes):
    return {**x, **changes}


X = make(B=2, T=7, H=2, HV=4, K=3, V=5, pi=True, states=True)
ERRORS = {
    "q of three dimensions": ({"q": X["q"][0]}, r"q must be \[B, T, H, K\]"),
    "v of three dimensions": ({"v": X["v"][0]}, r"v must be \[B, T, HV, V\]"),
    "k of another length": ({"k": X["k"][:, :6]}, r"k is \[2, 6, 2, 3\].*must be \[2, 7, 2, 3\]"),
    "v of another batch": ({"v": X["v"][:1]}, r"v is \[1, 7, 4, 5\].*must be \[2, 7, 4, 5\]"),
    "heads that do not divide": ({"v": X["v"][:, :, :3]}, "v has 3 heads.*multiple of q's 2"),
    "gate of another shape": ({"mu": X["mu"][..., :2]}, r"mu is \[2, 7, 2\]"),
    "pi of another shape": ({"pi": X["pi"][:1]}, r"pi is \[1, 7, 4\]"),
    "k of another dtype": ({"k": X["k"].float()}, "k is .*Float.*must be .*Double"),
    "gate of another dtype": ({"beta": X["beta"].float()}, "beta is .*Float.*must be .*Double"),
    "integers": ({"q": X["q"].long(), "k": X["k"].long(), "v": X["v"].long()}, "Long|Float"),
    "state in the published layout": (
        {"initial_S": X["initial_S"].transpose(-1, -2)},
        r"initial_S is \[2, 4, 3, 5\].*must be \[2, 4, 5, 3\]",
    ),
    "one state only": ({"initial_M": None}, "initial_S and initial_M must be given together"),
    "M without mu": ({"mu": None}, "initial_M is given without mu"),
    "no tokens": ({n: X[n][:, :0] for n in ("q", "k", "v", *GATES, "pi")}, "at least 1"),
    "boundaries with a batch": (
        {"cu_seqlens": torch.tensor([0, 7])},
        "batch must be 1",
    ),
    "another device": ({"k": X["k"].to("meta")}, "k is|meta"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_argument(case):
    changes, message = ERRORS[case]
    with pytest.raises(RuntimeError, match=message):
        mdn.momentum_delta_rule(**{**X, **changes})


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (torch.tensor([0, 8]), "from 0 to 8; it must run from 0 to T = 7"),
        (torch.tensor([1, 7]), "from 1 to 7"),
        (torch.tensor([0, 5, 3, 7]), r"cu_seqlens\[1\] = 5 is above cu_seqlens\[2\] = 3"),
        (torch.tensor([0, 7], dtype=torch.int32), "must be .* Long"),
        (torch.tensor([[0, 7]]), r"\[1, 2\]"),
        (torch.tensor([0]), r"\[1\]"),
    ],
)
def test_errors_of_boundaries(ends, message):
    x = make(B=1, T=7)
    with pytest.raises(RuntimeError, match=message):
        mdn.momentum_delta_rule(**x, cu_seqlens=ends)


def step_arguments():
    x = {name: value[:, 0] for name, value in make(T=1).items()}
    x["S"], x["M"] = torch.zeros(2, 4, 5, 3).double(), torch.zeros(2, 4, 5, 3).double()
    return x


STEP = step_arguments()
STEP_ERRORS = {
    "a whole sequence": ({"q": make()["q"]}, r"q must be \[B, H, K\]"),
    "strided state": (
        {"S": torch.zeros(2, 4, 3, 5).double().transpose(-1, -2)},
        "S and M are updated in place and must be contiguous",
    ),
    "state of another shape": ({"S": torch.zeros(2, 4, 5, 4).double()}, r"S is \[2, 4, 5, 4\]"),
    "state of another dtype": ({"M": torch.zeros(2, 4, 5, 3)}, "M is .*Float"),
    "too few slots": (
        {"S": STEP["S"][:1].clone(), "M": STEP["M"][:1].clone()},
        "2 sequences but only 1 slots",
    ),
    "slot out of range": ({"slots": torch.tensor([0, 2])}, r"slots\[1\] is 2; there are 2 slots"),
    "M without mu": ({"mu": None}, "mu and M must be given together"),
    "slot given twice": ({"slots": torch.tensor([1, 1])}, "slot"),
    "slots of another dtype": ({"slots": torch.tensor([0, 1]).int()}, "slots is .*Long"),
    "gate of another shape": ({"eta": STEP["eta"][:, :2]}, r"eta is \[2, 2\]"),
}


@pytest.mark.parametrize("case", STEP_ERRORS)
def test_errors_of_the_step(case):
    changes, message = STEP_ERRORS[case]
    with pytest.raises(RuntimeError, match=message):
        mdn.momentum_delta_rule_step(**{**STEP, **changes})


def test_errors_leave_states_alone():
    x = step_arguments()
    x["S"].fill_(2)
    with pytest.raises(RuntimeError):
        mdn.momentum_delta_rule_step(**{**x, "eta": x["eta"].float()})
    assert (x["S"] == 2).all()
