"""A real headless browser, where there is one. It is offline but for the pages served here."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 600  # of seconds that a free machine needs
HARNESS = Path(__file__).with_name("_browser.html")


def browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def variant(page: str, kind: str) -> str:
    """The page without its content policy, so that what it refers to is really asked for; "dark" and "print" as such pages."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    if kind == "dark":
        return page.replace("(prefers-color-scheme: dark)", "(min-width: 0)")
    if kind == "print":
        return page.replace("@media screen", "@media not all").replace("@media print", "@media all")
    return page


@contextmanager
def served(pages: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Pages by path -> (address, the paths that were asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path[1:])
            found = pages.get(asked[-1].split("?")[0])
            body = (found or "").encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    finally:
        server.shutdown()
        server.server_close()


def command(profile: Path, *options: str) -> list[str]:
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    plain = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    return [browser(), *plain, *quiet, offline, f"--user-data-dir={profile}", *options]


def look(pages: dict[str, str], frames: list[tuple[str, int]], profile: Path) -> list[dict]:
    """What the harness finds in each (page, width)."""
    with served(pages | {"harness": HARNESS.read_text(encoding="utf-8")}) as (address, _):
        query = ";".join(f"{name},{width}" for name, width in frames)
        done = subprocess.run(
            command(profile, "--dump-dom", f"{address}harness?{query}"),
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def printed(page: str, out: Path, profile: Path) -> tuple[bytes, list[str]]:
    with served({"page": page}) as (address, asked):
        options = (
            f"--print-to-pdf={out}",
            "--no-pdf-header-footer",
            "--generate-pdf-document-outline",
            f"{address}page",
        )
        subprocess.run(command(profile, *options), capture_output=True, timeout=TIMEOUT_S, check=True)
    return out.read_bytes(), asked
