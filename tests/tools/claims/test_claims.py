"""`llmds-nb claims`: each measurement is right, each claim can fail, each report format works."""

import json
import re
import sys
import zipfile

import numpy as np
import pytest

from llmds_nb.tools import paper
from llmds_nb.tools.claims import claims, growth, report as claims_report
from llmds_nb.tools.errors import BadInput
from llmds_nb.tools.main import main
from llmds_nb.tools.progress import Progress

N_CLAIMS = 5 + len(growth.CASES)


@pytest.fixture(scope="module")
def result():
    return claims.run(Progress(), smaller=20)


def test_every_promise_is_measured(result):
    names = [claim["name"] for claim in result["claims"]]
    assert len(names) == len(set(names)) == N_CLAIMS
    for claim in result["claims"]:
        assert all(claim[key] for key in ("claimed", "measured", "conditions"))
        assert type(claim["passed"]) is bool
    assert [one["name"] for one in result["growth"]] == list(growth.CASES)
    assert set(result["latencies_ms"]) == {"8", "16", "32"}
    json.dumps(result, allow_nan=False)


def test_claims_without_wall_time_hold_and_repeat(result):
    steady = ("memory", "throughput", "compression", "sketch")
    held = [claim for claim in result["claims"] if claim["name"].startswith(steady)]
    assert len(held) == 4 and all(claim["passed"] for claim in held)
    assert held[0] == claims.sharing(0)._asdict() != claims.sharing(1)._asdict()
    assert held[2] == claims.postings(0, 20)._asdict()
    assert held[3] == claims.sketch(0, 20)._asdict()


@pytest.mark.parametrize("seed", range(5))
def test_the_saving_equals_the_formula_for_every_seed(seed):
    claim = claims.sharing(seed)
    saved, formula = re.search(r"([\d,]+) of .* formula ([\d,]+)", claim.measured).groups()
    assert claim.passed and saved == formula


@pytest.mark.parametrize(
    ("name", "value", "measure"),
    [
        ("SAVED_PERCENT", (50.0, 60.0), lambda: claims.sharing(0)),
        ("THROUGHPUT", 1.01, lambda: claims.batching(0, {}, 20)),
        ("P95_MS", 15.0, lambda: claims.batching(0, {}, 20)),
        ("RECALL", 1.0, lambda: claims.search(0, 20)),
        ("SEARCH_P95_MS", 1e-6, lambda: claims.search(0, 20)),
        ("POSTING_BYTES", 0.5, lambda: claims.postings(0, 20)),
    ],
)
def test_a_claim_that_does_not_hold_fails(monkeypatch, name, value, measure):
    assert measure().passed
    monkeypatch.setattr(claims, name, value)
    assert not measure().passed


def test_a_sketch_that_counts_too_little_fails(monkeypatch):
    class Low(claims.CountMinSketch):
        def estimate(self, items):
            return super().estimate(items) - 1

    monkeypatch.setattr(claims, "CountMinSketch", Low)
    assert not claims.sketch(0, 20).passed


@pytest.mark.parametrize(("exponent", "passed"), [(0.15, True), (0.16, False), (-1.0, True)])
def test_an_exponent_above_its_limit_fails(exponent, passed):
    one = growth.Growth("x", "O(1)", "pages", [1, 2], [1.0, 1.0], exponent)
    assert one.passed is passed


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_fit_finds_the_exponent(exponent):
    sizes = np.array([10, 100, 1000])
    assert growth.fit(sizes, 3.0 * sizes**exponent) == pytest.approx(exponent)


def test_growth_is_measured_at_the_stated_sizes(monkeypatch):
    built, clock = [], [0]

    def build(n, rng):
        built.append(n)

        def call():
            clock[0] += 3_000 * n

        return call, 2

    monkeypatch.setattr(growth.time, "thread_time_ns", lambda: clock[0])
    monkeypatch.setitem(growth.CASES, "sum", ("O(n)", "numbers", [4_000, 40_000], build))
    one = growth.measure("sum", 0)
    assert built == one.sizes == [4_000, 40_000]
    assert one.us == [6_000, 60_000] and one.exponent == pytest.approx(1)
    assert growth.measure("sum", 0, smaller=40).sizes == [1000]  # both at the minimum


