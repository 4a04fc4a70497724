"""The report of a study: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.compare import wording
from tuner.compare.verdicts import ArmResult, Comparison
from tuner.records import Evaluation, LrCurve, Study, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {
    "calibrate": "the baseline at published defaults, to measure the noise of seeds",
    "defaults": "every arm untuned, with its published settings",
    "lr-range": "range test: where training explodes, and the box below it",
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
class _Plot:
    title: str
    caption: str
    source: str  # data URI


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


def _caveats(study: Study, comparison: Comparison) -> list[str]:
    """What limits the answer, one line each."""
    lines = [f"{arm.name}: {arm.note}." for arm in comparison.arms if arm.note]
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
    if fewest := min((len(a.seeds) for a in comparison.arms), default=0):
        lines += ["One seed for some arm: it gets no verdict."] if fewest < 2 else []
    lines.append(
        "It holds for this task, length of training and search box; another length or scale can "
        "change the order."
    )
    return lines


def _image(figure: Figure) -> str:
    import matplotlib

    out = io.BytesIO()
    # A fixed salt and no date: the same study gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "tuner"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _chosen(trials: Sequence[Trial], arm: ArmResult) -> list[Trial]:
    """The runs whose scores judge the arm."""
    return [
        t
        for t in trials
        if t.stage in ("confirm", "decide")
        and t.arm == arm.name
        and t.seed in arm.seeds
        and t.params == arm.params
    ]


def _plots(
    trials: Sequence[Trial],
    evaluations: Mapping[int, Sequence[Evaluation]],
    lr_curves: Mapping[int, LrCurve],
    comparison: Comparison,
) -> list[_Plot]:
    from tuner.compare import plots

    metric, direction = comparison.metric, comparison.direction
    names = {t.number: t.arm for t in trials}
    by_arm = {names[n]: curve for n, curve in sorted(lr_curves.items()) if n in names}
    runs, explored, spent = {}, {}, {}
    for arm in comparison.arms:
        chosen = _chosen(trials, arm)
        lines = [evaluations.get(t.number, []) for t in chosen if t.state == "completed"]
        runs[arm.name] = plots.Runs(
            metric=[[(e.step, e.metrics[metric]) for e in r if metric in e.metrics] for r in lines],
            lr=[[(e.step, e.lr) for e in r if e.lr > 0] for r in lines],
        )
        tried = [
            t
            for t in trials
            if t.arm == arm.name
            and t.stage == "explore"
            and t.state in ("completed", "diverged")
            and "lr" in t.point
        ]
        curve = by_arm.get(arm.name)
        box = (curve.low, curve.high) if curve and curve.low and curve.high else None
        explored[arm.name] = plots.Explored(
            lrs=[t.point["lr"] for t in tried],
            values=[t.value if t.state == "completed" else None for t in tried],
            chosen_lr=next((t.point["lr"] for t in chosen if "lr" in t.point), None),
            box=box,
        )
        spent[arm.name] = explored[arm.name].values
    curves = {a.name: by_arm[a.name] for a in comparison.arms if a.name in by_arm}
    made = [
        ("How good is each arm?", "Diamond: mean over fresh seeds. Bar: interval of the mean. "
         "Dots: seeds. Grey: the leader's interval.", plots.arms_figure(comparison)),
        ("How far from the leader?", "Differences on common seeds, which cancels what is "
         "common to a seed. Grey: the margin.",
         plots.differences_figure(comparison)),
        ("How did training go?", "The chosen configurations on fresh seeds, and the learning "
         "rate that really ran.", plots.curves_figure(runs, metric, direction)),
        ("Where are good learning rates?", "Each dot is one exploration trial. Dashed: the "
         "search box. Line: the chosen learning rate.",
         plots.exploration_figure(explored, metric, direction)),
        ("What would fewer trials have found?", "Exact for independent draws; a sampler's "
         "trials are not, so read it as a guide.",
         plots.best_of_k_figure(spent, metric, direction)),
    ]  # fmt: skip
    if curves:
        made.append(("Learning-rate range tests", "Circle: suggestion. Bar: search box. Cross: "
                     "where training diverges.", plots.lr_curves_figure(curves)))  # fmt: skip
    return [_Plot(title, caption, _image(figure)) for title, caption, figure in made]


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
    evaluations: Mapping[int, Sequence[Evaluation]],
    lr_curves: Mapping[int, LrCurve],
    comparison: Comparison,
) -> Path:
    """Write the report as one self-contained HTML file and return its path.

    `evaluations` and `lr_curves` are by trial number. Raises OSError when it cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = _chosen(trials, comparison.arms[0])
    page = environment.get_template("report.html").render(
        study=study,
        comparison=comparison,
        level=round(100 * (1 - comparison.alpha)),
        rows=[_row(arm) for arm in comparison.arms],
        verdicts=VERDICTS,
        plots=_plots(trials, evaluations, lr_curves, comparison),
        stages=_stages(trials),
        failures=_failures(trials),
        caveats=_caveats(study, comparison),
        provenance=_flat(study.provenance),
        devices=sorted({t.device for t in trials if t.device}),
        rerun=first[0].number if first else None,
        spec=json.dumps(study.spec, indent=2, ensure_ascii=False),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
