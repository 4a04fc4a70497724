"""The report of a study: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.compare import wording
from tuner.compare.page import rendered
from tuner.compare.report_figures import plots
from tuner.compare.rows import Evaluations, chosen_runs, late_best, reached_targets
from tuner.compare.targets import Targets
from tuner.compare.verdicts import ArmResult, Comparison
from tuner.records import LrCurve, Study, Trial

STAGES = {
    "lr-range": "range test: where training explodes, and the box below it",
    "calibrate": "the baseline's first guess on several seeds, to measure their noise",
    "defaults": "every arm untuned, with its published settings",
    "screen": "short runs, to find out which settings are worth a full one",
    "explore": "search of learning rate, batch size and weight decay, arm by arm",
    "confirm": "the best configurations again on fresh seeds; picks one for each arm",
    "decide": "the picked configurations on seeds that chose nothing; judges the arms",
}
VERDICTS = {
    "best": "better than every other arm, beyond chance",
    "contender": "leads, or could not be told apart from the leader",
    "equivalent": "its difference to the leader was shown to be below the margin",
    "worse": "worse than another arm, beyond chance, after correction for all comparisons",
    "under-explored": "its search was not finished, so it is not judged worse",
}
_CSV_COLUMNS = (
    "number", "arm", "stage", "seed", "state", "value", "optimizer", "schedule", "steps",
    "wall_seconds", "attempts", "device", "host", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class _Stage:
    name: str
    what: str
    trials: int
    states: str
    seeds: int
    steps: int
    seconds: float


def _params(trial: Trial) -> dict[str, Any]:
    return {**trial.configuration.optimizer_args, **trial.params}


def trials_csv(trials: Sequence[Trial]) -> str:
    """All trials as CSV, one a line: the fixed columns, then `param.*` and `metric.*`."""
    params = sorted({name for t in trials for name in _params(t)})
    metrics = sorted({name for t in trials for name in t.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [*_CSV_COLUMNS, *(f"param.{n}" for n in params), *(f"metric.{n}" for n in metrics)]
    writer.writerow(columns)
    for t in trials:
        fixed = [
            t.number, t.arm, t.stage, t.seed, t.state, t.value, t.configuration.optimizer,
            t.configuration.schedule, t.steps, round(t.wall_seconds, 3), t.attempts, t.device,
            t.host, t.failure.kind if t.failure else None,
        ]  # fmt: skip
        used = _params(t)
        cells = [*fixed, *(used.get(n) for n in params), *(t.metrics.get(n) for n in metrics)]
        writer.writerow(["" if c is None else _cell(c) for c in cells])
    return out.getvalue()


def _cell(value: Any) -> str:
    """Text that a spreadsheet does not take for a formula."""
    if not isinstance(value, str):
        return json.dumps(value)
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def comparison_markdown(comparison: Comparison) -> str:
    """The answer and the table of arms as Markdown, for a pull request or a wiki."""
    level = round(100 * (1 - comparison.alpha))
    heads = ["arm", "verdict", comparison.metric, f"{level} % interval", "P(best)", "seeds"]
    rows = [[*_row(arm).values()][: len(heads) + 1] for arm in comparison.arms]
    lines = [[*heads, "settings"], ["---"] * (len(heads) + 1), *rows]
    table = "\n".join("| " + " | ".join(_escaped(c) for c in line) + " |" for line in lines)
    return f"{_escaped(comparison.answer)}\n\n{table}\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _row(arm: ArmResult) -> dict[str, str]:
    """The cells of one arm as text; the first seven are the Markdown table."""
    return {
        "name": arm.name,
        "verdict": arm.verdict,
        "mean": wording.mean(arm),
        "interval": wording.span(arm.ci_low, arm.ci_high),
        "p_best": f"{arm.p_best:.2f}",
        "seeds": str(len(arm.seeds)),
        "settings": wording.settings(arm.params),
        "configuration": f"{arm.optimizer} with {arm.schedule}",
        "difference": "" if arm.difference is None else f"{arm.difference:+.2g}",
        "difference_interval": wording.span(arm.difference_low, arm.difference_high),
        "p_value": "" if arm.p_value is None else f"{arm.p_value:.3f}",
        "seeds_needed": "" if arm.seeds_needed is None else wording.more_seeds(arm.seeds_needed),
        "note": arm.note,
    }


def _stages(trials: Sequence[Trial]) -> list[_Stage]:
    """The budget ledger: what each stage ran and what it cost."""
    ledger = []
    for name, what in STAGES.items():
        mine = [t for t in trials if t.stage == name]
        if mine:
            states = Counter(t.state for t in mine)
            ledger.append(
                _Stage(
                    name=name,
                    what=what,
                    trials=len(mine),
                    states=", ".join(f"{n} {state}" for state, n in states.most_common()),
                    seeds=len({t.seed for t in mine}),
                    steps=sum(t.steps for t in mine),
                    seconds=sum(t.wall_seconds for t in mine),
                )
            )
    return ledger


def _failures(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Failures by class, each with the arms it met and its most frequent message."""
    failed = [(t.arm, t.failure) for t in trials if t.failure]
    return [
        {
            "kind": kind.replace("_", " "),
            "count": count,
            "arms": ", ".join(sorted({arm for arm, f in failed if f.kind == kind})),
            "message": Counter(f.message for _, f in failed if f.kind == kind).most_common(1)[0][0],
        }
        for kind, count in Counter(f.kind for _, f in failed).most_common()
    ]


