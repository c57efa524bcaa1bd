"""Train MoE-Beyond's predictor (arXiv 2508.17137) on an embedded model, in two versions, and ship both.

    python data/recipes/beyond.py tiny-olmoe
    python data/recipes/beyond.py tiny-qwen3-moe --problems 100 --device cuda

Writes data/beyond/MODEL-published.safetensors, MODEL-honest.safetensors and MODEL.json (how they were trained); some
minutes of one core each. Text: worked solutions of training problems of both tasks, one forward pass over prompt and
solution (the paper: one forward pass over prompts). A row is one MoE layer of one token; rows lie in the order of
computation, all layers of a token, then the next token.

As published: 4 encoder layers with 8 heads, dropout 0.1, else PyTorch's defaults (norms after, ReLU, no positions); all
rows of a text attend to all; binary cross-entropy on each expert; AdamW (0.9, 0.98), decay 0.01, the rate times 0.9 in
the encoder and 0.8 in the head, gradients clipped at 1, early stopping. Scaled: width 64 for 512, feed-forward 256 for
2,048, sequences of 64 rows for 512, batches of 8 for 4, a rate of 1e-3 for 1e-4, which warms up and decays [inference].
Other: no dropout on attention weights, and masks from a pool, which halves the time on a CPU; layer embeddings are
trained, where the published code draws them at random and keeps none.

The versions differ in two things. published: a row is told of the router input of that very row, and attention looks
both ways. honest: it is told of the row before, and attention looks back. A gate is a linear map of the former.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from mobile_nb import load, tasks  # noqa: E402
from mobile_nb.model.adapters import find_layers  # noqa: E402
from mobile_nb.policies import Network  # noqa: E402

VERSIONS = ("published", "honest")
ROWS, BATCH, RATE, WARM_UP = 64, 8, 1e-3, 0.05
WIDTH, FEED, HEADS, BLOCKS, DROPOUT = 64, 256, 8, 4, 0.1


@dataclass
class Text:
    """What the routers of a model were given, and whom they chose, best first.

    states [T, L, H], ids and weights [T, L, K]; T tokens, L MoE layers.
    """

    states: np.ndarray
    ids: np.ndarray
    weights: np.ndarray


def problems(split: str, each: int, seed: int = 0) -> list:
    """So many of each task."""
    return [problem for name in tasks.NAMES for problem in tasks.load(name, split=split, n=each, seed=seed)]


@torch.inference_mode()
def collect(model, tokenizer, some: Sequence) -> list[Text]:
    """One forward pass over prompt and solution of each problem."""
    layers, seen, found = find_layers(model), [], []
    hooks = [layer.experts.register_forward_pre_hook(lambda _, given: seen.append(given)) for layer in layers]
    try:
        for problem in some:
            seen.clear()
            ids = tokenizer(problem.prompt + problem.solution, return_tensors="pt").input_ids
            model(ids.to(model.device), use_cache=False)
            hidden, index, weights = (torch.stack(part, dim=1).cpu() for part in zip(*seen, strict=True))
            weights, order = weights.float().sort(dim=-1, descending=True, stable=True)
            index = index.gather(-1, order)
            found.append(Text(hidden.float().numpy(), index.numpy(), weights.numpy()))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def examples(text: Text, version: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is told of each row [N, H], which layer it is [N], and whom it asked for [N, K]."""
    tokens, layers, hidden = text.states.shape
    states, ids = text.states.reshape(-1, hidden), text.ids.reshape(tokens * layers, -1)
    which = np.tile(np.arange(layers), tokens)
    return (states, which, ids) if version == "published" else (states[:-1], which[1:], ids[1:])


