"""Representer points against a fit by another optimiser, and the identities that define them."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import proponent as pp
from proponent.convex.optimum import find_optimum

torch.set_num_threads(1)
N, Q, C = 30, 6, 3


def model(out=C, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, out, bias=bias))


def data(n, seed, loss="cross_entropy"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    if loss == "squared_error":
        return x, torch.randn(n, 1, generator=generator)
    y = torch.randint(C if loss == "cross_entropy" else 2, (n,), generator=generator)
    return x, y if loss == "cross_entropy" else y.float()[:, None]


def features(net, x, bias):
    f = net[1](net[0](x)).double().detach()
    return torch.cat([f, torch.ones(len(f), 1).double()], 1) if bias else f


def losses(loss, logits, y):
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(logits, y, reduction="none")
    if loss == "binary_cross_entropy":
        return nn.functional.binary_cross_entropy_with_logits(logits, y.double(), reduction="none")[:, 0]
    return (logits - y.double()).square()[:, 0]


def objective(loss, f, y, l2, theta):
    return losses(loss, f @ theta.T, y).mean() + l2 / 2 * theta.square().sum()


def fitted_by_bfgs(loss, f, y, l2, c):
    def value(flat):
        theta = torch.from_numpy(flat).view(c, -1).requires_grad_()
        made = objective(loss, f, y, l2, theta)
        return made.item(), torch.autograd.grad(made, theta)[0].flatten().numpy()

    found = minimize(value, np.zeros(c * f.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return torch.from_numpy(found.x).view(c, -1)


CASES = [("cross_entropy", C), ("binary_cross_entropy", 1), ("squared_error", 1)]


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize(("loss", "c"), CASES)
def test_shares_are_those_of_the_formula_and_add_up_to_the_logit(loss, c, bias):
    net, train, query, l2 = model(c, bias), data(N, 1, loss), data(Q, 2, loss), 0.03
    f, fq = features(net, train[0], bias), features(net, query[0], bias)
    theta = fitted_by_bfgs(loss, f, train[1], l2, c).requires_grad_()
    logits = (f @ theta.T).detach().requires_grad_()
    (slope,) = torch.autograd.grad(losses(loss, logits, train[1]).sum(), logits)
    alpha = -slope / (l2 * N)
    which = query[1] if loss == "cross_entropy" else torch.zeros(Q, dtype=torch.long)
    sign = 2 * query[1][:, 0].double() - 1 if loss == "binary_cross_entropy" else torch.ones(Q).double()
    want = ((fq @ f.T) * alpha.T[which] * sign[:, None]).numpy()
    fitted = pp.RepresenterPoints(l2=l2).fit(pp.Task(net, loss=loss), train)
    made = fitted.score(query)
    np.testing.assert_allclose(made.dataset.score.values, want, atol=1e-5 * np.abs(want).max())
    own = fitted.logits(query)[np.arange(Q), which] * sign.numpy()
    np.testing.assert_allclose(made.dataset.score.sum("train"), own, atol=1e-9)
    np.testing.assert_allclose(own, (fq @ theta.T).detach()[range(Q), which] * sign, atol=1e-5)
    assert "add up" in made.unit
    selfs = fitted.self_influence().dataset.value.values
    np.testing.assert_allclose(selfs, fitted.score(train).dataset.score.values.diagonal(), rtol=1e-9)


@pytest.mark.parametrize(("loss", "c"), CASES)
def test_shares_of_a_newton_step(loss, c):
    net, train, query, l2 = model(c), data(N, 1, loss), data(Q, 2, loss), 0.03
    f, fq = features(net, train[0], True), features(net, query[0], True)
    before = torch.cat([net[2].weight, net[2].bias[:, None]], 1).double().detach()

    def whole(flat):
        return objective(loss, f, train[1], l2, flat.view(c, -1))

    H = torch.autograd.functional.hessian(whole, before.flatten())
    which = query[1] if loss == "cross_entropy" else torch.zeros(Q, dtype=torch.long)
    sign = 2 * query[1][:, 0].double() - 1 if loss == "binary_cross_entropy" else torch.ones(Q).double()
    want = np.empty((Q, N))
    for i in range(N):
        start = before.flatten().requires_grad_()
        own = (
            losses(loss, f[i : i + 1] @ start.view(c, -1).T, train[1][i : i + 1]).sum() + l2 / 2 * start.square().sum()
        )
        (g,) = torch.autograd.grad(own, start)
        part = (before.flatten() - torch.linalg.solve(H, g)).view(c, -1) / N
        want[:, i] = ((fq @ part.T)[range(Q), which] * sign).detach().numpy()
    fitted = pp.RepresenterPoints(l2=l2, jacobian=True).fit(pp.Task(net, loss=loss), train)
    got = fitted.score(query).dataset.score
    np.testing.assert_allclose(got.values, want, atol=1e-6 * np.abs(want).max())
    np.testing.assert_allclose(got.sum("train"), fitted.logits(query)[np.arange(Q), which] * sign.numpy(), atol=1e-9)
    selfs = fitted.self_influence().dataset.value.values
    np.testing.assert_allclose(selfs, fitted.score(train).dataset.score.values.diagonal(), rtol=1e-8)


def test_steps_from_the_minimum_go_nowhere():
    net, train = model(), data(N, 1)
    fitted = pp.RepresenterPoints(l2=0.1).fit(pp.Task(net), train)
    with torch.no_grad():
        theta = torch.from_numpy(fitted.expansion.weights).float()
        net[2].weight.copy_(theta[:, :-1])
        net[2].bias.copy_(theta[:, -1])
    again = pp.RepresenterPoints(l2=0.1, jacobian=True).fit(pp.Task(net), train)
    np.testing.assert_allclose(again.logits(train), fitted.logits(train), atol=1e-5)


def test_without_labels_the_predicted_class_is_explained():
    net, train, (x, _) = model(), data(N, 1), data(Q, 2)
    fitted = pp.RepresenterPoints().fit(pp.Task(net), train)
    predicted = torch.from_numpy(fitted.logits((x,)).argmax(1))
    want = fitted.score((x, predicted)).dataset.score.values
    for query in ((x,), x):
        np.testing.assert_array_equal(fitted.score(query).dataset.score.values, want)
    assert np.abs(fitted.score((x, (predicted + 1) % C)).dataset.score.values - want).max() > 1e-3


def test_the_model_is_left_as_it_was_and_hears_no_more():
    net, train = model().train(), data(N, 1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pp.RepresenterPoints().fit(pp.Task(net), train).score(train)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert not any(m._forward_hooks for m in net.modules())


class Named(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.unused, self.body, self.head, self.after = nn.Linear(5, C), nn.Linear(5, 7), nn.Linear(7, C), after

    def forward(self, x):
        self.unused(x)
        return self.after(self.head(torch.relu(self.body(x))))


def test_the_last_layer_is_found_or_refused_in_words():
    train = data(N, 1)
    fitted = pp.RepresenterPoints().fit(pp.Task(Named(nn.Identity())), train)
    assert fitted.layer.name == "head"
    assert pp.RepresenterPoints(layer="head").fit(pp.Task(Named(nn.Identity())), train).layer.name == "head"
    with pytest.raises(pp.UnsupportedModel, match="not that of one of its linear layers"):
        pp.RepresenterPoints().fit(pp.Task(Named(nn.Softplus())), train)
    with pytest.raises(pp.UnsupportedModel, match="not that of its layer 'body'"):
        pp.RepresenterPoints(layer="body").fit(pp.Task(Named(nn.Identity())), train)
    with pytest.raises(pp.InputError, match="did you mean 'head'"):
        pp.RepresenterPoints(layer="haed").fit(pp.Task(Named(nn.Identity())), train)


def test_losses_and_settings_are_refused_in_words():
    with pytest.raises(pp.InputError, match="positive weight decay"):
        pp.RepresenterPoints(l2=0)
    with pytest.raises(pp.UnsupportedModel, match="'poisson' with 1 outputs"):
        pp.RepresenterPoints().fit(pp.Task(model(1), loss="poisson"), data(N, 1, "squared_error"))
    with pytest.raises(pp.InputError, match="labels out of range"):
        pp.RepresenterPoints().fit(pp.Task(model(2)), data(N, 1))
    with pytest.raises(pp.InputError, match="without targets"):
        pp.RepresenterPoints().fit(pp.Task(model()), data(N, 1)[:1])


def test_no_minimum_is_said_so(monkeypatch):
    monkeypatch.setattr("proponent.methods.representer_points.find_optimum", partial(find_optimum, steps=1))
    with pytest.raises(pp.NotConverged, match="no optimum after 1 Newton steps"):
        pp.RepresenterPoints().fit(pp.Task(model()), data(N, 1))
