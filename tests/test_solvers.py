"""Influence with a curvature of all parameters together: every solver against a dense float64 inverse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.curvature import solvers
from proponent.errors import InputError, NotConverged, ProponentWarning, UnsupportedModel
from proponent.methods.influence_gradients import LEGAL
from truth.gradients import gauss_newton, gradients

DAMPING, DECAY = 0.03, 0.01


def net(kind="mlp", seed=0):
    torch.manual_seed(seed)
    made = {
        "mlp": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
        "conv": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
        ),
        "norm": lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3, bias=False)),
    }[kind]()
    return made.double()


def data(n=24, q=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + q, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n + q,), generator=generator)
    return (x[:n], y[:n]), (x[n:], y[n:])


def losses_of(model, pair):
    return [
        lambda i=i: nn.functional.cross_entropy(model(pair[0][i : i + 1]), pair[1][i : i + 1])
        for i in range(len(pair[0]))
    ]


def dense(model, train, what):
    """(P, P) in float64, without any of the package's code."""
    x, y = train
    if what == "ggn":
        parts = [
            gauss_newton(
                model, lambda i=i: model(x[i : i + 1]), lambda z, i=i: nn.functional.cross_entropy(z, y[i : i + 1])
            )
            for i in range(len(x))
        ]
        return torch.stack(parts).mean(0)
    if what == "empirical_fisher":
        g = gradients(model, losses_of(model, train))
        return g.T @ g / len(g)
    held = dict(model.named_parameters())
    names, shapes = list(held), [p.shape for p in held.values()]
    flat = torch.cat([p.detach().flatten() for p in held.values()])

    def mean(theta):
        parts = theta.split([s.numel() for s in shapes])
        own = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, own, (x,)), y)

    return torch.autograd.functional.hessian(mean, flat)


def expected(model, train, query, what, damping=DAMPING, decay=DECAY):
    A = dense(model, train, what) + (damping + decay) * torch.eye(
        sum(p.numel() for p in model.parameters()), dtype=torch.float64
    )
    g, psi = gradients(model, losses_of(model, train)), gradients(model, losses_of(model, query))
    return (psi @ torch.linalg.solve(A, g.T) / len(train[0])).numpy(), torch.einsum(
        "ip,ip->i", g, torch.linalg.solve(A, g.T).T
    )


def influence(what, solver, **more):
    return pp.Influence(curvature=what, solver=solver, **{"damping": DAMPING, "weight_decay": DECAY, **more})


@pytest.mark.parametrize("kind", ["mlp", "conv", "norm"])
@pytest.mark.parametrize("what", ["ggn", "empirical_fisher", "hessian"])
def test_exact_solvers_equal_the_dense_inverse(kind, what):
    model, (train, query) = net(kind), data()
    damping = 2.5 if what == "hessian" else DAMPING
    truth, own = expected(model, train, query, what, damping)
    exact = {
        "explicit": "explicit",
        "cg": pp.CG(tolerance=1e-12, preconditioner="none"),
        "ekfac": pp.CG(tolerance=1e-12),
    }
    exact |= {} if what == "hessian" else {"dual": pp.Dual(rows=1000)}
    for name, solver in exact.items():
        fitted = influence(what, solver, damping=damping, batch_size=7).fit(pp.Task(model), train)
        score = fitted.score(query)
        np.testing.assert_allclose(score.dataset.score, truth, rtol=1e-8, atol=1e-10 * abs(truth).max(), err_msg=name)
        np.testing.assert_allclose(fitted.self_influence().value * len(own), own, rtol=1e-8, err_msg=name)
        layers = fitted.score(query, by="layer").dataset.score_by_layer
        np.testing.assert_allclose(layers.sum("layer"), truth, rtol=1e-8, atol=1e-10 * abs(truth).max(), err_msg=name)
        if name in ("cg", "ekfac"):
            assert 0 < float(score.dataset.residual.max()) <= 1e-12


def test_gauss_newton_by_differentiating_twice_is_that_by_terms(monkeypatch):
    model, (train, query) = net(), data()
    truth, _ = expected(model, train, query, "ggn")
    monkeypatch.setattr("proponent.losses.MOST_TERMS", 2)
    fitted = influence("ggn", "explicit").fit(pp.Task(model), train)
    np.testing.assert_allclose(fitted.score(query).dataset.score, truth, rtol=1e-8, atol=1e-12)
    with pytest.raises(UnsupportedModel, match="not made of gradients"):
        influence("ggn", "dual").fit(pp.Task(model), train)
    with pytest.raises(UnsupportedModel, match="layer by layer"):
        influence(pp.GGN(per_layer=True), "cg").fit(pp.Task(model), train)