class Dropout(nn.Module):
    """As nn.Dropout, with masks cut out of a pool that was drawn once."""

    def __init__(self, share: float, pool: int = 2**20):
        super().__init__()
        kept = torch.rand(pool) >= share
        self.register_buffer("pool", kept / (1 - share), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        at = int(torch.randint(len(self.pool) - x.numel(), ()))
        return x * self.pool[at : at + x.numel()].view_as(x)


class Predictor(nn.Module):
    """The network while it is trained."""

    def __init__(self, layers: int, experts: int, hidden: int, *, honest: bool, width=WIDTH, feed=FEED, blocks=BLOCKS):
        super().__init__()
        self.honest = honest
        self.layer = nn.Embedding(layers, width)
        self.enter = nn.Linear(hidden + width, width)
        block = nn.TransformerEncoderLayer(width, HEADS, feed, 0.0, batch_first=True)
        block.dropout = block.dropout1 = block.dropout2 = Dropout(DROPOUT)
        self.encoder = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head, self.drop, self.tell = nn.Linear(width, width), Dropout(DROPOUT), nn.Linear(width, experts)

    def forward(self, states: Tensor, layers: Tensor, real: Tensor) -> Tensor:
        """states [B, N, H], layers [B, N], real [B, N] (not padding) -> logits [B, N, E]."""
        x = self.enter(torch.cat([states, self.layer(layers)], dim=-1))
        if self.honest:  # padding comes last, so nobody looks at it
            after = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            x = self.encoder(x, mask=after)
        else:
            x = self.encoder(x, src_key_padding_mask=~real)
        return self.tell(self.drop(functional.gelu(self.head(x))))

    def groups(self, rate: float) -> list[dict]:
        """Parameters with the paper's factors of the rate."""
        encoder, head = list(self.encoder.parameters()), [*self.head.parameters(), *self.tell.parameters()]
        rest = [*self.layer.parameters(), *self.enter.parameters()]
        return [{"params": part, "lr": rate * by} for part, by in ((rest, 1.0), (encoder, 0.9), (head, 0.8))]

    def network(self) -> Network:
        """As a policy holds it."""
        blocks = self.encoder.layers

        def stacked(get) -> np.ndarray:
            return torch.stack([get(block).detach().cpu() for block in blocks]).numpy()

        norm = stacked(lambda b: torch.stack([torch.stack([n.weight, n.bias]) for n in (b.norm1, b.norm2)]))
        own = {name: module.weight for name, module in self.named_children() if hasattr(module, "weight")}
        own |= {f"{name}_bias": getattr(self, name).bias for name in ("enter", "head", "tell")}
        return Network(
            **{name: part.detach().cpu().numpy() for name, part in own.items()},
            qkv=stacked(lambda b: b.self_attn.in_proj_weight), qkv_bias=stacked(lambda b: b.self_attn.in_proj_bias),
            out=stacked(lambda b: b.self_attn.out_proj.weight), out_bias=stacked(lambda b: b.self_attn.out_proj.bias),
            up=stacked(lambda b: b.linear1.weight), up_bias=stacked(lambda b: b.linear1.bias),
            down=stacked(lambda b: b.linear2.weight), down_bias=stacked(lambda b: b.linear2.bias),
            norm=norm, heads=HEADS, honest=int(self.honest),
        )  # fmt: skip


def batches(texts: Sequence[Text], version: str, experts: int, random: np.random.Generator | None):
    """All rows once, in sequences of ROWS, in an order that `random` draws: states, layers, real, wanted [B, N, …]."""
    parts = []
    for text in texts:
        states, layers, ids = examples(text, version)
        first = 0 if random is None else int(random.integers(ROWS))
        cuts = [0, *range(first or ROWS, len(states), ROWS), len(states)]
        parts += [(states[a:b], layers[a:b], ids[a:b]) for a, b in pairwise(cuts) if b > a]
    order = np.arange(len(parts)) if random is None else random.permutation(len(parts))
    for at in range(0, len(parts), BATCH):
        some = [parts[i] for i in order[at : at + BATCH]]
        size = len(some), max(len(states) for states, *_ in some)
        states, wanted = torch.zeros(*size, some[0][0].shape[1]), torch.zeros(*size, experts)
        layers, real = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.bool)
        for i, (told, which, ids) in enumerate(some):
            n = len(told)
            states[i, :n], layers[i, :n], real[i, :n] = torch.from_numpy(told), torch.from_numpy(which), True
            wanted[i, :n].scatter_(-1, torch.from_numpy(ids).long(), 1.0)
        yield states, layers, real, wanted


def loss_of(model: Predictor, batch, device) -> tuple[Tensor, int]:
    """Mean binary cross-entropy over experts and rows, and the number of rows."""
    states, layers, real, wanted = (part.to(device) for part in batch)
    said = model(states, layers, real)
    return functional.binary_cross_entropy_with_logits(said[real], wanted[real]), int(real.sum())


def train(texts, held_out, version: str, experts: int, *, epochs: int, patience: int, seed: int, device: str):
    """The network with the least loss on held-out text, and how it came about."""
    torch.manual_seed(seed)
    random, begin, cpu = np.random.default_rng(seed), time.perf_counter(), time.process_time()
    _, layers, hidden = texts[0].states.shape
    model = Predictor(layers, experts, hidden, honest=version == "honest").to(device)
    optimizer = torch.optim.AdamW(model.groups(RATE), betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
    a_pass = sum(1 for _ in batches(texts, version, experts, np.random.default_rng(seed)))
    total = epochs * a_pass
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min(1.0, (at + 1) / (WARM_UP * total), max(0.0, 1 - at / total) / 0.7)
    )
    best, network, log = float("inf"), None, []
    for epoch in range(epochs):
        model.train()
        sums = np.zeros(2)
        for batch in batches(texts, version, experts, random):
            loss, rows = loss_of(model, batch, device)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            sums += loss.item() * rows, rows
        model.eval()
        with torch.no_grad():
            found = [loss_of(model, batch, device) for batch in batches(held_out, version, experts, None)]
        held = sum(loss.item() * rows for loss, rows in found) / sum(rows for _, rows in found)
        log.append({"epoch": epoch + 1, "loss": round(sums[0] / sums[1], 5), "held_out": round(held, 5)})
        print(version, log[-1], f"{time.perf_counter() - begin:.0f} s", flush=True)
        if held < best:
            best, network, since = held, model.network(), 0
        elif (since := since + 1) >= patience:
            break
    return network, {
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": int(sums[1]),
        "held_out_loss": round(best, 5),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "log": log,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="embedded name")
    parser.add_argument("--problems", type=int, default=100, help="training problems of each task (%(default)s)")
    parser.add_argument("--held-out", type=int, default=20, help="validation problems of each task (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="at most (%(default)s)")
    parser.add_argument("--patience", type=int, default=3, help="epochs without a lower loss (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the predictor is trained (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load(options.model, device="cpu")
    texts = collect(model, tokenizer, problems("train", options.problems, options.seed))
    held_out = collect(model, tokenizer, problems("validation", options.held_out, options.seed))
    experts = find_layers(model)[0].num_experts
    folder = ROOT / "data" / "beyond"
    folder.mkdir(exist_ok=True)
    fixed = {name: getattr(options, name) for name in ("epochs", "patience", "seed", "device")}
    about = {"model": options.model, "problems": 2 * options.problems, "tokens": sum(len(t.ids) for t in texts)} | fixed
    for version in VERSIONS:
        network, how = train(texts, held_out, version, experts, **fixed)
        path = folder / f"{options.model}-{version}.safetensors"
        network.save(path)
        about[version] = how | {"bytes": path.stat().st_size}
    (folder / f"{options.model}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
