"""The report of an evaluation: opened in a browser, whole by itself, and safe with any text."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from conftest import call, experiment, rows_of_three, settings, write
from PIL import Image

from mmkt import launch, page
from mmkt.evaluation_page import TITLES
from mmkt.report import Sheet

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
EVIL = '<script>alert("x")</script><img src="http://example.invalid/x.png" onerror="alert(1)">'


class Reader(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory, tiny_bert):
    """An evaluation with everything in it, on rows whose texts and names are hostile."""
    folder = tmp_path_factory.mktemp("page")
    rows = rows_of_three(80)
    for k, row in enumerate(rows):
        row["text"] = f"{EVIL} {row['text']}" if k % 3 else row["text"]
        row["group"] = EVIL if k % 2 else "plain"
        row["image"] = None if k % 7 == 0 else row["image"]
    data = settings(write(rows, folder / "rows.parquet"), tiny_bert, folder / "run")
    data["objectives"]["near"] = "align"
    data["data"]["dropout"] = {"text": 0.3}
    launch.train(experiment(data, "train.steps=4", "train.evaluate_every=4"))
    names = {f"k{k}": f"<b>{k}</b> loud" for k in range(8)}
    (folder / "prompts.yaml").write_text(yaml.safe_dump({"en": {"classes": names}}))
    return folder


def made(report, capfd):
    out = report / "out"
    best = report / "run/best"
    settings = [
        "page=true",
        "corruptions=[jpeg,typos]",
        "severities=[1,5]",
        f"prompts={report}/prompts.yaml",
        "shots=[1,2]",
        "episodes=3",
        "robustness={rows: 4, attacks: {fgsm: fgsm}, curve: []}",
        "smoothing={sigma: {image: 0.1}, rows: 4, selection: 3, samples: 12}",
    ]
    status, _, err = call(capfd, "evaluate", best, "--out", out, *(f"evaluate.{text}" for text in settings))
    assert status == 0, err
    assert "written: " in err
    assert "report.html" in err
    return out / "report.html"


def test_everything_is_in_it_and_nothing_from_elsewhere(report, capfd):
    file = made(report, capfd)
    found = Reader(file.read_text(encoding="utf-8"))
    assert set(TITLES.values()) | {"Figures", "Confidence", "Mistakes"} <= set(found.headings)
    assert "worst group" in found.text
    assert "script" not in found.tags
    assert EVIL in found.text, "it is text"
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert found.tags.count("svg") == 7  # lattice, Shapley values, missing, corruption, radii, confidence, few shots
    assert found.tags.count("audio") > 5
    assert {link.partition(";")[0] for link in found.links if link.startswith("data:")} >= {"data:image/png", "data:audio/mpeg"}
    anchors = set(re.findall(r'<h2 id="(\w+)"', file.read_text(encoding="utf-8")))
    assert {link[1:] for link in found.links if link.startswith("#") and link[1:].isalpha()} <= anchors


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or any package of it")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_opens_it(report, capfd, tmp_path, width):
    """No error on the console, no request that leaves the page, and something is drawn."""
    file = report / "out/report.html"
    if not file.exists():
        made(report, capfd)
    errors, requests, picture = browse(file, tmp_path, width)
    assert errors == []
    assert requests == []
    levels = np.asarray(picture.convert("L"))
    assert picture.size == (width, 3000)
    assert levels.std() > 10
    assert (levels[:, -8:] == 255).mean() > 0.98, "nothing runs over the right edge"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or any package of it")
def test_those_checks_can_fail(tmp_path):
    file = tmp_path / "bad.html"
    file.write_text('<p>x</p><img src="http://127.0.0.1:9/x.png"><script>console.error("wrong"); nothing.at.all</script>')
    errors, requests, _ = browse(file, tmp_path, 400)
    assert len(errors) >= 2
    assert "http://127.0.0.1:9/x.png" in requests


def browse(file, folder, width: int) -> tuple[list[str], list[str], Image.Image]:
    """Errors on the console, addresses that the page asked for, and a picture of it."""
    log, picture = folder / "net.json", folder / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars", "--enable-logging=stderr",
               f"--user-data-dir={folder}/profile", f"--log-net-log={log}", f"--window-size={width},3000",
               f"--screenshot={picture}", file.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text())
    kinds = {number: name for name, number in events["constants"]["logEventTypes"].items()}
    starts = [event for event in events["events"] if kinds[event["type"]] == "URL_REQUEST_START_JOB"]
    started = [event["params"] for event in starts if "url" in event.get("params", {})]
    # the browser's own requests (for the time, for updates) are nobody's
    asked = [one["url"] for one in started if one["initiator"] != "not an origin"]
    with Image.open(picture) as opened:
        return errors, list(dict.fromkeys(asked)), opened.copy()


def test_words_are_escaped_everywhere():
    sheet = Sheet(EVIL, [EVIL], [[EVIL]], [EVIL])
    picture = page.picture(b"x", "image/png", EVIL)
    found = Reader(page.whole(EVIL, [page.table(sheet), page.paragraph(EVIL, "note"), page.heading(EVIL, "x"), picture]))
    assert "script" not in found.tags
    assert found.tags.count("img") == 1
    assert found.text.count(EVIL) == 8
