"""Tail-patch with planted changes, and the torch step against gradients by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import proponent as pp
from proponent.attribution import Attribution
from proponent.errors import InputError
from proponent.evaluate import tail_patch, training_step

torch.set_num_threads(1)


def attribution(score):
    return Attribution.of(score, query=np.arange(len(score)), train=np.arange(score.shape[1]), method="made")


def test_planted_changes_are_found_and_shared_examples_are_stepped_on_once():
    change = np.array([[5.0, 1.0, 0.0, -1.0], [4.0, 0.0, 2.0, -2.0]])
    steps = []

    def step(rows):
        steps.extend(rows)
        return change[:, rows].sum(axis=1)

    result = tail_patch(attribution(change), step, k=2, random=4)
    assert result.changes.tolist() == [3, 3]
    assert result.randoms.tolist() == [1.25, 1]
    assert result.gain == pytest.approx(1.875)
    assert sorted(steps) == [0, 1, 2, 3]
    assert result.gain_lower <= result.gain <= result.gain_upper
    assert result.to_pandas()["change"].tolist() == [3, 3]
    turned = tail_patch(attribution(-change), step, k=1, random=4)
    assert turned.changes.tolist() == [-1, -2]
    assert turned.gain < 0


def test_random_scores_gain_nothing():
    rng = np.random.default_rng(0)
    change = rng.normal(size=(60, 200))
    result = tail_patch(attribution(rng.normal(size=(60, 200))), lambda rows: change[:, rows[0]])
    assert result.gain_lower < 0 < result.gain_upper


def test_a_step_of_the_wrong_shape_is_refused():
    with pytest.raises(InputError, match="one per query"):
        tail_patch(attribution(np.ones((2, 3))), lambda rows: np.zeros(3))
    with pytest.raises(InputError, match="at least one example each"):
        tail_patch(attribution(np.ones((2, 3))), lambda rows: np.zeros(2), k=0)


def perceptron(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    g = torch.Generator().manual_seed(seed)
    train, query = (
        (torch.randn(n, 4, generator=g, dtype=torch.double), torch.randint(3, (n,), generator=g)) for n in (12, 5)
    )
    return model, train, query


def by_hand(model, train, query, rows, rate):
    """Plain gradient descent on the mean loss of these rows, and the fall of the queries' losses."""
    model.eval()
    loss = nn.functional.cross_entropy(model(train[0][rows]), train[1][rows])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    before = nn.functional.cross_entropy(model(query[0]), query[1], reduction="none")
    moved = {k: p - rate * g for (k, p), g in zip(model.named_parameters(), grads, strict=True)}
    after = nn.functional.cross_entropy(torch.func.functional_call(model, moved, query[0]), query[1], reduction="none")
    return (before - after).detach().numpy()


@pytest.mark.parametrize("rows", [[3], [0, 7, 7]])
def test_a_torch_step_is_gradient_descent_from_the_same_weights_each_time(rows):
    model, train, query = perceptron()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    own = torch.ones_like(model[0].weight)
    model[0].weight.grad = own
    step = training_step(pp.Task(model), train, query, optimizer=0.3, batch=2)
    first = step(rows)
    step([1])
    np.testing.assert_array_equal(step(rows), first)
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model[0].weight.grad is own
    assert all(p.requires_grad for p in model.parameters())
    np.testing.assert_allclose(first, by_hand(model, train, query, rows, 0.3), atol=1e-12)


def test_only_chosen_parameters_are_trained_by_any_optimizer_under_no_grad_too():
    model, train, query = perceptron(1)
    task = pp.Task(model, parameters="3.*")
    step = training_step(task, train, query, optimizer=lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.0))
    with torch.no_grad():
        changed = step([2])
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("3"))
    frozen = nn.Sequential(*model[:3]).eval()
    head = (frozen(train[0]).detach(), train[1]), (frozen(query[0]).detach(), query[1])
    np.testing.assert_allclose(changed, by_hand(nn.Sequential(model[3]), *head, [2], 0.3), atol=1e-12)


def test_small_steps_follow_gradient_products_and_proponents_gain():
    model, train, query = perceptron(2)
    task = pp.Task(model)
    scores = pp.GradDot().fit(task, train).score(query)
    result = tail_patch(scores, training_step(task, train, query, optimizer=1e-6), k=3, random=12)
    step = training_step(task, train, query, optimizer=1e-6)
    changes = np.stack([step([i]) for i in range(12)], axis=1) / 1e-6
    product = scores.dataset.score.values
    np.testing.assert_allclose(changes / changes[0, 0], product / product[0, 0], rtol=1e-3, atol=1e-3)
    assert result.gain_lower > 0
    assert result.steps == 12
