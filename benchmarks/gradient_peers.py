"""One case scored by one peer, in the peers' interpreter: one JSON line with seconds, floors and peak memory.

    python benchmarks/gradient_peers.py mlp captum-tracin --repeat 3 --out scores/

Needs captum 0.9.0, dattri 0.3.0, kronfluence 1.0.1, traker 0.3.2 and pyDVL 0.10.0; each is imported only where it runs. A
repetition is the peer's whole work, from a trained model and tensors in memory to a score per pair; every peer gets
whole batches from its data loader (none loses time to collating examples one by one), float32, and the fastest of the
batch sizes that were tried. Damping of EK-FAC is 0.1 × the mean eigenvalue everywhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gradient_cases import CASES, Case, floor, floor_batch, losses, matrix_layers, other_layers


class Unsupported(Exception):
    """What the peer cannot do."""


class Whole(Dataset[Any]):
    """Tensors that give a whole batch at once."""

    def __init__(self, tensors: tuple[Tensor, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return tuple(t[i] for t in self.tensors)

    def __getitems__(self, rows: Sequence[int]) -> tuple[Tensor, ...]:
        at = torch.as_tensor(rows)
        return tuple(t[at] for t in self.tensors)


def as_it_is(batch: Any) -> Any:
    return batch


def loader(tensors: tuple[Tensor, Tensor], batch: int) -> DataLoader[Any]:
    return DataLoader(Whole(tensors), batch_size=batch, shuffle=False, collate_fn=as_it_is)


def written_out(case: Case, model: nn.Module, memory: int = 2**28) -> int:
    """Training examples whose gradients fit in so many bytes."""
    size = sum(p.numel() for p in model.parameters())
    return max(1, min(len(case.train[0]), memory // (4 * size)))


def captum_tracin(case: Case, model: nn.Module) -> Tensor:
    from captum.influence import TracInCP

    def summed(output: Tensor, target: Tensor) -> Tensor:
        return losses(case.loss, output, target).sum()

    summed.reduction = "sum"
    tracin = TracInCP(
        model,
        loader(case.train, min(256, written_out(case, model))),
        ["the model as it is"],
        checkpoints_load_func=lambda net, path: 1.0,
        layers=matrix_layers(model) if other_layers(model) else None,
        loss_fn=summed,
        sample_wise_grads_per_batch=True,
    )
    return tracin.influence(loader(case.query, 64))


def dattri_tracin(case: Case, model: nn.Module) -> Tensor:
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def loss(parameters: Any, example: Any) -> Tensor:
        inputs, target = (t.unsqueeze(0) for t in example)
        return losses(case.loss, torch.func.functional_call(model, parameters, (inputs,)), target).sum()

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None  # it has no argument for this: its default is a random projection to 512 numbers
    queries = min(len(case.query[0]), written_out(case, model))
    return attributor.attribute(loader(case.train, written_out(case, model)), loader(case.query, queries)).T


def kronfluence(strategy: str) -> Callable[[Case, nn.Module], Tensor]:
    def run(case: Case, model: nn.Module) -> Tensor:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.utils.dataset import DataLoaderKwargs

        task, batches = kronfluence_task(case), KRONFLUENCE[case.loss]
        train, query = Whole(case.train), Whole(case.query)
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer(
                "benchmark", prepare_model(model, task), task, cpu=True, disable_tqdm=True, output_dir=folder
            )
            analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=as_it_is))
            arguments = FactorArguments(strategy=strategy)
            analyzer.fit_all_factors("factors", train, per_device_batch_size=batches[0], factor_args=arguments)
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query,
                train,
                per_device_query_batch_size=len(query),
                per_device_train_batch_size=batches[1],
                score_args=ScoreArguments(damping_factor=None),  # None is 0.1 × the block's mean eigenvalue
            )
            return analyzer.load_pairwise_scores("scores")["all_modules"]

    return run


KRONFLUENCE = {"cross_entropy": (256, 256), "causal_lm": (32, 32)}
"""Batch sizes of factors and of scores."""


def kronfluence_task(case: Case) -> Any:
    from kronfluence.task import Task

    class Benchmark(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs, target = batch
            output = model(inputs)
            return losses(case.loss, output, drawn(case.loss, output, target) if sample else target).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return losses(case.loss, model(batch[0]), batch[1]).sum()

    return Benchmark()


def drawn(loss: str, output: Tensor, target: Tensor) -> Tensor:
    """Targets from the model's own predictions: the Fisher is then the true one."""
    with torch.no_grad():
        p = output.reshape(-1, output.shape[-1]).softmax(-1)
        made = torch.multinomial(p, 1).reshape(target.shape)
        return torch.cat([target[:, :1], made[:, :-1]], 1) if loss == "causal_lm" else made


