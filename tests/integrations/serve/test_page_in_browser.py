"""The page in headless Chromium: keyboard alone, hostile documents, no server."""

import contextlib
import json
import re

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.serve import Settings, create_app

from .browser import chromium, visiting
from .conftest import httpx  # noqa: F401  (skips without the extra)
from .running import running

api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    "<svg onload=window.pwned=1> &lt;b&gt; ]]> --> ${window.pwned=1} \u202eabc\u202c \x00\x1b[31m"
)
NAME = "<img src=x onerror=pwned=1>"
TEXTS = {
    "router": "Reset the router: hold the button.",
    "invoice": "Invoices stand on the billing page.",
    "password": "Reset a password: a link comes by mail.",
    HOSTILE: f"Reset {HOSTILE}",
    "wide": "Reset " + "w" * 400,
    "long": "Reset. " + "All of the manual. " * 300,
}


def letters(texts):
    return np.array([[t.count("r") + 1, t.count("s") + 0.5, len(t)] for t in texts], np.float32)


def manuals():
    pipeline = RetrievalPipeline(encoder=letters)
    described = [{"year": 2018 + i, "topic": f"t{i}"} for i in range(len(TEXTS))]
    described[3] |= {NAME: {NAME: [HOSTILE]}}
    pipeline.add(list(TEXTS), list(TEXTS.values()), metadata=described)
    return pipeline


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def served():
    """(pipeline, address) of a server without keys."""
    pipeline = manuals()
    with running(create_app(pipeline)) as address:
        yield pipeline, address


def search(page, text):
    page.fill("#query", text)
    page.press("#query", "Enter")
    page.wait_for_selector(".halves:not(:empty)")


def shows(page, id_, pattern):
    """Waits until the text of an element fits. (`wait_for_function` is against the policy.)"""
    api.expect(page.locator(f"#{id_}")).to_have_text(re.compile(pattern), timeout=10_000)


def test_a_search_by_keyboard_alone(browser, served):
    pipeline, address = served
    with visiting(browser, address) as visit:
        page, press = visit.open(), lambda *keys: [page.keyboard.press(key) for key in keys]
        assert visit.focus() == "query"
        page.keyboard.type("reset router")
        press("Enter")
        page.wait_for_selector(".halves:not(:empty)")
        shows(page, "message", r"^\d hits in [\d.]+ ms\.$")
        whys = pipeline.explain("reset router", pipeline.search("reset router").ids)
        heads = page.locator(".head")
        assert heads.count() == len(whys)
        for i, why in enumerate(whys):
            text = heads.nth(i).text_content()
            dense, words = why.weight * why.dense_score, (1 - why.weight) * why.sparse_score
            for number in (why.score, dense, words):
                assert f"{number:.3f}" in text
        press("ArrowDown")
        assert "head" in visit.focus()
        press("Enter")
        assert heads.nth(0).get_attribute("aria-expanded") == "true"
        opened = page.locator(f"#{heads.nth(0).get_attribute('aria-controls')}")
        assert opened.is_visible()
        cells = opened.locator("th, td").all_text_contents()
        for value in (f"{whys[0].distance:.4f}", f"{whys[0].bm25:.4f}", f"{whys[0].score:.3f}"):
            assert value in " ".join(cells)
        for term in whys[0].terms:
            place = cells.index(term.term)
            shown = [str(term.count), str(term.tf), str(term.df), f"{term.idf:.3f}"]
            assert cells[place + 1 : place + 6] == [*shown, f"{term.score:.3f}"]
        press("ArrowDown", "ArrowDown", "ArrowUp")
        assert page.evaluate("document.activeElement === document.querySelectorAll('.head')[1]")
        press("Home", "Escape")  # closes it
        assert opened.is_hidden() and "head" in visit.focus()
        press("Escape")
        assert visit.focus() == "query"
        press("ArrowDown", "End", "ArrowDown")
        assert page.evaluate(
            "document.activeElement === [...document.querySelectorAll('.head')].at(-1)"
        )
        press("/")
        assert visit.focus() == "query" and page.input_value("#query") == "reset router"
        page.keyboard.type("no such word")  # "/" has selected the text
        press("Enter")
        page.wait_for_selector("text=No word of the query", state="attached")
        press("Escape", "Enter")
        shows(page, "message", "^Type what")
        assert heads.count() == 0


