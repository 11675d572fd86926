"""A headless Chromium for tests, and what its pages complain of."""

import contextlib
import shutil

import pytest

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextlib.contextmanager
def chromium():
    """The browser; skips where there is none, or no playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(names)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page of one address, in a context of its own, that remembers what went wrong in it."""

    def __init__(self, browser, address, **options):
        self.address = address
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("response", self._look_at)

    def _look_at(self, response):
        if response.status >= 400:
            self.complaints.append(f"{response.status} {response.url}")

    def open(self, fragment=""):
        self.page.goto(f"{self.address}/{fragment}")
        return self.page

    def asked(self, path):
        """How many requests there were for a path."""
        return sum(request.url == f"{self.address}/{path}" for request in self.requests)

    def focus(self):
        """The id of the element that has the focus, or else its class."""
        return self.page.evaluate(
            "document.activeElement.id || document.activeElement.className || 'body'"
        )


@contextlib.contextmanager
def visiting(browser, address, *, clean=True, **options):
    """A Visit; at its end nothing may have gone wrong, and no other machine been asked."""
    visit = Visit(browser, address, **options)
    try:
        yield visit
        assert all(request.url.startswith(f"{address}/") for request in visit.requests)
        if clean:
            assert visit.complaints == []
    finally:
        visit.context.close()
