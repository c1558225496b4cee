"""What a prediction by all constituents costs, in units of as many single passes.

    OMP_NUM_THREADS=1 python benchmarks/aggregate.py

One row for each model, number of constituents S and batch size. `single` is one pass of one constituent, in
milliseconds; the other columns are ratios to S of them: `deployed` is `record.aggregate(module)`, `trainer` is the
module while a trainer's evaluation answers with the aggregate, and `vmap` is one batched pass by torch.func
over stacked constituents, which PyBrush does not use: the table says why.

A ratio is the median over pairs of timings taken one right after the other, in processor time of one thread, so
that other work on the machine takes from both.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from pybrush.attributes import plain_attributes
from pybrush_lightning.aggregate import AggregateModule, Constituent, combine, tensors_of
from pybrush_lightning.attributes import known_parts
from pybrush_lightning.evaluation import answering
from pybrush_lightning.models import MLP, SmallCNN

PAIRS = 41
SHAPES = {"MLP": (64,), "wide MLP": (784,), "CNN": (1, 28, 28)}


def made(name: str) -> nn.Module:
    module = {"MLP": lambda: MLP(64), "wide MLP": lambda: MLP(784, hidden=512), "CNN": SmallCNN}[name]()
    module.train()
    with torch.no_grad():
        module(torch.randn(16, *SHAPES[name]))
    return module.eval()


def constituents_of(modules: list[nn.Module]) -> dict[int, Constituent]:
    found = {}
    for shard, module in enumerate(modules):
        known = known_parts(module)
        attributes = {name: plain_attributes(part, known) for name, part in module.named_modules()}
        found[shard] = Constituent({name: t.detach() for name, t in tensors_of(module).items()}, attributes)
    return found


def batched(modules: list[nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    base = copy.deepcopy(modules[0]).to("meta")
    parameters, buffers = stack_module_state(modules)
    parameters = {name: tensor.detach() for name, tensor in parameters.items()}

    def one(own: dict[str, torch.Tensor], kept: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(base, (own, kept), (inputs,))

    all_of_them = vmap(one, in_dims=(0, 0, None))
    return lambda inputs: combine(list(all_of_them(parameters, buffers, inputs)), "logits", "mean")


def seconds(pass_once: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(PAIRS):
        pass_once()
    return (time.thread_time() - start) / PAIRS


def ratio(ours: Callable[[], object], singles: Callable[[], object]) -> float:
    found = []
    for _ in range(PAIRS):
        start = time.thread_time()
        singles()
        between = time.thread_time()
        ours()
        found.append((time.thread_time() - between) / (between - start))
    return statistics.median(found[1:])


def measured(name: str, count: int, batch: int) -> str:
    modules = [made(name) for _ in range(count)]
    held = constituents_of(modules)
    deployed, vmapped = AggregateModule(modules[0], held, "logits", "mean"), batched(modules)
    inputs = torch.randn(batch, *SHAPES[name])

    def singles() -> list[torch.Tensor]:
        return [module(inputs) for module in modules]

    with torch.inference_mode():
        torch.testing.assert_close(vmapped(inputs), deployed(inputs))
        first, second = ratio(lambda: deployed(inputs), singles), ratio(lambda: vmapped(inputs), singles)
        module = copy.deepcopy(modules[0])
        with answering(module, held, "logits", "mean"):
            torch.testing.assert_close(module(inputs), deployed(inputs))
            third = ratio(lambda: module(inputs), singles)
        single = seconds(lambda: modules[0](inputs)) * 1e3
    return f"{name:9} {count:2} {batch:6} {single:10.3f} {first:9.2f} {third:8.2f} {second:6.2f}"


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("model      S  batch  single/ms  deployed  trainer   vmap")
    for name in SHAPES:
        for count in (3, 8):
            for batch in (1, 8, 32, 128, 512):
                print(measured(name, count, batch), flush=True)


if __name__ == "__main__":
    main()