def test_the_command_prints_conditions_and_ends_with_one_when_a_claim_fails(
    capsys, monkeypatch, tmp_path
):
    cheap = {name: growth.CASES[name] for name in ("estimate by sketch",)}
    monkeypatch.setattr(growth, "CASES", cheap)
    monkeypatch.setattr(claims, "POSTING_BYTES", 0.1)
    path = tmp_path / "c.json"
    assert main(["claims", "--quick", "--json", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "llmds-nb: claim failed: compression of postings"
    assert "FAILED  compression of postings" in captured.out and "conditions" in captured.out
    assert "5 of 6 claims hold" in captured.out and "divided by 10" in captured.out
    assert max(map(len, captured.out.splitlines())) < 100
    assert len(json.loads(path.read_text())["claims"]) == 6


# ---- reports ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(result):
    return claims_report.paper(result)


def test_markdown_holds_tables_and_figures_beside_it(written, tmp_path):
    path = tmp_path / "report.md"
    paper.write(written, path)
    text = path.read_text()
    for part in ("# Measured Claims", "## Abstract", "## 1. Method", "### 2.2. Growth of Cost",
                 "**Table 2.** *Complexity", "## References", "Kwon, W."):  # fmt: skip
        assert part in text
    images = re.findall(r"!\[.*\]\((.*)\)", text)
    assert images == ["report-figure-1.png", "report-figure-2.png"]
    assert all((tmp_path / image).read_bytes()[:4] == b"\x89PNG" for image in images)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == N_CLAIMS + len(growth.CASES) + 4


def test_html_is_one_file_and_escapes_text(written, tmp_path):
    path = tmp_path / "report.html"
    paper.write(written._replace(title="a < b & c"), path)
    text = path.read_text()
    assert "<h1>a &lt; b &amp; c</h1>" in text and text.count("data:image/png;base64,") == 2
    assert text.count("<table>") == text.count("</table>") == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_word_has_the_apa_layout(written, tmp_path):
    docx = pytest.importorskip("docx")
    path = tmp_path / "report.docx"
    paper.write(written, path)
    document = docx.Document(path)
    texts = [p.text for p in document.paragraphs]
    assert texts[4] == written.title and document.paragraphs[4].runs[0].bold
    headings = [p.text for p in document.paragraphs if p.style.name.startswith("Heading")]
    assert headings == [
        "Abstract", "1. Method", "2. Results", "2.1. Claims and Verdicts", "2.2. Growth of Cost",
        "2.3. Latency of Micro-Batches", "2.4. Conditions", "3. Discussion", "References",
    ]  # fmt: skip
    assert len(document.tables) == 2 and len(document.inline_shapes) == 2
    assert [c.text for c in document.tables[1].rows[0].cells][:2] == ["Operation", "Bound"]
    normal = document.styles["Normal"]
    assert (normal.font.name, normal.font.size.pt) == ("Times New Roman", 12)
    assert document.sections[0].left_margin.inches == 1
    assert "PAGE" in document.sections[0].header._element.xml
    last = document.paragraphs[-1].paragraph_format
    assert last.first_line_indent.inches == -0.5 and last.left_indent.inches == 0.5
    assert "Table 1" in texts and "Figure 2" in texts
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None


def test_without_python_docx_one_line_names_the_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "docx", None)
    assert main(["claims", "--report", str(tmp_path / "r.docx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("python-docx is missing: pip install 'llmds_nb[report]'")
    with pytest.raises(ImportError, match="pip install"):
        paper._docx()
    assert not (tmp_path / "r.docx").exists()


def test_without_matplotlib_a_report_is_refused_at_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["claims", "--report", str(tmp_path / "r.md")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--report needs matplotlib: pip install 'llmds_nb[report]'")


def test_other_formats_are_refused(capsys, tmp_path, written):
    assert main(["claims", "--report", str(tmp_path / "r.pdf")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must end with .md, .html, .docx, not '.pdf'" in line
    with pytest.raises(BadInput, match="No such file"):
        paper.write(written, tmp_path / "none" / "r.md")
