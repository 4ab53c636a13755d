"""Conjugate gradients of a peer, in the peers' interpreter: one JSON line with seconds and relative residuals.

    python benchmarks/solver_peers.py dattri --damping 0.1 --iterations 30 --queries 20

Solves (H + λ) u = ∇ℓ_q for the first test images, H the Hessian of the mean loss on the 5,000 training images of the perceptron
784-128-64-10 (case "mlp"), all of which are one batch. dattri 0.3.0 has no relative tolerance, so it is told how many iterations;
pyDVL 0.10.0 goes to --tolerance, its queries side by side, first without and then with its Nyström preconditioner of rank 60
(its default). Residuals ‖(H + λ) u − ∇ℓ_q‖ / ‖∇ℓ_q‖ are taken afterwards by autograd, not timed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradient_cases import CASES, Case
from gradient_peers import loader

cross_entropy = nn.functional.cross_entropy


def dattri(case: Case, model: nn.Module, gradients: Tensor, args: argparse.Namespace) -> Tensor:
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask

    def loss(parameters: Any, example: Any) -> Tensor:
        inputs, target = example
        return cross_entropy(torch.func.functional_call(model, parameters, (inputs,)), target)

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorCG(task, max_iter=args.iterations, regularization=args.damping)
    attributor.full_train_dataloader = loader(case.train, len(case.train[0]))
    return attributor.transform_test_rep(0, gradients)


def pydvl(rank: int) -> Callable[..., Tensor]:
    def run(case: Case, model: nn.Module, gradients: Tensor, args: argparse.Namespace) -> Tensor:
        from pydvl.influence.torch import CgInfluence
        from pydvl.influence.torch.preconditioner import NystroemPreconditioner

        influence = CgInfluence(
            model,
            cross_entropy,
            regularization=args.damping,
            rtol=args.tolerance,
            atol=0.0,
            maxiter=args.iterations,
            solve_simultaneously=True,
            preconditioner=NystroemPreconditioner(rank) if rank else None,
            warn_on_max_iteration=False,
        )
        influence.fit(loader(case.train, len(case.train[0])))
        return influence.influence_factors(*(t[: args.queries] for t in case.query))

    return run


PEERS: dict[str, Callable[..., Tensor]] = {"dattri": dattri, "pydvl": pydvl(0), "pydvl-nystroem": pydvl(60)}


def query_gradients(case: Case, model: nn.Module, queries: int) -> Tensor:
    """(q, p), flat, in the order of the parameters."""
    rows = []
    for x, y in zip(*(t[:queries] for t in case.query), strict=True):
        made = torch.autograd.grad(cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in made]))
    return torch.stack(rows)


def residuals(case: Case, model: nn.Module, solutions: Tensor, gradients: Tensor, damping: float) -> Iterator[float]:
    parameters = list(model.parameters())
    loss = cross_entropy(model(case.train[0]), case.train[1])
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    for u, g in zip(solutions.detach(), gradients, strict=True):
        turned = torch.autograd.grad(slope, parameters, u, retain_graph=True)
        left = torch.cat([t.flatten() for t in turned]) + damping * u - g
        yield float(left.norm() / g.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--damping", type=float, required=True)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--queries", type=int, default=20)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    torch.manual_seed(0)
    case = CASES["mlp"]()
    model = case.make()
    gradients = query_gradients(case, model, args.queries)
    start = time.perf_counter()
    solutions = PEERS[args.peer](case, model, gradients, args)
    seconds = time.perf_counter() - start
    left = sorted(residuals(case, model, solutions, gradients, args.damping))
    print(json.dumps({"peer": args.peer, "seconds": seconds, "median": left[len(left) // 2], "worst": left[-1]}))


if __name__ == "__main__":
    main()
