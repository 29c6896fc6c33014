"""A page is one file: nothing in its data can run, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from tests.pages.conftest import HOSTILE
from vlmkit.pages.document import make_document


def made(**changes) -> str:
    settings = {"name": "inspect", "title": "T & <t>", "heading": "H & <h>", "data": {"told": {"text": HOSTILE}}}
    return make_document(**(settings | changes))


def test_data_comes_back_as_it_was_and_ends_no_script():
    page = made()
    block = re.search(r'<script type="application/json" id="data-told">(.*?)</script>', page, flags=re.DOTALL)
    assert json.loads(block[1]) == {"text": HOSTILE}
    assert not re.search("[<>&]|[^\x00-\x7f]", block[1])
    assert page.count("</script>") == 2
    assert "window.pwned" in block[1]


def test_titles_are_escaped():
    page = made()
    assert "<title>T &amp; &lt;t&gt;</title>" in page
    assert "<h1>H &amp; &lt;h&gt;</h1>" in page


def test_the_policy_allows_this_script_and_this_style_only():
    page = made()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for element in ("script", "style"):
        content = re.search(rf"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "img-src data: file: 'self';" in made(files_too=True)


def test_no_page_names_anything_to_fetch():
    for name in ("inspect", "report", "compare"):
        page = made(name=name, parts=("cases",), data={})
        assert not re.search(r"""(src|href)=["'](?!#)""", page)
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page)
