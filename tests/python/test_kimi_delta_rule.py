"""kimi_delta_rule from Python: derivatives, tracing, meta shapes, errors."""

import math

import mdn
import pytest
import torch


def make(B=2, T=7, H=2, HV=4, K=3, V=5, dtype=torch.float64, states=False, N=None, seed=0):
    """Random arguments; alpha in (0.3, 1), and some of it 0."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    alpha = (0.3 + 0.7 * uniform(B, T, HV, K)) * (uniform(B, T, HV, K) > 0.1)
    x = {
        "q": normal(B, T, H, K).to(dtype),
        "k": normal(B, T, H, K).to(dtype),
        "v": normal(B, T, HV, V).to(dtype),
        "alpha": alpha.to(gates),
        "beta": (0.1 + 0.3 * uniform(B, T, HV)).to(gates),
    }
    if states:
        x["initial_S"] = normal(B if N is None else N, HV, V, K).to(gates)
    return x


def differentiable(x):
    return {n: v.clone().requires_grad_() if v.is_floating_point() else v for n, v in x.items()}


def recurrence(q, k, v, alpha, beta, initial_S=None, scale=None, l2norm=False):
    """The formulas, token by token, by torch's own operations."""
    if l2norm:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    group = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(group, dim=2) for x in (q, k))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    B, T, HV, V = v.shape
    S = v.new_zeros(B, HV, V, q.shape[-1]) if initial_S is None else initial_S
    outputs = []
    for t in range(T):
        S = S * alpha[:, t, :, None]
        r = v[:, t] - torch.einsum("bhvk,bhk->bhv", S, k[:, t])
        S = S + torch.einsum("bh,bhv,bhk->bhvk", beta[:, t], r, k[:, t])
        outputs.append(scale * torch.einsum("bhvk,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1), S


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("l2norm", [False, True])
def test_equals_the_recurrence(states, l2norm):
    x = make(T=19, states=states)
    got = mdn.kimi_delta_rule(**x, l2norm=l2norm, scale=0.7)
    want = recurrence(**x, l2norm=l2norm, scale=0.7)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-13  # float64: 1e-16 times a few hundred operations


def test_steps_equal_the_whole_without_slots():
    x = make(T=9, states=True)
    o, S = mdn.kimi_delta_rule(**x, l2norm=True)
    state = x["initial_S"].clone()
    steps = [
        mdn.kimi_delta_rule_step(
            *(x[name][:, t] for name in ("q", "k", "v", "alpha", "beta")), state, l2norm=True
        )
        for t in range(9)
    ]
    assert relative(torch.stack(steps, 1), o) < 1e-14
    assert relative(state, S) < 1e-14


def test_padding_rows_touch_nothing():
    x = make(T=1)
    S = torch.ones(1, 4, 5, 3).double()
    arguments = [value[:, 0] for value in x.values()]
    mdn.kimi_delta_rule_step(*arguments, S, slots=torch.tensor([-1, -1]))
    assert (S == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_noncontiguous_arguments(dtype):
    x = make(K=16, V=16, dtype=dtype, states=True)
    strided = {}
    for name, value in x.items():
        spread = torch.full((*value.shape[:-1], 2 * value.shape[-1]), math.nan, dtype=dtype)
        spread[..., ::2] = value
        strided[name] = spread[..., ::2].requires_grad_()
        assert not strided[name].is_contiguous()
    plain = differentiable(x)
    got, want = mdn.kimi_delta_rule(**strided), mdn.kimi_delta_rule(**plain)
    d_o = torch.randn(*got[0].shape[::-1]).to(dtype).permute(3, 2, 1, 0)
    a = torch.autograd.grad(got[0], list(strided.values()), d_o)
    b = torch.autograd.grad(want[0], list(plain.values()), d_o.contiguous())
    for u, w in zip((*got, *a), (*want, *b), strict=True):
        assert torch.equal(u, w)


@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(l2norm, packed):
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6]) if packed else None
    sizes = {"B": 1, "T": 6, "N": 4} if packed else {"B": 2, "T": 5}
    x = differentiable(make(**sizes, H=1, HV=2, K=2, V=3, states=True))
    names = list(x)

    def function(*values):
        arguments = dict(zip(names, values, strict=True))
        return mdn.kimi_delta_rule(**arguments, cu_seqlens=cu_seqlens, l2norm=l2norm)

    assert torch.autograd.gradcheck(function, tuple(x.values()), check_undefined_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("missing", [0, 1])
def test_gradients_of_one_output_only(dtype, missing):
    x = make(T=70, K=8, V=8, states=True, dtype=dtype)
    ours = differentiable(x)
    theirs = differentiable({name: value.double() for name, value in x.items()})

    def loss(outputs):
        output = outputs[1 - missing]
        return (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()

    a = torch.autograd.grad(loss(mdn.kimi_delta_rule(**ours, l2norm=True)), list(ours.values()))
    b = torch.autograd.grad(
        loss(recurrence(**theirs, l2norm=True)), list(theirs.values()), materialize_grads=True
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for name, u, w in zip(x, a, b, strict=True):
        assert (u - w).norm() <= tolerance * (1 + w.norm()), name


def test_second_derivatives_are_refused():
    x = differentiable(make())
    o, _ = mdn.kimi_delta_rule(**x)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(o.sum(), x["q"], create_graph=True)


FORMS = [
    pytest.param({}, id="plain"),
    pytest.param({"states": True}, id="states"),
    pytest.param({"states": True, "B": 1, "N": 3}, id="packed"),
    pytest.param({"dtype": torch.float32, "K": 16, "V": 16, "T": 150}, id="float32"),
    pytest.param({"dtype": torch.float32, "B": 1, "N": 3, "states": True}, id="float32_packed"),
    pytest.param({"dtype": torch.bfloat16, "T": 70}, id="bfloat16"),
]


def form(options):
    x = make(**options)
    if "N" in options:
        x["cu_seqlens"] = torch.tensor([0, 2, 3, 7])
    return x


@pytest.mark.parametrize("options", FORMS)
def test_opcheck(options):
    torch.library.opcheck(torch.ops.mdn.kimi_delta_rule.default, (), differentiable(form(options)))
    x = form(options)
    forward = torch.ops.mdn.kimi_delta_rule_forward.default
    for save in (False, True):
        torch.library.opcheck(forward, (), {**x, "save": save})
    o, S, saved = forward(**x, save=True)
    for d_S in (torch.ones_like(S), None):
        torch.library.opcheck(
            torch.ops.mdn.kimi_delta_rule_backward.default, (saved, torch.ones_like(o), d_S), x
        )


def test_opcheck_step():
    x = [value[:, 0] for value in make(T=1, dtype=torch.float32).values()]
    torch.library.opcheck(
        torch.ops.mdn.kimi_delta_rule_step.default, (*x, torch.zeros(2, 4, 5, 3))
    )


@pytest.mark.parametrize("options", FORMS)
def test_compiled_equals_eager(options):
    torch._dynamo.reset()

    def function(x):
        o, S = mdn.kimi_delta_rule(**x, l2norm=True)
        return (o.sin().sum() + S.square().sum(), o)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for call in (function, compiled):
        x = differentiable(form(options))
        loss, o = call(x)
        wanted = [v for v in x.values() if v.requires_grad]
        results.append((o.detach(), *torch.autograd.grad(loss, wanted)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


X = make(states=True)
ERRORS = {
    "q of three dimensions": ({"q": X["q"][0]}, r"q must be \[B, T, H, K\]"),
    "v of three dimensions": ({"v": X["v"][0]}, r"v must be \[B, T, HV, V\]"),
    "k of another length": ({"k": X["k"][:, :6]}, r"k is \[2, 6, 2, 3\].*must be \[2, 7, 2, 3\]"),
    "heads that do not divide": ({"v": X["v"][:, :, :3]}, "v has 3 heads.*multiple of q's 2"),
    "one decay a head": ({"alpha": X["beta"]}, r"alpha is \[2, 7, 4\].*must be \[2, 7, 4, 3\]"),
    "beta of another dtype": ({"beta": X["beta"].float()}, "beta is .*Float.*must be .*Double"),
    "state in the published layout": (
        {"initial_S": X["initial_S"].transpose(-1, -2)},
        r"initial_S is \[2, 4, 3, 5\].*must be \[2, 4, 5, 3\]",
    ),
    "no tokens": (
        {n: X[n][:, :0] for n in ("q", "k", "v", "alpha", "beta")},
        "at least 1",
    ),
    "boundaries with a batch": ({"cu_seqlens": torch.tensor([0, 7])}, "batch must be 1"),
    "an infinite scale": ({"scale": math.inf}, "scale is inf; it must be finite"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_argument(case):
    changes, message = ERRORS[case]
    with pytest.raises(RuntimeError, match=message):
        mdn.kimi_delta_rule(**{**X, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"S": torch.zeros(2, 4, 3, 5).double().mT}, "updated in place and must be contiguous"),
        ({"S": torch.zeros(2, 4, 5, 4).double()}, r"S is \[2, 4, 5, 4\]"),
        ({"S": torch.zeros(1, 4, 5, 3).double()}, "2 sequences but only 1 slots"),
        ({"slots": torch.tensor([0, 2])}, r"slots\[1\] is 2; there are 2 slots"),
        ({"slots": torch.tensor([1, 1])}, "slot 1 is given to two sequences"),
    ],
)
def test_errors_of_the_step(changes, message):
    x = {name: value[:, 0] for name, value in make(T=1).items()}
    x["S"] = torch.zeros(2, 4, 5, 3).double()
    with pytest.raises(RuntimeError, match=message):
        mdn.kimi_delta_rule_step(**{**x, **changes})
