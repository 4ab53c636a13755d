"""Label evidence against dense float64 truth, and on planted wrong labels."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

import proponent as pp
from truth.gradients import jacobian

torch.set_num_threads(1)


def blobs(n=60, seed=0, spread=1.0):
    """Classes of different sizes: alike, they would leave the eigenbasis of the outputs open."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 7 % 3
    centres = torch.tensor([[3.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]], dtype=torch.float64)
    return centres[y] + spread * torch.randn(n, 4, generator=generator, dtype=torch.float64), y


def classifier(x, y, epochs=300):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def test_evidence_is_that_of_the_dense_formula():
    """A linear layer: one block, whose EK-FAC inverse is spelt out; the steps, by hand."""
    x, y = blobs(30)
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    J = torch.stack([jacobian(model, lambda i=i: model(x[i : i + 1])[0]) for i in range(30)])  # (n, C, P)
    hot = F.one_hot(y, 3).double()
    r = hot - 1 / 3
    a = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1)
    (_, QA), (_, QS) = torch.linalg.eigh(a.T @ a / 30), torch.linalg.eigh(r.T @ r / 30)
    values = ((r @ QS).square().T @ (a @ QA).square()) / 30
    Q = torch.kron(QS, QA)
    block = Q @ torch.diag(1 / (values.flatten() + 0.1 * values.mean())) @ Q.T  # rows: outputs × (inputs, 1)
    order = torch.tensor([o * 5 + i for o in range(3) for i in range(4)] + [o * 5 + 4 for o in range(3)])
    P = block[order][:, order]
    own = torch.einsum("nc,ncp,pr,ndr,nd->n", r, J, P, J, r) / (1 - 1 / 3)
    z = torch.zeros(30, 3, dtype=x.dtype)
    for _ in range(2):
        said = torch.einsum("ncp,pr,mdr,md->nc", J, P, J, r) - own[:, None] * r
        said = said / said.std()
        beta = minimize_scalar(
            lambda b, z=z, s=said: float(F.cross_entropy(z + b * s, y)), bounds=(0, 20), method="bounded"
        )
        z = z + float(beta.x) * said
        r = hot - z.softmax(1)
    want = F.cross_entropy(z, y, reduction="none").numpy()
    for batch in (7, None):
        got = pp.LabelEvidence(batch_size=batch).fit(pp.Task(model), (x, y)).values().value
        assert np.allclose(got, want.astype(float), rtol=1e-5, atol=1e-7)


def test_memorised_wrong_labels_are_found_where_their_loss_is_small():
    x, y = blobs(90, spread=0.6)
    wrong = np.zeros(90, bool)
    wrong[[3, 20, 41, 62, 77]] = True
    y = y.clone()
    y[torch.from_numpy(wrong)] = (y[torch.from_numpy(wrong)] + 1) % 3
    model = classifier(x, y, 3000)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss = F.cross_entropy(model(x), y, reduction="none").detach().numpy()
    assert loss[wrong].max() < 0.2  # memorised
    values = pp.LabelEvidence().fit(pp.Task(model), {"input": x, "labels": y}).values()
    assert roc_auc_score(wrong, values.value) > roc_auc_score(wrong, loss) + 0.02
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_is_no_classifier_is_refused_in_words():
    x, y = blobs()
    with pytest.raises(pp.UnsupportedModel, match="loss='cross_entropy'"):
        pp.LabelEvidence().fit(pp.Task(nn.Linear(4, 1).double(), loss="squared_error"), (x, x[:, :1]))
    with pytest.raises(pp.InputError, match="labels that are no classes"):
        pp.LabelEvidence().fit(pp.Task(nn.Linear(4, 2).double()), (x, y))
