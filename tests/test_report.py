"""Tables that fit 80 columns, and files that are JSON."""

import io
import json
import math

import pytest
from rich.console import Console

from mmkt.report import append, as_json, read, sheets, show
from mmkt.types import Row

NAN = float("nan")


def row(metric, group="all", value=0.5, low=0.4, high=0.6, **named):
    fields = {"run": "runs/a", "study": "", "seed": 0, "split": "test", "task": "kind", "modalities": "image+text"}
    rest = {"condition": "clean", "metric": metric, "group": group, "value": value, "n": 120, "low": low, "high": high}
    return Row(**fields | rest | named)


def shown(rows):
    out = io.StringIO()
    show(sheets(rows, width=80), Console(file=out, width=80))
    return [line.rstrip() for line in out.getvalue().split("\n")]


def by_class(count, metric="f1"):
    return [row(metric, f"class=c{i:02}", value=(i * 7 % count) / count) for i in range(count)]


def test_main_figures_at_80_columns():
    lines = shown([row("accuracy", value=0.9127, low=0.8971, high=0.92449), row("mae", value=12345.6, low=NAN, high=NAN, n=7)])
    assert lines[:4] == [
        "runs/a · seed 0 · test · kind · image+text · clean",
        "metric    value        interval    n",
        "accuracy  0.913  [0.897, 0.924]  120",
        "mae       12346                    7",
    ]


def test_what_differs_is_a_column():
    lines = shown([row("accuracy"), row("accuracy", condition="noise@3", value=NAN)])
    assert lines[0] == "runs/a · seed 0 · test · kind · image+text"
    assert lines[1].split() == ["condition", "metric", "value", "interval", "n"]
    assert lines[3].split() == ["noise@3", "accuracy", "–", "[0.400,", "0.600]", "120"]


@pytest.mark.parametrize(("metric", "end", "worst"), [("f1", "lowest", "0.000"), ("nll", "highest", "0.950")])
def test_the_twelve_worst(metric, end, worst):
    lines = shown(by_class(20, metric))
    assert lines[0] == f"by class, the 12 with the {end} {metric}; 8 more stand in the file (n = 120)"
    body = [line for line in lines[2:] if line]
    assert len(body) == 12
    assert worst in body[0]
    values = [float(line.split()[1]) for line in body]
    assert values == sorted(values, reverse=metric == "nll")


def test_twelve_are_shown_in_their_order():
    lines = shown(by_class(12))
    assert lines[0] == "by class (n = 120)"
    assert [line.split()[0] for line in lines[2:] if line] == [f"c{i:02}" for i in range(12)]


def test_no_line_is_wider_and_no_figure_is_broken():
    metrics = ("accuracy", "macro_f1", "auroc", "auprc", "ece", "nll", "brier")
    conditions = ("clean", "noise@3")
    rows = [row(m, condition=c, value=0.123, low=-0.456, high=0.789) for m in metrics for c in conditions]
    rows += [
        r._replace(group=f"domain={d}", n=n) for r in rows for d, n in (("a studio of some length", 50), ("[red]outside", 70))
    ]
    lines = shown(rows)
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.123 [-0.456, 0.789]") for line in lines) == 7 * 2 * 2 + 1  # the worst domain is named
    assert any("[red]outside" in line for line in lines), "a name is no markup"
    assert max(map(len, shown([r._replace(group="class=" + "long " * 30) for r in rows[:6]]))) <= 80


def test_breakdowns_by_task():
    lines = shown([row("f1", "class=a"), row("f1", "class=b", task="mood")])
    assert "kind by class (n = 120)" in lines
    assert "mood by class (n = 120)" in lines


def test_nan_is_null():
    record = as_json([row("auroc", value=NAN, low=NAN, high=math.inf), row("f1")])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    first, second = record["rows"]
    assert (first["value"], first["low"], first["high"]) == (None, None, None)
    assert second == row("f1")._asdict()


def test_a_file_gives_back_its_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [row("f1", "class=ö\u2028", value=1 / 3), row("auroc", value=NAN)]
    append(rows[:1], path)
    append(rows[1:], path)
    back = read(path)
    assert back[0] == rows[0]
    assert math.isnan(back[1].value)
    assert back[1]._replace(value=0) == rows[1]._replace(value=0)


@pytest.mark.parametrize("line", ['{"run": "torn', '{"run": "short"}', "[1]"])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    append([row("f1")], path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read(path)


def test_the_worst_domain_and_group_are_named_whichever_way_is_worse():
    rows = [row("accuracy", group=f"group={name}", value=value) for name, value in (("a", 0.9), ("b", 0.4), ("c", 0.6))]
    rows += [row("mae", task="size", group=f"domain={name}", value=value) for name, value in (("x", 2.0), ("y", 3.0))]
    rows += [row("accuracy", group=f"class={name}", value=0.1) for name in "de"]
    notes = [note for sheet in sheets(rows) for note in sheet.notes]
    assert [note.partition(" [")[0] for note in notes] == ["worst group: b, accuracy 0.400", "worst domain: y, mae 3.000"]
