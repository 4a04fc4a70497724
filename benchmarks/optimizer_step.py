"""A training step's end, clip and update, side by side with what a user could pick instead.

    python -m benchmarks.optimizer_step --rule adamw
    python -m benchmarks.optimizer_step --model many-small --engine compiled --json step.json
    python -m benchmarks.optimizer_step --all --json step.json --markdown step.md

Every optimizer has parameters and state of its own; all are timed in turn in one process, in a new
order each round. Ours clips inside the step and gets the same gradients each time; the peers step
after torch's ``clip_grad_norm_``, on gradients of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import optimizers
from benchmarks import bound, models, peers, probe, tables, timing
from benchmarks.models import Named, Shapes
from benchmarks.ours import arrays, ours
from benchmarks.targets import WHOLE_TENSORS

OURS, BOUND = "ours", "bound"
# SOAP refreshes its bases every 10 steps, so that a single step says nothing.
STEPS_PER_SAMPLE = {"soap": 10}
# First steps do less in some optimizers: RAdam's move nothing, or take momentum alone, until more
# than four or five squares are averaged (step 6 with beta2 = 0.999); ADOPT's and SOAP's first one
# only fills the state. All entrants of all rules are past them before any is timed.
FIRST_STEPS = 8
COMPILED_PEERS = ("adamw", "rmsprop", "ademamix")  # of --all: a rule takes minutes to compile
GROWTH = ("adamw",)
ENOUGH = 10_000_000  # entries stepped in a row of growth
HOPELESS = 10  # seconds a step, on which no round is spent: float16 products without units for them
# Tensors and entries of each: from 1 M to 100 M parameters, and from 10 to 5000 tensors.
SIZES = (
    *((100, 10_000 * scale) for scale in (1, 3, 10, 30, 100)),
    *((tensors, 512) for tensors in (10, 100, 1000, 5000)),
)
Document = dict[str, Any]


def clipped(params: Sequence[Tensor], optimizer: peers.Stepper) -> Callable[[], None]:
    """A peer's step: torch's clipping, then its own."""

    def call() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimizer.step()

    return call


class Bench:
    """All entrants of one rule on one model, ready to be timed."""

    def __init__(self, rule: str, shapes: Shapes, args: argparse.Namespace, engine: str) -> None:
        self.rule, self.shapes, self.device = rule, shapes, args.device
        self.dtype = getattr(torch, args.dtype)
        self.steps = STEPS_PER_SAMPLE.get(rule, 1)
        self.calls: dict[str, Callable[[], Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.params: dict[str, list[Tensor]] = {}
        self.grads = {
            name: models.gradients(shapes, self.device, self.dtype) for name in (OURS, "peers")
        }
        named = self.enter(OURS, lambda named: self.own(rule, named, engine))
        self.arrays = arrays(rule, named, self.optimizer)
        if not args.no_peers:
            self.invite(rule, args)

    def own(self, rule: str, named: Named, engine: str) -> Callable[[], Any]:
        self.optimizer = ours(rule, named, engine)
        return self.optimizer.step

    def invite(self, rule: str, args: argparse.Namespace) -> None:
        """Enter every peer; one that does not run is reported instead."""
        invited = [
            (peer, variant)
            for peer, variant in peers.entrants(rule, compiled=rule in args.compiled_peers)
            if peer.library in args.library
        ]
        fused = any(variant == "fused" for _, variant in invited)
        if not fused and rule not in WHOLE_TENSORS:
            invited.append((peers.FUSED_ADAMW, "fused"))
        for peer, variant in invited:
            stand_in = peer is peers.FUSED_ADAMW
            label = f"{peer.library} {peer.path} {variant}"
            kind = variant if variant in ("fused", "compiled") else "eager"
            row = {"library": peer.library, "variant": variant, "kind": kind, "label": label}
            if stand_in:
                row["stand_in"] = "AdamW"
            try:
                self.enter(
                    label,
                    lambda named, peer=peer, variant=variant: clipped(
                        [param for _, param in named], peer.make(variant, named)
                    ),
                    hopeless=math.inf if kind == "compiled" else HOPELESS,
                )
            except Exception as error:  # of another library: whatever it may be
                lines = str(error).splitlines() or [""]
                row["error"] = f"{type(error).__name__}: {lines[0][:120]}"
                self.calls.pop(label, None)
            self.rows.append(row)

    def enter(
        self,
        label: str,
        build: Callable[[Named], Callable[[], Any]],
        hopeless: float = math.inf,
    ) -> Named:
        """Build an entrant and let it take the first steps; what takes so many seconds is left out.

        A compiled one may take any time: it compiles in several of them.
        """
        named = models.parameters(self.shapes, self.device, self.dtype)
        self.params[label] = [param for _, param in named]
        call = build(named)
        for number in range(FIRST_STEPS):
            self.prepare(label)
            started = time.perf_counter()
            call()
            if number and time.perf_counter() - started > hopeless:
                raise RuntimeError(f"a step takes more than {hopeless:g} s")
        self.calls[label] = call if self.steps == 1 else self.repeated(label, call)
        return named

    def repeated(self, label: str, call: Callable[[], Any]) -> Callable[[], None]:
        """Several steps as one, each with all gradients."""

        def calls() -> None:
            for _ in range(self.steps):
                self.prepare(label)
                call()

        return calls

    def prepare(self, label: str) -> None:
        """Give the gradients back to an entrant, some of which drop or replace them."""
        grads = self.grads[OURS if label == OURS else "peers"]
        for param, grad in zip(self.params[label], grads, strict=True):
            param.grad = grad

    def run(self, rounds: int, seconds: float) -> dict[str, Any]:
        """Time everything; returns the row of the table."""
        count = models.count(self.shapes)
        traffic = bound.traffic(count, self.arrays, self.device, self.dtype)
        limits = timing.interleaved(
            {BOUND: traffic}, self.device, rounds=min(rounds, 15), seconds=1.0
        )
        del traffic
        least = 5 if self.steps == 1 else 1
        found = timing.interleaved(
            self.calls, self.device, rounds=rounds, seconds=seconds, least=least,
            prepare=self.prepare,
        )  # fmt: skip
        for row in self.rows:
            if row["label"] in found:
                row |= self.figures(found[row["label"]])
        mine = self.figures(found[OURS])
        return {
            "rule": self.rule,
            "device": self.device,
            "parameters": count,
            "tensors": len(self.shapes),
            "ms": mine["median"],
            "low": mine["low"],
            "high": mine["high"],
            "rounds": mine["rounds"],
            "bound_ms": limits[BOUND].median,
            "arrays": self.arrays,
            "peers": self.rows,
        }

    def figures(self, sample: timing.Sample) -> dict[str, Any]:
        """Milliseconds per step."""
        per = self.steps
        return {
            "median": sample.median / per, "low": sample.low / per, "high": sample.high / per,
            "rounds": sample.rounds,
        }  # fmt: skip


def measure_steps(args: argparse.Namespace, document: Document) -> None:
    for model in args.model:
        for engine in args.engine:
            for rule in args.rule:
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    bench = Bench(rule, models.MODELS[model](), args, engine)
                    row = bench.run(args.rounds, args.seconds)
                row |= {"model": model, "engine": engine, "threads": args.threads}
                replace(document["steps"], row, "rule", "model", "engine", "device", "threads")
                say(f"{model} {engine} {rule}: {row['ms']:.2f} ms, {tables.verdict(row)}", started)
                save(args, document)


def measure_growth(args: argparse.Namespace, document: Document) -> None:
    """From 1 M to 100 M parameters in 100 tensors, and from 10 to 5000 tensors of 512."""
    quiet = argparse.Namespace(**{**vars(args), "no_peers": True})
    for engine in args.engine:
        for rule in args.rule if args.rule_given else GROWTH:
            for tensors, size in SIZES:
                started = time.perf_counter()
                bench = Bench(rule, models.many_small(tensors, size), quiet, engine)
                # of short steps a tenth of a second, in which the interpreter gets used to them
                row = bench.run(max(args.rounds, ENOUGH // (tensors * size)), args.seconds)
                kept = {key: row[key] for key in ("rule", "ms", "parameters", "tensors")}
                row = {**kept, "engine": engine}
                replace(document["growth"], row, "rule", "engine", "parameters", "tensors")
                say(f"growth {engine} {rule}, {tensors} of {size}: {row['ms']:.2f} ms", started)
                save(args, document)


def measure_memory(args: argparse.Namespace, document: Document) -> None:
    for model in args.model:
        for engine in args.engine:
            for rule in args.rule:
                started = time.perf_counter()
                row = probe.run("memory", rule, engine, model, args.threads)
                row |= {"rule": rule, "engine": engine, "model": model}
                replace(document["memory"], row, "rule", "engine", "model")
                say(f"memory {engine} {rule}: {row['extra'] / 2**20:.1f} MiB extra", started)
                save(args, document)


def measure_compile(args: argparse.Namespace, document: Document) -> None:
    for engine in args.engine:
        for rule in args.rule:
            started = time.perf_counter()
            row = probe.compile_time(rule, engine, args.threads)
            replace(document["compile"], row, "rule", "engine")
            say(f"first step {engine} {rule}: {row['cold']:.1f}, {row['warm']:.1f} s", started)
            save(args, document)


def replace(rows: list[Any], row: dict[str, Any], *keys: str) -> None:
    """Put a row in the place of an older one of the same measurement."""
    same = [index for index, old in enumerate(rows) if all(old[k] == row[k] for k in keys)]
    if same:
        rows[same[0]] = row
    else:
        rows.append(row)


def say(text: str, started: float) -> None:
    print(f"{text} [{time.perf_counter() - started:.0f} s]", file=sys.stderr, flush=True)


def start(args: argparse.Namespace) -> Document:
    """The file's results so far, so that a run can be made in parts; or nothing yet."""
    document: Document = {"steps": [], "growth": [], "memory": [], "compile": []}
    if args.json and args.json.exists():
        document |= json.loads(args.json.read_text())
    if not args.show:
        document |= {
            "machine": timing.machine(args.device),
            "versions": timing.versions(),
            "date": time.strftime("%Y-%m-%d"),
            "missing": peers.missing(),
        }
    return document