def test_per_layer_is_the_block_diagonal():
    model, (train, query) = net(), data()
    A = dense(model, train, "ggn")
    sizes = [5 * 6 + 6, 6 * 3 + 3]
    masked = torch.block_diag(A[: sizes[0], : sizes[0]], A[sizes[0] :, sizes[0] :]) + (DAMPING + DECAY) * torch.eye(
        sum(sizes), dtype=torch.float64
    )
    g, psi = gradients(model, losses_of(model, train)), gradients(model, losses_of(model, query))
    truth = psi @ torch.linalg.solve(masked, g.T) / len(g)
    for solver in ("explicit", pp.CG(tolerance=1e-12)):
        scores = influence(pp.GGN(per_layer=True), solver).fit(pp.Task(model), train).score(query)
        np.testing.assert_allclose(scores.dataset.score, truth, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("what", LEGAL)
def test_forward_mode_along_every_solvers_directions(kind, what, monkeypatch):
    model, (train, query) = net(kind), data()
    settings = {"lissa": pp.LiSSA(depth=20), "refinement": pp.Refinement(steps=5), "nystrom": pp.Nystrom(rank=10)}
    for name in LEGAL[what]:
        spec = influence(what, settings.get(name, name), damping=2.5, batch_size=7)
        forward = replace(spec, engine="jvp").fit(pp.Task(model), train)
        want, got = (fitted.score(query).dataset for fitted in (spec.fit(pp.Task(model), train), forward))
        np.testing.assert_allclose(got.score, want.score, rtol=0, atol=1e-10 * abs(want.score).max(), err_msg=name)
        assert ("residual" in got) == ("residual" in want), name
        if "residual" in got:
            np.testing.assert_allclose(got.residual, want.residual, rtol=1e-6, atol=1e-12, err_msg=name)
        with monkeypatch.context() as few:
            few.setattr("proponent.methods.score.QUERY_MEMORY", 1)
            if name in ("explicit", "dual", "datainf"):  # whose solutions do not depend on the other queries
                again = forward.score(query).dataset.score
                np.testing.assert_allclose(again, got.score, rtol=0, atol=1e-10 * abs(want.score).max(), err_msg=name)


def test_dual_truncates_by_length_and_says_by_how_much():
    model, (train, query) = net(), data()
    truth, _ = expected(model, train, query, "ggn")
    errors, left = [], []
    for rows in (8, 24, 48, 72):
        scores = influence("ggn", pp.Dual(rows=rows)).fit(pp.Task(model), train).score(query)
        errors.append(float(np.linalg.norm(scores.dataset.score - truth) / np.linalg.norm(truth)))
        left.append(json.loads(scores.dataset.attrs["solver"])["left_out"])
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9 < errors[0]
    assert left == sorted(left, reverse=True) and left[-1] < 1e-9 and 0.02 < left[0] < 1


def test_every_batch_counts_once_in_the_inverse():
    """Not the sum of the batches' inverses: the score is the same for any batch size."""
    model, (train, query) = net(), data()
    for what, solver in [
        ("ggn", "cg"),
        ("ggn", "dual"),
        ("empirical_fisher", "datainf"),
        ("fisher", "dual"),
        ("ggn", "nystrom"),
    ]:
        made = [influence(what, solver, batch_size=b).fit(pp.Task(model), train).score(query) for b in (1, 7, 24)]
        for other in made[1:]:
            np.testing.assert_allclose(other.dataset.score, made[0].dataset.score, rtol=2e-4, atol=1e-7)


def test_random_signs_approach_the_gauss_newton_matrix():
    model, (train, query) = net(), data(n=12)
    many = tuple(t.repeat_interleave(300, 0) for t in train)
    truth, _ = expected(model, train, query, "ggn", damping=0.3)
    scores = influence("fisher", "explicit", damping=0.3).fit(pp.Task(model), many).score(query).dataset.score
    few = influence("fisher", "explicit", damping=0.3).fit(pp.Task(model), train).score(query).dataset.score
    ours = scores.to_numpy()[:, ::300] * 300
    assert np.linalg.norm(ours - truth) < 0.05 * np.linalg.norm(truth) < np.linalg.norm(few - truth)


def test_approximate_solvers_converge_as_their_budget_grows():
    model, (train, query) = net(), data()
    truth, _ = expected(model, train, query, "empirical_fisher")

    def error(solver):
        scores = influence("empirical_fisher", solver).fit(pp.Task(model), train).score(query)
        return float(np.linalg.norm(scores.dataset.score - truth) / np.linalg.norm(truth)), float(
            scores.dataset.residual.max()
        )

    for solvers_ in (
        [pp.Nystrom(rank=r) for r in (5, 25, 57)],
        [pp.Arnoldi(steps=s, rank=s) for s in (5, 25, 57)],
        [pp.LiSSA(depth=d, batch=24) for d in (10, 100, 1000)],
        [pp.Refinement(steps=s, batch=24, rate=0.1) for s in (1, 20, 200)],
    ):
        errors, residuals = zip(*map(error, solvers_), strict=True)
        assert list(errors) == sorted(errors, reverse=True), (solvers_[0], errors)
        assert errors[-1] < 1e-3 < errors[0], (solvers_[0], errors)
        least = 0.2 if isinstance(solvers_[0], pp.Arnoldi) else 1e-2  # what it drops stays a residual
        assert residuals[-1] < least < residuals[0], (solvers_[0], residuals)


def test_a_random_batch_is_a_fair_one():
    """LiSSA's mean over seeds is the solution, to its spread."""
    model, (train, query) = net(), data()
    truth, _ = expected(model, train, query, "empirical_fisher", damping=0.5)
    made = [
        influence("empirical_fisher", pp.LiSSA(depth=100, batch=8, seed=s), damping=0.5)
        .fit(pp.Task(model), train)
        .score(query)
        .dataset.score
        for s in range(8)
    ]
    mean, spread = np.mean(made, 0), np.std(made, 0) / np.sqrt(len(made) - 1)
    assert np.linalg.norm(mean - truth) < 2.5 * np.linalg.norm(spread) + 0.02 * np.linalg.norm(truth)
    again = (
        influence("empirical_fisher", pp.LiSSA(depth=100, batch=8, seed=3), damping=0.5)
        .fit(pp.Task(model), train)
        .score(query)
    )
    np.testing.assert_array_equal(again.dataset.score, made[3])


def test_datainf_is_the_mean_of_inverses():
    model, (train, query) = net(), data()
    g, psi = gradients(model, losses_of(model, train)), gradients(model, losses_of(model, query))
    truth, size = torch.zeros(len(psi), len(g), dtype=torch.float64), 0
    for width in (5 * 6 + 6, 6 * 3 + 3):
        own, q = g[:, size : size + width], psi[:, size : size + width]
        inverse = torch.stack(
            [
                torch.linalg.inv(torch.outer(v, v) + (DAMPING + DECAY) * torch.eye(width, dtype=torch.float64))
                for v in own
            ]
        ).mean(0)
        truth, size = truth + q @ inverse @ own.T / len(g), size + width
    scores = influence("empirical_fisher", "datainf").fit(pp.Task(model), train).score(query).dataset.score
    np.testing.assert_allclose(scores, truth, rtol=1e-9, atol=1e-13)


def test_cosines_and_top_work_with_solvers():
    model, (train, query) = net(), data()
    for solver in ("dual", "explicit"):
        fitted = influence("ggn", solver).fit(pp.Task(model), train)
        score = fitted.score(query).dataset.score.to_numpy()
        top = fitted.top(query, k=2)
        best = top[(top["query"] == 0) & (top["side"] == "proponent")]["id"].tolist()
        assert best == np.argsort(-score[0])[:2].tolist()


def test_illegal_pairs_are_refused_with_the_legal_ones():
    model, (train, _) = net(), data()
    with pytest.raises(InputError, match="explicit"):
        influence("hessian", "dual").fit(pp.Task(model), train)
    with pytest.raises(InputError, match="its own basis"):
        influence("ekfac", "cg").fit(pp.Task(model), train)
    with pytest.raises(InputError, match="did you mean 'lissa'"):
        influence("ggn", "lisa").fit(pp.Task(model), train)
    with pytest.raises(InputError, match="one of"):
        influence(pp.GGN(per_layer=True), "dual").fit(pp.Task(model), train)
    with pytest.raises(InputError, match="did you mean"):
        influence("gnn", None).fit(pp.Task(model), train)
    for solver in ("dual", "nystrom"):
        with pytest.raises(InputError, match="no damping"):
            influence("ggn", solver, damping=0.0, weight_decay=0.0).fit(pp.Task(model), train)
    assert all(names for names in LEGAL.values())


def test_an_indefinite_hessian_is_said_in_words():
    model, (train, query) = net(), data()
    least = float(torch.linalg.eigvalsh(dense(model, train, "hessian"))[0])
    assert least < -0.01
    with pytest.raises(NotConverged, match="least eigenvalue"):
        influence("hessian", "explicit", damping=1e-4, weight_decay=0.0).fit(pp.Task(model), train)
    with pytest.raises(NotConverged, match="negative curvature"):
        influence("hessian", "cg", damping=1e-4, weight_decay=0.0).fit(pp.Task(model), train).score(query)
    with pytest.raises(NotConverged, match="raise scale"):
        influence("ggn", pp.LiSSA(scale=0.01, depth=500)).fit(pp.Task(model), train).score(query)


def test_conjugate_gradients_that_stop_short_say_so():
    model, (train, query) = net(), data()
    fitted = influence("ggn", pp.CG(most=1, preconditioner="none", tolerance=1e-9)).fit(pp.Task(model), train)
    with pytest.warns(ProponentWarning, match="asked for"):
        scores = fitted.score(query)
    assert float(scores.dataset.residual.max()) > 1e-9


def test_conjugate_gradients_leave_zero_and_broken_right_hand_sides_alone():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A = A @ A.T + torch.eye(6, dtype=torch.float64)
    rhs = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    rhs[1], rhs[2, 0] = 0, torch.nan
    found = solvers.conjugate_gradients(lambda v: v @ A, rhs, lambda v: v.clone(), 1e-12, 50)
    torch.testing.assert_close(found.x[0], torch.linalg.solve(A, rhs[0]))
    assert not found.x[1].any() and found.residual[1] == 0


def test_a_nystrom_preconditioner_saves_passes():
    model, (train, query) = net(), data(n=200)
    passes = {}
    for name in ("none", "nystrom"):
        fitted = influence("ggn", pp.CG(1e-6, preconditioner=name, rank=30), damping=1e-3, weight_decay=0).fit(
            pp.Task(model), train
        )
        few = query[0][:1], query[1][:1]  # alone: a block of queries needs few passes without one too
        passes[name] = json.loads(fitted.score(few).dataset.attrs["solver"])["passes"][0]
    assert passes["nystrom"] < passes["none"] / 2, passes


def test_a_block_of_right_hand_sides_takes_fewer_passes_than_one_alone():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(80, 80, generator=generator, dtype=torch.float64)
    A = root @ root.T + 0.1 * torch.eye(80, dtype=torch.float64)
    rhs = torch.randn(20, 80, generator=generator, dtype=torch.float64)
    rhs[7] = rhs[3] * 2  # depends on another
    block, alone = (
        solvers.conjugate_gradients(lambda v: v @ A, some, lambda v: v.clone(), 1e-10, 400) for some in (rhs, rhs[:1])
    )
    assert block.passes < 15 < alone.passes / 4
    assert torch.allclose(block.x @ A, rhs, rtol=0, atol=1e-8)


def test_examples_that_are_not_finite_are_set_aside():
    model, (train, query) = net(), data()
    x = train[0].clone()
    x[3, 0] = torch.inf
    clean = tuple(torch.cat([t[:3], t[4:]]) for t in train)
    for what, solver in [("ggn", pp.CG(1e-10)), ("ggn", "dual"), ("empirical_fisher", "explicit")]:
        with pytest.warns(ProponentWarning, match="set aside"):
            scores = influence(what, solver).fit(pp.Task(model), (x, train[1])).score(query).dataset.score.to_numpy()
        assert np.isnan(scores[:, 3]).all() and np.isfinite(np.delete(scores, 3, 1)).all()
        # n counts the broken example too: the curvature is that of the mean over all.
        n, d = len(x), DAMPING + DECAY
        other = influence(what, solver, damping=d * n / (n - 1), weight_decay=0).fit(pp.Task(model), clean).score(query)
        np.testing.assert_allclose(np.delete(scores, 3, 1), other.dataset.score, rtol=1e-6, atol=1e-10)
