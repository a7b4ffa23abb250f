"""Diagnoses as pictures, and the page, which needs nothing but itself and shows text as text."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from flowmbpo.diagnostics.interface import SUMMARIES, Diagnosis
from flowmbpo.diagnostics.page import DPI, READINGS, SIZE, Page, Section, draw_png, write_picture
from flowmbpo.errors import StorageError

VOID = {"meta", "img"}
PNG = b"\x89PNG\r\n\x1a\nrest"


class Outline(HTMLParser):
    """Tags, attributes and text; complains of tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(html):
    found = Outline()
    found.feed(html)
    found.close()
    assert found.open == []
    return found


@pytest.fixture
def page():
    sections = [
        Section("compute", rows=[("model update", "3 <FLOPs> & more")], picture=PNG, reading="It costs <little>."),
        Section("gradient", error="the <environment> broke"),
    ]
    return Page("tiny on toy: diagnosis", "It is <b>fine</b>.\nSecond line.", True, [("task", "toy")], sections)


def test_page_is_well_formed_and_refers_to_nothing_outside_itself(page):
    found = outline(page.render())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    targets = [attrs[key] for _, attrs in found.tags for key in ("src", "href") if key in attrs]
    assert targets and all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not re.search(r"https?:|url\(|@import", page.render())


def test_text_is_shown_as_text(page):
    found = outline(page.render())
    text = "".join(found.text)
    assert (
        "It is <b>fine</b>." in text
        and "3 <FLOPs> & more" in text
        and "the <environment> broke" in text
        and "It costs <little>." in text
    )
    assert ("b", {}) not in found.tags


def test_pictures_lie_inside_and_links_lead_to_their_sections(page):
    found = outline(page.render())
    (image,) = [attrs for tag, attrs in found.tags if tag == "img"]
    assert base64.b64decode(image["src"].partition(",")[2]) == PNG
    anchors = {attrs["id"] for tag, attrs in found.tags if tag == "section"}
    assert {attrs["href"][1:] for tag, attrs in found.tags if tag == "a"} == anchors == {"compute", "gradient"}


@pytest.mark.parametrize(("healthy", "kind"), [(True, "verdict"), (False, "verdict bad"), (None, "verdict unknown")])
def test_verdict_comes_first_and_wears_its_colour(healthy, kind):
    html = Page("t", "the verdict", healthy, [], [Section("compute", rows=[("a", "b")])]).render()
    assert f'<p class="{kind}">the verdict</p>' in html
    assert html.index("the verdict") < html.index("<section")


def test_every_diagnostic_is_explained():
    assert READINGS.keys() == SUMMARIES.keys()
    html = Page("t", "v", None, [], [Section(name, rows=[("a", "b")]) for name in SUMMARIES]).render()
    text = "".join(outline(html).text)
    assert all(SUMMARIES[name] in text and READINGS[name] in text for name in SUMMARIES)


class Line(Diagnosis):
    """Draws a line of its colour."""

    name = "line"

    def __init__(self, colour):
        self.colour = colour

    def to_dict(self):
        return {}

    def rows(self):
        return []

    def draw(self, figure):
        figure.subplots().plot([0, 1], [0, 1], color=self.colour, linewidth=20)


WIDTH, HEIGHT = (round(inches * DPI) for inches in SIZE)


def test_picture_has_the_stated_size_and_what_was_drawn(tmp_path):
    (tmp_path / "p.png").write_bytes(draw_png(Line("red")))
    image = imread(tmp_path / "p.png")
    assert image.shape[:2] == (HEIGHT, WIDTH)
    assert (image[..., :3] == [1.0, 0.0, 0.0]).all(-1).any()


def test_several_pictures_stand_below_each_other(tmp_path):
    write_picture([Line("red"), Line("blue")], tmp_path / "both.png")
    image = imread(tmp_path / "both.png")
    assert image.shape[:2] == (2 * HEIGHT, WIDTH)
    red, blue = ((image[..., :3] == colour).all(-1).any(1) for colour in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    assert np.flatnonzero(red).max() < HEIGHT <= np.flatnonzero(blue).min()


def test_picture_that_the_disk_refuses_leaves_nothing(tmp_path):
    with pytest.raises(StorageError, match="absent"):
        write_picture([Line("red")], tmp_path / "absent" / "p.png")
    assert list(tmp_path.iterdir()) == []