def test_tab_comes_by_everything_and_shows_where_it_is(browser, served):
    _, address = served
    with visiting(browser, address) as visit:
        page = visit.open()
        search(page, "reset")
        places = []
        for _ in range(5):
            page.keyboard.press("Tab")
            width = "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
            assert page.evaluate(width) >= 2
            places.append(visit.focus())
        assert places[1:] == ["where", "count", "head", "head"]
        unnamed = page.evaluate(
            """[...document.querySelectorAll('input, button')].filter(one =>
            !(one.labels?.length || one.textContent.trim())).map(one => one.id)"""
        )
        assert unnamed == []
        for name in ("message", "connection"):
            assert page.get_attribute(f"#{name}", "role") == "status"
        for name in ("problem", "where-error", "key-error"):
            assert page.get_attribute(f"#{name}", "role") == "alert"


def test_what_documents_hold_stays_text(browser, served):
    _, address = served
    with visiting(browser, address) as visit:
        page = visit.open()
        search(page, f"reset {HOSTILE}")
        ids = page.locator(".id").all_text_contents()
        place = [text.split(". ", 1)[1] for text in ids].index(HOSTILE)
        hit = page.locator(".hit").nth(place)
        assert hit.locator(".text").text_content() == TEXTS[HOSTILE]
        names = hit.locator("dt").all_text_contents()
        values = hit.locator("dd").all_text_contents()
        assert names[-1] == NAME and json.loads(values[-1]) == {NAME: [HOSTILE]}
        assert page.locator("main :is(script, img, svg, iframe, b)").count() == 0
        assert page.evaluate("window.pwned") is None
        page.reload()  # the query stands in the address
        page.wait_for_selector(".halves:not(:empty)")
        assert page.input_value("#query").startswith("reset <script>")
        assert page.evaluate("window.pwned") is None
        # The policy refuses what would make markup of strings, and scripts of other kinds.
        refused = page.evaluate(
            """(() => { try { document.body.innerHTML = '<b>x</b>'; return false }
            catch (error) { return error instanceof TypeError } })()"""
        )
        assert refused
        visit.complaints.clear()


def test_filters_and_what_is_wrong_with_them(browser, served):
    _, address = served
    with visiting(browser, address, clean=False) as visit:
        page = visit.open()
        search(page, "reset")
        before = visit.asked("search")
        for text, told in (('{"year": ', "not JSON"), ("[1]", "object"), ("3", "object")):
            page.fill("#where", text)
            page.press("#where", "Enter")
            assert told in page.inner_text("#where-error")
            assert page.get_attribute("#where", "aria-invalid") == "true"
            assert visit.focus() == "where"
        page.fill("#where", "")
        page.fill("#count", "0")
        page.press("#count", "Enter")
        assert "from 1 to" in page.inner_text("#where-error") and visit.focus() == "count"
        assert visit.asked("search") == before and visit.complaints == []
        page.fill("#count", "3")
        page.fill("#where", '{"year": {"$near": 3}}')
        page.press("#where", "Enter")
        shows(page, "where-error", ".")
        assert "$near" in page.inner_text("#where-error") and visit.focus() == "where"
        assert page.locator(".hit").count() == 0
        assert all("400" in text for text in visit.complaints)
        visit.complaints.clear()
        page.fill("#where", '{"year": {"$gte": 2020}}')
        page.press("#where", "Enter")
        page.wait_for_selector(".halves:not(:empty)")
        assert page.inner_text("#where-error") == ""
        assert page.get_attribute("#where", "aria-invalid") == "false"
        assert page.locator(".hit").count() == 3
        page.fill("#where", '{"year": 1999}')
        page.press("#where", "Enter")
        shows(page, "message", "fits")
        assert visit.complaints == []


def test_a_server_that_ends_is_told(browser):
    with contextlib.ExitStack() as serving:
        address = serving.enter_context(running(create_app(manuals())))
        with visiting(browser, address, clean=False) as visit:
            page = visit.open()
            search(page, "reset")
            serving.close()
            page.press("#query", "Enter")
            shows(page, "problem", ".")
            assert page.inner_text("#problem") == "The server does not answer."
            assert "does not answer" in page.inner_text("#connection")
            assert page.locator(".hit").count() == 0


