"""The committed cards as a browser shows them: headless Chromium, light and dark."""

import json
import re
import shutil
import subprocess

import pytest
from markdown_it import MarkdownIt

from hf_pe.hub.merge import split
from tests.hub.test_model_cards import CARDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = """<!doctype html><meta charset="utf-8"><style>
:root {{ color-scheme: light dark }} body {{ font: 16px sans-serif; max-width: 60rem; margin: 2rem auto }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid gray; padding: .3rem .6rem }}
img {{ max-width: 100% }} pre {{ overflow-x: auto; border: 1px solid gray; padding: 1rem }}
</style>{body}<pre id="found"></pre><script>
window.onload = () => {{
  const count = (s) => document.querySelectorAll(s).length
  const corner = (image) => {{
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d")
    pen.drawImage(image, 0, 0)
    return [...pen.getImageData(1, 1, 1, 1).data]
  }}
  document.getElementById("found").textContent = JSON.stringify({{
    tables: count("table"), headings: count("h2"), cells: count("td"),
    images: [...document.images].map((i) => [i.getAttribute("src"), i.naturalWidth, corner(i)]),
    wide: document.documentElement.scrollWidth > window.innerWidth,
    text: document.body.innerText,
  }})
}}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs headless Chromium (Debian package chromium)")
@pytest.mark.parametrize("folder", CARDS, ids=lambda p: p.name)
def test_a_browser_shows_all_of_the_card(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    _, body, _ = split((folder / "README.md").read_text("utf-8"))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    page = tmp_path / "card.html"
    page.write_text(PAGE.format(body=html), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--window-size=1100,2600"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=4000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    raw = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    elements = json.loads(raw.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert elements["tables"] >= 1
    assert elements["cells"] >= 40
    assert elements["headings"] >= 6
    assert {image for image, _, _ in elements["images"]} == {p.name for p in folder.glob("*.png")}
    assert all(width > 300 for _, width, _ in elements["images"]), "a picture is missing"
    assert all(corner == [255, 255, 255, 255] for *_, corner in elements["images"]), "unreadable on a dark page"
    assert not elements["wide"], "the page scrolls sideways"
    assert not re.search(r"hf_pe:(begin|end|front)", elements["text"]), "marks are not for readers"
    assert "|" not in re.sub(r"`[^`]*`", "", elements["text"]), "a table was not read as one"
