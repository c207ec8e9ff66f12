"""A page as its reader finds it."""

import re
from html.parser import HTMLParser

from clipfast.report.page import render
from clipfast.report.run_data import read_run


class Page(HTMLParser):
    """Its words, and what would make it more than one file."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.outside, self.charts, self.images = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, "unclosed"

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith("data:"):
                self.outside.append(value)
            if tag == "svg" and name == "aria-label":
                self.charts.append(value)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_startendtag(self, tag, attributes):
        """Nothing: SVG's."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.outside += re.findall(r"url\(|@import", data)
        elif not self.open or self.open[-1] != "script":
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def page_of(folder):
    return Page(render(read_run(folder)))
