"""The report and its figures: self-contained, escaped, and drawn for awkward studies too."""

import base64
import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.compare.example import ARMS, example
from tuner.compare import figures, plots
from tuner.compare.report import comparison_markdown, trials_csv, write_report
from tuner.compare.scales import robust_limits
from tuner.compare.targets import Run, time_to_target
from tuner.compare.verdicts import ArmScores, compare
from tuner.records import LrCurve

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def study():
    return example()


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises nothing, so balance is checked by hand."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.attributes, self.tags, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(tmp_path, rows):
    path = write_report(tmp_path / "sub" / "r.html", *rows)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return text, page


@pytest.fixture(scope="module")
def written(tmp_path_factory, study):
    return page_of(tmp_path_factory.mktemp("report"), study)


def test_the_page_needs_nothing_else(written):
    text, page = written
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    links = [v for k, v in page.attributes if k in ("src", "href")]
    assert links
    assert all(v.startswith("data:image/svg+xml;base64,") for v in links)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    for source in links:
        ET.fromstring(base64.b64decode(source.partition(",")[2]))
    assert len(text) < 2_000_000


def test_the_page_says_what_a_reader_asks(written, study):
    _, page = written
    said = " ".join(page.text.split())
    steps = sum(t.steps for t in study.trials)
    assert said.index(study.comparison.answer) < said.index("The arms, best first")
    for words in (
        *ARMS, "best", "under-explored", "bound of the search box",
        "explore", "53 completed, 11 diverged", f"{steps:,}", "416.0", "loss is not finite",
        "code.commit", "1a2b3c4", "packages.torch", "tuner trial rerun digits 72",
        '"decide_seeds": 8', "max-T",
    ):  # fmt: skip
        assert words in said, words


def test_everything_is_escaped(tmp_path, study):
    trials = [t.model_copy(update={"device": HOSTILE}) for t in study.trials]
    arms = [a.model_copy(update={"note": HOSTILE, "params": {HOSTILE: HOSTILE}})
            for a in study.comparison.arms]  # fmt: skip
    rows = study._replace(
        study=study.study.model_copy(
            update={"name": HOSTILE, "spec": {"x": HOSTILE}, "provenance": {HOSTILE: HOSTILE}}
        ),
        trials=trials,
        comparison=study.comparison.model_copy(
            update={"arms": arms, "answer": HOSTILE, "metric": HOSTILE, "method": HOSTILE}
        ),
    )
    text, page = page_of(tmp_path, rows)
    assert "<script" not in text
    assert HOSTILE in page.text


def test_the_same_study_gives_the_same_file(tmp_path, study, written):
    assert page_of(tmp_path, study)[0] == written[0]


def test_a_study_under_way_with_one_seed_and_nothing_else(tmp_path, study):
    scores = {"a": [0.5], "b": [None]}
    arms = [
        ArmScores(name=n, optimizer="sgd", schedule="constant", seeds=[1], scores=s)
        for n, s in scores.items()
    ]
    comparison = compare(arms, "minimize", rng=np.random.default_rng(0), metric="loss")
    rows = study._replace(
        study=study.study.model_copy(update={"state": "stopped", "provenance": {}}),
        trials=[], evaluations={}, lr_curves={}, comparison=comparison,
    )  # fmt: skip
    _, page = page_of(tmp_path, rows)
    assert "The study is stopped" in page.text
    assert "One seed for some arm" in page.text
    assert "None." in page.text  # failures


def test_csv_has_a_line_for_each_trial_and_is_safe_for_spreadsheets(study):
    risky = study.trials[0].model_copy(update={"host": "=cmd()", "params": {"betas": [0.9, 0.99]}})
    rows = list(csv.DictReader(io.StringIO(trials_csv([risky, *study.trials[1:]]))))
    assert len(rows) == len(study.trials)
    assert rows[0]["host"] == "'=cmd()"
    assert json.loads(rows[0]["param.betas"]) == [0.9, 0.99]
    last, trial = rows[-1], study.trials[-1]
    assert float(last["value"]) == trial.value
    assert float(last["param.lr"]) == trial.params["lr"]
    assert float(last["metric.loss"]) == trial.metrics["loss"]
    diverged = next(r for r in rows if r["state"] == "diverged")
    assert (diverged["failure"], diverged["value"]) == ("diverged", "")
    assert trials_csv([]).startswith("number,arm,stage")


def test_markdown_is_a_table_that_cells_cannot_break(study):
    arms = [a.model_copy(update={"name": "a|b<i>"}) for a in study.comparison.arms]
    text = comparison_markdown(study.comparison.model_copy(update={"arms": arms}))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(arms)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "<i>" not in text


LINE = [(10, 1.0), (20, 0.5)]
CURVE = LrCurve(points=[(1e-4, 2.0), (1e-3, 1.5), (1e-2, float("nan"))], suggested_lr=1e-3,
                low=1e-4, high=5e-3, diverges_at=1e-2)  # fmt: skip