def save(args: argparse.Namespace, document: Document) -> None:
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizer_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = optimizers.names()
    add = parse.add_argument
    add("--rule", nargs="+", choices=names, metavar="RULE", help="default: every rule")
    add("--model", nargs="+", choices=list(models.MODELS), default=["gpt"])
    add("--engine", nargs="+", default=["auto"], help="of our optimizers; default: auto")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=25, help="of interleaved steps, at most")
    add("--seconds", type=float, default=10.0, help="per rule, once 5 rounds are done")
    add("--no-peers", action="store_true", help="only ours and the memory bound")
    add("--library", nargs="+", choices=list(peers.MODULES), default=list(peers.MODULES))
    add(
        "--compiled-peers", nargs="*", choices=names, default=(), metavar="RULE",
        help="rules for which HeavyBall is compiled, too, which takes minutes each; default: none",
    )  # fmt: skip
    add("--growth", action="store_true", help="time by parameters and by tensors, instead")
    add("--memory", action="store_true", help="memory beyond the rule's state, instead")
    add("--compile-time", action="store_true", help="seconds until the first step, instead")
    add("--all", action="store_true", help="everything that README.md records")
    add("--json", type=Path, metavar="FILE", help="results; rows already there are replaced")
    add("--markdown", type=Path, metavar="FILE", help="the tables, for pasting")
    add("--show", action="store_true", help="only print what the JSON file holds")
    return parse


