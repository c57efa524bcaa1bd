"""Train one of the shipped models on both tasks, half of the problems each, and export it in Hugging Face format.

    python data/recipes/train.py tiny-olmoe --tokens 16000000 --smoothing 0.15 --seed 1
    python data/recipes/train.py tiny-qwen2-moe --init data/tiny-olmoe --muon 0.01 --adam 0.002 --tokens 14000000 \\
        --little 0.03 --smoothing 0.15 --seed 1
    python data/recipes/train.py tiny-deepseek-v2 --init data/tiny-olmoe --muon 0.008 --adam 0.002 --tokens 16000000 \\
        --smoothing 0.15 --seed 1
    python data/recipes/train.py tiny-qwen3-moe --init data/tiny-olmoe --muon 0.015 --adam 0.002 --tokens 12000000 \\
        --little 0.05 --smoothing 0.15 --seed 1

A step has up to 6,144 places, about 5,500 of them tokens and the rest padding. Muon moves the matrices, AdamW the rest,
the learning rate warms up, stays and decays to zero. The router is kept flat (a tenth of the learning rate, an entropy
bonus): a router left alone puts its mass on one expert and then half or a quarter of the experts lose nothing. A run
that was interrupted continues from its last checkpoint. --init starts from the weights of a trained OLMoE, also where
the architecture is another one.

These four commands made the shipped files, each in 21 to 29 minutes of one core of an AMD EPYC (one thread, torch 2.13,
9,100 to 10,200 tokens a second). tiny-qwen2-moe and tiny-qwen3-moe were made twice there, to the same bytes; elsewhere
they are models of the same kind, not always the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import batches  # noqa: E402
import experts  # noqa: E402
import measure  # noqa: E402
import models  # noqa: E402
import start  # noqa: E402
import torch  # noqa: E402
import vocabulary  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from mobile_nb.analysis import tasks  # noqa: E402
from mobile_nb.analysis.evaluate import evaluate  # noqa: E402

QUESTION_WEIGHT = 0.1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-olmoe", choices=models.MODELS, help="which (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the exported model (default: data/MODEL)")
    parser.add_argument("--run", type=Path, help="folder of checkpoints and log (default: runs/MODEL)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to train (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=int, default=8_000_000, help="tokens to train on (default: 8 million)")
    budget.add_argument("--minutes", type=float, help="minutes to train for instead; then a rerun is not bit-equal")
    parser.add_argument("--batch", type=int, default=6144, help="tokens a step (default: 6144)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the problems (default: 0)")
    parser.add_argument("--muon", type=float, default=0.02, help="learning rate of the matrices (default: 0.02)")
    parser.add_argument("--adam", type=float, default=3e-3, help="learning rate of the rest (default: 0.003)")
    parser.add_argument("--router", type=float, default=0.1, help="factor on the router's learning rate (default: 0.1)")
    parser.add_argument("--entropy", type=float, default=0.02, help="bonus on the router's entropy (default: 0.02)")
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balance loss (default: 0.01)")
    parser.add_argument("--smoothing", type=float, default=0.05, help="label smoothing (default: 0.05)")
    parser.add_argument("--little", type=float, default=0.0, help="share of steps that run K/2 experts (default: 0)")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints (default: 180)")
    parser.add_argument("--check-every", type=int, default=1_500_000, help="tokens between checks and exports")
    parser.add_argument("--check-problems", type=int, default=200, help="validation problems a check (default: 200)")
    parser.add_argument("--init", type=Path, help="folder of a trained model whose weights a new run starts from")
    parser.add_argument("--fresh", action="store_true", help="start again instead of continuing from a checkpoint")
    options = parser.parse_args(arguments)
    options.out = options.out or ROOT / "data" / options.model
    options.run = options.run or ROOT / "runs" / options.model
    return options


def settings_of(options: argparse.Namespace) -> str:
    """One run in words."""
    begun = f"from the weights of {options.init.name}" if options.init else "from random weights"
    length = f"{options.minutes:g} minutes" if options.minutes else f"{options.tokens / 1e6:.1f} million tokens"
    little = f"{100 * options.little:g} % of the steps" if options.little else "no step"
    return (
        f"{begun}: {length}, {little} with half of the experts (label smoothing {options.smoothing:g}, batches of "
        f"{options.batch:,} tokens with padding, Muon {options.muon:g}, AdamW {options.adam:g}, decayed to zero over "
        f"the last {100 * models.DECAY:g} %; seed {options.seed})"
    )


def save(path: Path, write) -> None:
    """Write beside `path` and move into place, so that a half-written file never replaces a good one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    write(beside)
    os.replace(beside, path)


