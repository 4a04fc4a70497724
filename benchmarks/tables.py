"""Results as text: one table per model and engine, and the smaller ones below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.targets import COLUMNS, targets

Record = Mapping[str, Any]
SHOWN = ("fastest eager peer", "torch fused", "HeavyBall compiled", "memory bound")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns lined up, in Markdown."""
    body = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in body) for index in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
             for row in body]  # fmt: skip
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(row: Record, column: str) -> str:
    """A peer's time and our ratio to it."""
    found = COLUMNS[column](row)
    if found is None:
        return "–"
    name, value = found
    label = f"{name} " if column == "fastest eager peer" else ""
    return f"{label}{milliseconds(value)} ({row['ms'] / value:.2f})"


def verdict(row: Record) -> str:
    """Each target of a row and whether it is met."""
    words = []
    for target in targets(row["rule"], row["model"], row["engine"]):
        ratio = target.ratio(row)
        if ratio is not None:
            met = "met" if ratio <= target.most else f"**missed** ({ratio:.2f})"
            words.append(f"≤ {target.most:g} {target.over}: {met}")
    return "; ".join(words) or "no target"


def step_table(rows: Sequence[Record]) -> str:
    """The main table; times in ms, in brackets ours over theirs."""
    head = ("rule", "ours", *SHOWN, "target")
    return table(
        head,
        [
            (row["rule"], milliseconds(row["ms"]), *(cell(row, c) for c in SHOWN), verdict(row))
            for row in rows
        ],
    )


def growth_table(rows: Sequence[Record]) -> str:
    return table(
        ("rule", "engine", "parameters", "tensors", "ms", "ns per parameter", "µs per tensor"),
        [
            (
                row["rule"], row["engine"], f"{row['parameters']:,}", f"{row['tensors']:,}",
                milliseconds(row["ms"]), f"{row['ms'] * 1e6 / row['parameters']:.2f}",
                f"{row['ms'] * 1e3 / row['tensors']:.2f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def memory_table(rows: Sequence[Record]) -> str:
    return table(
        (
            *("rule", "engine", "parameters MiB", "state MiB"),
            *("extra MiB", "extra", "after the first step", "≤ 5 %"),
        ),
        [
            (
                row["rule"], row["engine"], f"{row['parameters'] / 2**20:.0f}",
                f"{row['state'] / 2**20:.0f}", f"{row['extra'] / 2**20:.1f}",
                percent(row["extra"] / row["parameters"]),
                percent(row["later"] / row["parameters"]) if "later" in row else "–",
                "met" if row["extra"] <= 0.05 * row["parameters"] else "**missed**",
            )
            for row in rows
        ],
    )  # fmt: skip


def compile_table(rows: Sequence[Record]) -> str:
    return table(
        ("rule", "engine", "cold s", "from the cache s", "< 10 s, < 3 s"),
        [
            (
                row["rule"], row["engine"], f"{row['cold']:.1f}", f"{row['warm']:.1f}",
                "met" if row["cold"] < 10 and row["warm"] < 3 else "**missed**",
            )
            for row in rows
        ],
    )  # fmt: skip


def report(document: Record) -> str:
    """All that a file of results holds, in Markdown."""
    parts = [about(document)]
    steps: dict[tuple[str, str, str, int], list[Record]] = {}
    for row in document["steps"]:
        steps.setdefault((row["model"], row["device"], row["engine"], row["threads"]), []).append(
            row
        )
    for (model, device, engine, threads), rows in steps.items():
        first = rows[0]
        parts.append(
            f"**{model}**: {first['parameters'] / 1e6:.1f} M parameters in {first['tensors']} "
            f"tensors, {device}, {threads} threads, engine {engine}; ms a step with clip_norm=1, "
            f"in brackets ours over theirs\n\n{step_table(rows)}"
        )
        wrong = sorted({
            f"{row['rule']}: {peer['library']} {peer['variant']}: {peer['error']}"
            for row in rows for peer in row["peers"] if "error" in peer
        })  # fmt: skip
        if wrong:
            parts.append("Left out:\n\n" + "\n".join(f"- {line}" for line in wrong))
    for key, title, render in (
        ("growth", "Growth", growth_table),
        ("memory", "Memory of a step beyond the rule's own state", memory_table),
        ("compile", "Seconds until the first step is done", compile_table),
    ):
        if document.get(key):
            parts.append(f"**{title}**\n\n{render(document[key])}")
    return "\n\n".join(parts) + "\n"


def about(document: Record) -> str:
    """The machine and the versions."""
    where = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    what = ", ".join(f"{key} {value}" for key, value in document["versions"].items())
    lines = [f"Machine: {where}.", f"Versions: {what}.", f"Date: {document['date']}."]
    if document["missing"]:
        lines.append(f"Not installed, so left out: {', '.join(document['missing'])}.")
    return "  \n".join(lines)
