"What is drawn in a view, for tests of its numbers"
import re
from xml.etree import ElementTree


def rects(html):
    "The first SVG of a view, and the attributes of its rectangles"
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", html, re.S)[0])
    return svg, [r.attrib for r in svg.iter("rect")]