def export(model, tokenizer, log: Path, out: Path) -> None:
    """Write weights in bfloat16, configuration, tokenizer and log into `out`, each file moved into place whole."""
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict({name: value.detach().cpu() for name, value in model.state_dict().items()})
    plain.to(torch.bfloat16).save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    settings = json.loads((beside / "tokenizer_config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version knows
    (beside / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    shutil.copy(log, beside / "training_log.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    for made in sorted(beside.iterdir()):
        made.chmod(0o644)
        os.replace(made, out / made.name)
    beside.rmdir()


class Trainer:
    """Everything that a checkpoint holds, and the loop over batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.tokenizer = options, self._tokenizer(options.run / "tokenizer")
        self.model = models.build_model(options.model, self.tokenizer, options.seed).to(options.device)
        self.model.set_attn_implementation("eager" if options.device == "cpu" else "sdpa")
        self.fast = experts.install() if options.device == "cpu" else "grouped_mm"
        self.optimizers = models.optimizers(self.model, options.muon, options.adam, options.router)
        self.step, self.tokens, self.seconds, self.place = 0, 0, 0.0, None
        self.routing: list[Tensor] = []
        for router in models.routers(self.model):
            router.register_forward_hook(lambda _m, _i, output: self.routing.append(output[0]))
        self.log = options.run / "log.jsonl"
        self.checkpoint = options.run / "checkpoint.pt"
        if self.checkpoint.exists() and not options.fresh:
            self._load()
        else:
            if options.init:
                start.start(self.model, self.tokenizer, options.init)
            save(self.log, lambda path: path.write_text(""))
            self.note(stage=settings_of(options))

    @staticmethod
    def _tokenizer(kept: Path) -> PreTrainedTokenizerFast:
        if not kept.exists():  # it takes a while to collect the words, and they are the same each time
            vocabulary.build().save_pretrained(kept)
        return PreTrainedTokenizerFast.from_pretrained(kept)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.options.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.place = tuple(state["place"])
        lines = [line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
        save(self.log, lambda path: path.write_text("".join(line + "\n" for line in lines)))

    def keep(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "place": self.place,
        }
        save(path, lambda beside: torch.save(state, beside))

    def note(self, **values: float) -> None:
        """Add one line to the log."""
        line = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1), **values}
        with self.log.open("a") as file:
            file.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}) + "\n")

    def progress(self) -> float:
        if self.options.minutes:
            return self.seconds / (60 * self.options.minutes)
        return self.tokens / self.options.tokens

    def train_step(self, batch: batches.Batch) -> tuple[float, float]:
        """One update; returns the language loss and the router entropy."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * models.rate(self.progress())
        self.routing.clear()
        models.choose_count(self.model, self.options.little, f"{self.options.seed}/{self.step}")
        with torch.autocast(self.options.device, dtype=torch.bfloat16):
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
        language, balance, entropy = models.losses(self.model, logits, self.routing, batch, self.options.smoothing)
        (language + self.options.balance * balance - self.options.entropy * entropy).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return language.item(), entropy.item()

    def check(self) -> dict[str, float]:
        """Share of validation problems solved at K, K/2 and K/4 experts, for each task."""
        self.model.eval().set_experts_implementation("grouped_mm")
        models.choose_count(self.model, 0.0, "")
        big, found = self.model.config.num_experts_per_tok, {}
        for name in tasks.NAMES:
            problems = tasks.load(name, split="validation", n=self.options.check_problems, seed=1)
            for count in (big, big // 2, max(1, big // 4)):
                part = {"config": measure.fixed(count, big), "batch_size": 128, "progress": False}
                found[f"{name}_{count}"] = evaluate(self.model, self.tokenizer, problems, **part).accuracy
        self.routing.clear()
        self.model.train().set_experts_implementation(self.fast)
        return found

    def run(self) -> None:
        """Train until the budget is spent, checking, saving and exporting on the way."""
        options = self.options
        stream = batches.stream(
            self.tokenizer, seed=options.seed, tokens=options.batch, question_weight=QUESTION_WEIGHT, after=self.place
        )
        self.model.train().set_experts_implementation(self.fast)
        saved, stable, sums = time.perf_counter(), False, []
        with tqdm(total=100, unit="%", initial=round(100 * self.progress(), 2)) as bar:
            while self.progress() < 1:
                started = time.perf_counter()
                batch = next(stream)
                batch = batches.Batch(batch.ids.to(options.device), batch.weights.to(options.device), batch.place)
                sums.append(self.train_step(batch))
                before, self.tokens = self.tokens, self.tokens + int((batch.weights > 0).sum())
                self.step, self.place = self.step + 1, batch.place
                self.seconds += time.perf_counter() - started
                bar.update(round(100 * self.progress(), 2) - bar.n)
                if self.step % 20 == 0:
                    loss, entropy = (sum(column) / len(column) for column in zip(*sums, strict=True))
                    self.note(loss=loss, router_entropy=entropy)
                    bar.set_postfix(loss=f"{loss:.3f}", entropy=f"{entropy:.2f}", tokens=f"{self.tokens / 1e6:.2f}M")
                    sums = []
                if not stable and self.progress() > 1 - models.DECAY:
                    stable = True
                    self.keep(options.run / "before-decay.pt")
                if time.perf_counter() - saved > options.save_every:
                    saved = time.perf_counter()
                    self.keep(self.checkpoint)
                if self.tokens // options.check_every != before // options.check_every:
                    self.note(**self.check())
                    export(self.model, self.tokenizer, self.log, options.out)
        self.keep(self.checkpoint)
        self.note(**self.check())
        export(self.model, self.tokenizer, self.log, options.out)


def main() -> None:
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for, but this machine has no CUDA device; use --device cpu")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    Trainer(options).run()


if __name__ == "__main__":
    main()
