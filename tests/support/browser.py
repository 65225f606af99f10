"""Pages in a real browser, headless Chromium: what does not fit, and what axe-core finds."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=60000",
)
# a window is no narrower than 500 pixels, a frame is
_FRAME = """<!doctype html><html lang="en"><head><title>frame</title></head><body style="margin:0"><pre id="out"></pre>
<script>
addEventListener("message", e => {{ document.getElementById("out").textContent = JSON.stringify(e.data) }})</script>
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe></body></html>"""
_AXE = """<script>{axe}</script><script>addEventListener("load", async () => {{
  const root = document.documentElement
  const wide = root.scrollWidth > root.clientWidth
  const found = await axe.run(document)
  const faults = found.violations.map(v => [v.id, v.impact, v.nodes.map(n => n.html).slice(0, 3)])
  const links = [...document.querySelectorAll("[src],link[href]")].map(e => e.src || e.href)
  const remote = links.filter(l => /^https?:/.test(l))
  parent.postMessage({{faults, rules: found.passes.length, wide, remote}}, "*")
}})</script>"""


def opened(page: str, width: int, *, dark: bool, folder: Path) -> dict[str, Any]:
    """Opens a page in a frame of some width.

    Returns:
        `faults` that axe-core found, as [rule, impact, elements]; the number of `rules` passed; whether the page
        is too `wide`; what it fetches from `remote` hosts.
    """
    assert CHROMIUM is not None
    spec = find_spec("axe_core_python")
    assert spec is not None and spec.submodule_search_locations is not None
    axe = (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text()
    inside = page + _AXE.format(axe=axe.replace("</script", "<\\/script"))
    frame = folder / f"frame-{width}-{dark}.html"
    frame.write_text(_FRAME.format(width=width, page=html.escape(inside, quote=True)))
    command = [CHROMIUM, *_SWITCHES, f"--user-data-dir={folder / 'browser'}", f"--window-size={max(width, 500)},1000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", frame.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    told = dumped.split('<pre id="out">')[1].split("</pre>")[0]
    found: dict[str, Any] = json.loads(html.unescape(told))
    return found