def _caveats(
    study: Study, trials: Sequence[Trial], evaluations: Evaluations, comparison: Comparison
) -> list[str]:
    """What limits the answer, one line each."""
    lines = [f"{arm.name}: {arm.note}." for arm in comparison.arms if arm.note]
    lines += comparison.caveats
    if study.spec.get("budget", {}).get("decide_seeds") == 0:
        lines.append(
            "No decide stage: the scores that picked each configuration also judge it, so they "
            "look better than new runs would."
        )
    if study.state != "completed":
        lines.append(f"The study is {study.state}: this is what it knew so far.")
    if not comparison.margin_given and comparison.margin:
        lines.append(
            "No margin was given: differences below the deviation over seeds "
            f"({comparison.margin:.2g}) count as none for the verdict equivalent."
        )
    if min((len(a.seeds) for a in comparison.arms), default=2) < 2:
        lines.append("One seed for some arm: it gets no verdict.")
    if comparison.looks > 1 and len({len(a.seeds) for a in comparison.arms}) > 1:
        lines.append(
            "Arms stopped getting seeds once they were decided, so means of arms with few seeds "
            "look more extreme than more seeds would make them; the verdicts allow for it."
        )
    if late_best(trials, evaluations, comparison) > 0.75:
        lines.append(
            f"{comparison.arms[0].name} was still improving when its runs ended: longer training "
            "may help, and may change the order."
        )
    if searched := sorted({name for t in trials if t.stage == "explore" for name in t.point}):
        names = ", ".join(wording.SETTING_NAMES.get(n, n) for n in searched)
        lines.append(
            f"Searched: {names}. Every other number kept its given or published value, and with "
            "others the order can change."
        )
    lines.append(
        "It holds for this task, length of training and search box; another length or scale can "
        "change the order."
    )
    return lines


def _targets(targets: Targets) -> dict[str, Any]:
    """Time to target on one cost axis as text."""
    return {
        "cost": targets.cost,
        "target": f"{targets.target:.4g}",
        "baseline": targets.baseline,
        "rows": [
            {
                "name": arm.name,
                "reached": f"{arm.reached} of {len(arm.times)}",
                "median": "not reached" if arm.median is None else f"{arm.median:,.4g}",
                "speedup": "–" if arm.speedup is None else f"{arm.speedup:.2f}x",
                "interval": wording.span(arm.speedup_low, arm.speedup_high),
            }
            for arm in targets.arms
        ],
    }


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as lines of (dotted name, value)."""
    lines: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            lines.append((f"{prefix}{key}", str(value)))
    return lines


def write_report(
    path: Path,
    study: Study,
    trials: Sequence[Trial],
    evaluations: Evaluations,
    lr_curves: Mapping[int, LrCurve],
    comparison: Comparison,
) -> Path:
    """Write the report as one self-contained HTML file and return its path.

    `evaluations` and `lr_curves` are by trial number. Raises OSError when it cannot be written.
    """
    try:
        targets = reached_targets(trials, evaluations, comparison)
    except ValueError:  # the baseline diverged, or nothing was evaluated
        targets = []
    first = chosen_runs(trials, comparison.arms[0])
    page = rendered(
        "report.html",
        study=study,
        comparison=comparison,
        level=round(100 * (1 - comparison.alpha)),
        rows=[_row(arm) for arm in comparison.arms],
        verdicts=VERDICTS,
        plots=plots(trials, evaluations, lr_curves, comparison, targets),
        targets=[_targets(t) for t in targets],
        stages=_stages(trials),
        failures=_failures(trials),
        caveats=_caveats(study, trials, evaluations, comparison),
        provenance=_flat(study.provenance),
        devices=sorted({t.device for t in trials if t.device}),
        rerun=first[0].number if first else None,
        spec=json.dumps(study.spec, indent=2, ensure_ascii=False),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