def test_a_server_that_comes_back_is_seen_and_not_pressed_meanwhile(browser, served):
    _, address = served
    with visiting(browser, address, clean=False) as visit:
        visit.page.clock.install()
        page = visit.open()
        shows(page, "connection", "^connected$")
        page.route("**/stats", lambda route: route.abort("connectionrefused"))
        before = visit.asked("stats")
        for _ in range(30):
            page.clock.run_for(2000)
            page.evaluate("fetch('favicon.svg').then(answer => answer.text())")
        assert "does not answer" in page.inner_text("#connection")
        assert before + 3 <= visit.asked("stats") <= before + 7  # after 2, 4, 8, ... s
        page.unroute("**/stats")
        page.clock.run_for(31_000)
        shows(page, "connection", "^connected$")


def test_the_key_is_asked_for_and_kept_in_memory_only(browser):
    settings = Settings(api_keys=("the right one",))
    app = create_app(manuals(), settings=settings)
    with running(app) as address, visiting(browser, address, clean=False) as visit:
        page = visit.open()
        assert visit.focus() == "key" and page.get_attribute("#key", "type") == "password"
        assert visit.asked("stats") == 0 and visit.complaints == []
        page.keyboard.type("a wrong one")
        page.keyboard.press("Enter")
        shows(page, "key-error", ".")
        assert "wrong" in page.inner_text("#key-error") and visit.focus() == "key"
        visit.complaints.clear()
        page.fill("#key", "the right one")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-form", state="hidden")
        assert visit.focus() == "query"
        search(page, "reset")
        assert visit.complaints == []
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""] and visit.context.cookies() == []
        assert "right" not in page.content() and "right" not in page.url
        page.reload()  # with a search in the address, which waits for the key
        assert page.is_visible("#key-form") and page.locator(".hit").count() == 0
        assert visit.complaints == []
        page.fill("#key", "the right one")
        page.press("#key", "Enter")
        page.wait_for_selector(".halves:not(:empty)")


CONTRAST = """() => {
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    const [r, g, b] = parts.map(v => v / 255).map(v =>
      v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (one) => {
    const color = getComputedStyle(one).backgroundColor;
    return /, 0\\)$/.test(color) ? back(one.parentElement) : color;
  };
  const poor = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !one.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(back(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(one.outerHTML.slice(0, 80));
  }
  return poor;
}"""


def test_everything_is_readable_light_and_dark_wide_and_narrow(browser, served):
    _, address = served
    with visiting(browser, address) as visit:
        page = visit.open()
        search(page, "reset")
        page.locator(".head").last.click()
        page.locator(".head").first.click()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == []
            back = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", back)[:3])) > 384) == (scheme == "light")
        for width in (1200, 320):
            page.set_viewport_size({"width": width, "height": 700})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_long_texts_are_shown_in_part(browser, served):
    _, address = served
    with visiting(browser, address) as visit:
        page = visit.open()
        search(page, "reset manual")
        hit = page.locator(".hit", has_text="All of the manual")
        assert "more characters" in hit.locator(".text").text_content()
        hit.locator(".head").click()
        assert hit.locator(".text").text_content() == TEXTS["long"]


def test_the_figures_follow_the_server_and_do_not_press_it(browser, served):
    pipeline, address = served
    with visiting(browser, address) as visit:
        visit.page.clock.install()
        page = visit.open()
        shows(page, "connection", "^connected$")
        assert page.inner_text("#m-documents") == str(len(pipeline))
        search(page, "reset router")
        before = visit.asked("stats")
        for _ in range(15):
            page.clock.run_for(2000)
            page.evaluate("fetch('favicon.svg').then(answer => answer.text())")
        assert before + 3 <= visit.asked("stats") <= before + 16
        assert re.fullmatch(r"[\d.,]+ ms", page.inner_text("#m-p50"))
        assert re.fullmatch(r"[\d.,]+ ms", page.inner_text("#m-p99"))
        assert float(page.inner_text("#m-rate")) > 0


def test_large_ids_keep_their_digits(browser):
    pipeline = RetrievalPipeline(encoder=letters)
    ids = [2**63 - 1, 2**53 + 1, 7]
    pipeline.add(ids, ["red fox", "red sea", "red sky"])
    with running(create_app(pipeline)) as address, visiting(browser, address) as visit:
        page = visit.open()
        search(page, "red")
        shown = {text.split(". ")[1] for text in page.locator(".id").all_text_contents()}
        assert shown == set(map(str, ids))
        assert page.locator(".halves:not(:empty)").count() == 3