def everything(args: argparse.Namespace, document: Document) -> None:
    """What README.md records."""

    def with_(**changes: Any) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(args), **changes})

    whole = WHOLE_TENSORS
    element = [rule for rule in args.rule if rule not in whole]
    measure_steps(with_(model=["gpt"], compiled_peers=COMPILED_PEERS), document)
    measure_steps(with_(model=["gpt"], engine=["eager"]), document)
    measure_steps(with_(model=["many-small"], rule=element), document)
    for model in ("resnet", "vit", "embedding"):
        measure_steps(with_(model=[model], rule=["adamw"]), document)
    measure_growth(args, document)
    if args.device == "cpu":
        measure_memory(with_(model=["gpt"]), document)
        measure_compile(with_(engine=["compiled"], rule=element), document)


def main(arguments: Sequence[str] | None = None) -> int:
    parse = parser()
    args = parse.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parse.error("--device cuda: torch sees no GPU")
    if args.memory and args.device != "cpu":
        parse.error("--memory measures a CPU process; leave --device out")
    if args.show and not (args.json and args.json.exists()):
        parse.error("--show needs the --json FILE of an earlier run")
    torch.set_num_threads(args.threads)
    args.rule_given = args.rule is not None
    args.rule = args.rule or optimizers.names()
    for engine in args.engine:
        try:
            optimizers.SGD([torch.nn.Parameter(torch.zeros(1))], engine=engine)
        except ValueError as error:
            parse.error(str(error))
    document = start(args)
    if args.all:
        everything(args, document)
    elif args.growth:
        measure_growth(args, document)
    elif args.memory:
        measure_memory(args, document)
    elif args.compile_time:
        measure_compile(args, document)
    elif not args.show:
        measure_steps(args, document)
    text = tables.report(document)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
