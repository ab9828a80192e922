"""The report: one page that needs nothing but the run's folder, and says what the folder says."""

import html.parser
import json
import re

import pytest

from privopt.report.charts import Line, Reference, line_chart, nice_ticks
from privopt.report.folder import RunFolderError, read_run
from privopt.report.page import render, write_report
from secagg.reductions.sums import Adaptive, peak_level
from tests.privopt import made_up_run

VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """Text and tags of a page; raises if an element is left open or closed twice."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.links = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def __str__(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def folder(tmp_path):
    return made_up_run.write(tmp_path / "run", stopped="clinic-2")


def test_the_page_is_whole_and_refers_to_nothing_outside(folder):
    text = write_report(folder).read_text()
    page = Page(text)
    assert page.links == []
    assert not re.search(r"https?:|url\(|@import|<script|<img|<iframe", text)


def test_the_page_tells_the_rule_that_bounds_follow(folder):
    page = str(Page(render(read_run(folder))))
    bound, most = Adaptive(initial=1.0, at_most=100.0), peak_level(1.0)
    assert "at least doubles when a value was clipped" in page
    assert bound.following(most) == 2.0
    assert bound.following(4 * most) == pytest.approx(2 * 4 ** (1 / 8))
    assert "twice the 8th root of the sum of the 8th powers" in page
    assert bound.following(peak_level(0.7) + peak_level(0.6)) == pytest.approx(
        2 * (0.7**8 + 0.6**8) ** (1 / 8), rel=1e-9
    )
    assert "falls by 3 % a round" in page
    assert bound.following(peak_level(0.4)) == 0.97
    assert "by half when it is more than 4 times as large" in page
    assert [bound.following(peak_level(peak)) for peak in (0.126, 0.124)] == [0.97, 0.5]
    assert "No bound leaves its declared limits" in page
    assert Adaptive(initial=1.0, at_most=1.5).following(most) == 1.5


def test_the_page_tells_the_figures_of_the_run(folder):
    page = str(Page(render(read_run(folder))))
    for figure in (
        "88.3 %",
        "95.0 % without privacy",
        "7.94",
        "budget 8 at δ = 1e-3",
        "1 aborted",
        "stopped",
    ):
        assert figure in page, figure
    assert "ε spent by round" in page
    assert "the average of the clients' updates" in page
    assert "which clients took part in a round" in page


def test_clients_that_spent_alike_share_a_line(folder):
    text = render(read_run(folder))
    assert "clinic-0 +6" in text
    assert re.search(r'class="end"[^>]*>clinic-2<', text)


def test_what_the_run_holds_is_escaped(folder):
    text = render(read_run(folder))
    assert "<in time>" not in text
    assert "&lt;in time&gt;" in text


def test_runs_without_privacy_or_masks_say_so(tmp_path):
    plain = made_up_run.write(tmp_path / "run", private=False, masks=False, aborted=())
    page = str(Page(render(read_run(plain))))
    assert "trained without differential privacy" in page
    assert "the server saw every client's vector" in page


def test_an_aborted_round_is_told_as_what_it_disclosed(tmp_path):
    masked = made_up_run.write(tmp_path / "masked")
    assert "the server learned nothing there" in render(read_run(masked))
    clear = render(read_run(made_up_run.write(tmp_path / "clear", masks=False, private=False)))
    assert "it saw what had arrived" in clear
    assert "counted as spent" not in clear


def test_a_run_that_was_never_measured_still_has_a_page(tmp_path):
    folder = made_up_run.write(tmp_path / "run", rounds=2, aborted=(1, 2))
    assert "nothing was measured" in str(Page(render(read_run(folder))))
    (folder / "metrics.jsonl").unlink()
    assert "0 rounds" in str(Page(render(read_run(folder))))


def test_a_last_line_that_a_kill_cut_short_is_left_out(folder):
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"round": 21, "sta')
    assert len(read_run(folder).rounds) == 20


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", None, "no readable run.json"),
        ("run.json", "{", "run.json which is damaged or edited"),
        ("run.json", "[]", "damaged or edited"),
        ("config.json", "\xff", "config.json"),
        ("metrics.jsonl", '{"round": 1}\n', "edited line 1"),
        ("metrics.jsonl", '{"round": "x", "status": "ok"}\n', "edited line 1"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_told_and_no_page_is_left(folder, name, content, says):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(RunFolderError, match=says):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_another_format_names_the_version_that_wrote_it(folder):
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "format": 2, "privopt_version": "9.1"}))
    with pytest.raises(RunFolderError, match=r"format 1.*privopt 9\.1"):
        read_run(folder)


def test_an_id_that_looks_like_a_path_is_never_followed(folder):
    run = json.loads((folder / "run.json").read_text())
    run["clients"][0]["id"] = "../run"
    (folder / "run.json").write_text(json.dumps(run))
    assert "../run" not in read_run(folder).ledgers


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 8, [0, 2, 4, 6, 8]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 3, [3, 4]),
        (0, 0, [0, 0.2]),
        (-1, 1.2, 8),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 9
    if isinstance(ticks, list) and low != high:
        assert found == ticks


def test_points_and_references_lie_where_the_axes_say():
    svg = line_chart(
        "T",
        [Line("a", [(1, 0.0), (2, 5.0), (3, 10.0)])],
        x_label="round",
        y_label="value",
        references=[Reference("half", 5.0)],
    )
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg)]
    reference = float(re.search(r'class="reference"[^>]* y1="([\d.]+)"', svg).group(1))
    assert heights[0] > heights[1] > heights[2]
    assert heights[1] == reference == pytest.approx((heights[0] + heights[2]) / 2)
    assert "round 2: 5" in svg


def test_a_chart_of_one_point_or_none_is_drawn_without_error():
    assert "<circle" in line_chart("T", [Line("a", [(1, 0.0)])], x_label="x", y_label="y")
    assert "nothing was measured" in line_chart(
        "T", [Line("a", [(1, float("nan"))])], x_label="x", y_label="y"
    )