def traker(dimension: int) -> Callable[[Case, nn.Module], Tensor]:
    def run(case: Case, model: nn.Module) -> Tensor:
        from trak import TRAKer

        if case.loss != "cross_entropy":
            raise Unsupported("no model output for causal language models: a subclass must be written")
        batch = written_out(case, model, 2**29)  # its random matrix is drawn anew for every batch: few and large ones
        with tempfile.TemporaryDirectory() as folder:
            n, q = len(case.train[0]), len(case.query[0])
            options = {"save_dir": folder, "device": "cpu", "use_half_precision": False, "logging_level": logging.ERROR}
            trak = TRAKer(model, "image_classification", n, proj_dim=dimension, **options)
            state = model.state_dict()
            trak.load_checkpoint(state, model_id=0)
            for part in loader(case.train, batch):
                trak.featurize(part, num_samples=len(part[0]))
            trak.finalize_features()
            trak.start_scoring_checkpoint("queries", state, model_id=0, num_targets=q)
            for part in loader(case.query, batch):
                trak.score(part, num_samples=len(part[0]))
            return torch.from_numpy(np.array(trak.finalize_scores("queries"))).T

    return run


def pydvl_ekfac(case: Case, model: nn.Module) -> Tensor:
    from pydvl.influence.torch import EkfacInfluence

    others = {type(m).__name__ for m in model.modules() if list(m.parameters(recurse=False))} - {"Linear"}
    if others:
        raise Unsupported(f"Linear layers only, and no others in the model: here {', '.join(sorted(others))}")
    influence = EkfacInfluence(model, update_diagonal=True)
    influence.fit(loader(case.train, 1024))
    diagonals = torch.cat(list(influence.ekfac_representation.diags))
    influence.hessian_regularization = 0.1 * float(diagonals.mean())  # one for all layers: it knows no other
    factors = influence.influence_factors(*case.query)
    batches = loader(case.train, min(512, written_out(case, model)))
    return torch.cat([influence.influences_from_factors(factors, *part) for part in batches], 1)


PEERS: dict[str, Callable[[Case, nn.Module], Tensor]] = {
    "captum-tracin": captum_tracin,
    "dattri-tracin": dattri_tracin,
    "kronfluence-identity": kronfluence("identity"),
    "kronfluence-ekfac": kronfluence("ekfac"),
    "pydvl-ekfac": pydvl_ekfac,
    "traker": traker(2048),
    "traker-4096": traker(4096),
}


def memory(field: str) -> float:
    """A field of the process's status, in MB; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def once(case: Case, model: nn.Module, peer: str) -> tuple[float, float, float, Tensor]:
    """Seconds, processor seconds, peak MB above what was held before, and scores."""
    before = memory("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        before = memory("VmHWM")
    own = copy.deepcopy(model)
    start, busy = time.perf_counter(), time.process_time()
    scores = PEERS[peer](case, own)
    return time.perf_counter() - start, time.process_time() - busy, memory("VmHWM") - before, scores


def measure(case: Case, model: nn.Module, peer: str, repeat: int, out: Path) -> Iterator[dict[str, Any]]:
    """What is known after every run of the peer; floors alternate with them.

    The first run loads libraries and warms up, so it counts only where it is long.
    """
    batch = floor_batch(case, model)
    floors = [floor(case, model, batch)]
    first, busy, peak, scores = once(case, model, peer)
    np.save(out / f"{case.name}-{peer}.npy", scores.detach().float().numpy())
    del scores
    seconds, cpu = [first], [busy]
    yield {"seconds": seconds, "cpu": cpu, "floors": floors, "peak_mb": peak}
    if first < LONG:
        seconds, cpu, floors = [], [], []
    while len(seconds) < repeat:
        floors.append(floor(case, model, batch))
        one = once(case, model, peer)
        seconds.append(one[0])
        cpu.append(one[1])
        yield {"seconds": seconds, "cpu": cpu, "floors": floors, "peak_mb": peak}


LONG = 10.0


def stop(*_: Any) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=int, default=600, help="seconds for all repetitions together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="a state dict to load into the model")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the scores, CASE-PEER.npy")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    case = CASES[args.case]()
    model = case.make()
    if args.weights:
        model.load_state_dict(torch.load(args.weights, weights_only=True))
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(args.limit)
    found: dict[str, Any] = {}
    try:
        for found in measure(case, model, args.peer, args.repeat, args.out):  # noqa: B007
            pass
    except TimeoutError:
        found = found or {"error": f"> {args.limit} s"}
    except Exception as e:
        found = {"error": f"{type(e).__name__}: {e}" if not isinstance(e, Unsupported) else str(e)}
    print(json.dumps({"case": args.case, "peer": args.peer} | found), flush=True)


if __name__ == "__main__":
    main()