BARE = LrCurve(points=[(1e-3, 2.0)], suggested_lr=None, low=None, high=None, diverges_at=None)
MANY = {f"arm-{k}": LINE for k in range(13)}
FIGURES = {
    "exploration": lambda: plots.exploration_figure(
        {"a": plots.Explored([1e-3, 1e-2, 1e-1], [0.5, 0.4, None], 1e-2, (1e-4, 1.0))},
        "loss", "minimize"),
    "exploration of one trial": lambda: plots.exploration_figure(
        {"a": plots.Explored([1e-3], [0.5], 1e-3, (1e-3, 1e-3))}, "acc", "maximize"),
    "exploration beyond the axis": lambda: plots.exploration_figure(
        {n: plots.Explored([1e-3, 2e-3, 3e-3, 1e-2], [0.4, 0.5, 0.6, 1e6]) for n in "abc"},
        "loss", "minimize"),
    "exploration of nothing": lambda: plots.exploration_figure(
        {"a": plots.Explored([], []), "b": plots.Explored([1e-3], [None])}, "loss", "minimize"),
    "curves": lambda: plots.curves_figure(
        {"a": plots.Runs([LINE, LINE], [LINE]), "b": plots.Runs()}, "loss", "minimize"),
    "curves of many arms": lambda: plots.curves_figure(
        {n: plots.Runs([v], [v]) for n, v in MANY.items()}, "loss", "minimize"),
    "curves at a constant rate": lambda: plots.curves_figure(
        {"a": plots.Runs([LINE], [[(10, 1e-3), (20, 1e-3)]])}, "loss", "minimize"),
    "curves with nothing in common": lambda: plots.curves_figure(
        {"a": plots.Runs([[(1, 1.0)], [(2, 1.0)]], [])}, "loss", "minimize"),
    "spending": lambda: figures.spending_figure(
        {"a": figures.Spent([0.5, 0.4, None, 0.6], [9.0] * 4, [1.0] * 4),
         "b": figures.Spent([0.3], [9.0], [1.0])}, "loss", "minimize"),
    "spending of nothing": lambda: figures.spending_figure(
        {"a": figures.Spent([None], [1.0], [1.0]), "b": figures.Spent()}, "loss", "minimize"),
    "targets": lambda: figures.targets_figure([
        time_to_target({"a": [Run(0, LINE), Run(1, [(10, 1.0)])], "b": [Run(0, ())]}, 0.5,
                       "minimize", baseline="a")]),
    "no target": lambda: figures.targets_figure([]),
    "range tests": lambda: plots.lr_curves_figure({"adamw": CURVE, "sgd": BARE}),
    "range test without a curve": lambda: plots.lr_curves_figure({}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_without_a_warning(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    assert len(out.getvalue()) > 2_000


def test_figures_of_a_comparison_label_their_axes_and_mark_divergence(study):
    arms = [a.model_copy(update={"scores": [None, *a.scores[1:]]}) for a in study.comparison.arms]
    broken = study.comparison.model_copy(update={"arms": arms})
    figure = plots.arms_figure(broken)
    assert "lower is better" in figure.axes[0].get_xlabel()
    assert [t.get_text() for t in figure.axes[0].texts] == ["1 diverged"] * 4
    gaps = plots.differences_figure(broken)
    assert "right of 0 is worse" in gaps.axes[0].get_xlabel()
    alone = study.comparison.model_copy(update={"arms": arms[:1]})
    assert "one arm" in plots.differences_figure(alone).axes[0].texts[0].get_text()


def test_the_matrix_of_wins_shows_every_pair_once(study):
    figure = figures.wins_figure(study.comparison)
    told = [t.get_text() for t in figure.axes[0].texts]
    assert len(told) == 4 * 3
    assert told[0] == f"{study.comparison.p_better[0][1]:.2f}"
    alone = study.comparison.model_copy(update={"arms": study.comparison.arms[:1]})
    assert "nobody to beat" in figures.wins_figure(alone).axes[0].texts[0].get_text()


def test_the_isolation_line_runs_through_the_best_of_each_half_decade():
    lrs, values = [1.1e-3, 2e-3, 5e-3, 5e-2], [0.5, 0.4, 0.6, 0.45]
    figure = plots.exploration_figure({"a": plots.Explored(lrs, values)}, "loss", "minimize")
    line = next(li for li in figure.axes[0].lines if "half decade" in str(li.get_label()))
    heights = np.asarray(line.get_ydata(), dtype=float)
    assert heights[np.isfinite(heights)].tolist() == [0.4, 0.4, 0.6, 0.6, 0.45, 0.45]
    assert np.isnan(heights).sum() == 1  # the empty half decades between


def test_the_page_says_how_soon_and_what_the_search_left_out(written):
    _, page = written
    said = " ".join(page.text.split())
    for words in ("How soon", "of 8", "Searched: lr, weight decay", "still improving",
                  "two-level bootstrap", "Which arm wins a single run?"):  # fmt: skip
        assert words in said, words


@pytest.mark.parametrize("length", [3, 25, 60])
def test_a_legend_stays_inside_its_figure(length):
    arms = {f"{k:02}" + "x" * (length - 2): plots.Runs([LINE], [LINE]) for k in range(7)}
    figure = plots.curves_figure(arms, "loss", "minimize")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_texts_of_a_figure_do_not_overlap(study):
    figure = plots.arms_figure(study.comparison)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_no_two_of_28_arms_look_alike():
    assert len({str(plots.line_style(k)) for k in range(28)}) == 28


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_an_explosion_does_not_flatten_what_matters(direction):
    sign = 1 if direction == "minimize" else -1
    low, high = robust_limits([sign * v for v in (1.0, 1.1, 1.2, 1.3, 1e9)], direction)
    assert low < min(sign, sign * 1.2)
    assert high > max(sign, sign * 1.2)
    assert high - low < 2
    assert robust_limits([2.0, 2.0], direction) == pytest.approx((1.9, 2.1))
