"""A paper made of blocks, written as Markdown, as HTML or as a Word file in APA layout.

The Word file has a title page, an abstract on a page of its own, numbered sections, tables with
number and title above and horizontal rules only, figures with number above, references with hanging
indents, page numbers, double-spaced Times New Roman of 12 points and margins of an inch. It needs
the extra `report`.
"""

import base64
import html
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BadInput

SUFFIXES = (".md", ".html", ".docx")


class Heading(NamedTuple):
    """The heading of a section (level 1) or subsection (level 2); numbered by the writer."""

    text: str
    level: int = 1


class Paragraph(NamedTuple):
    """Running text."""

    text: str


class Table(NamedTuple):
    """Rows of text; numbered by the writer."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Figure(NamedTuple):
    """A PNG image; numbered by the writer."""

    title: str
    png: bytes
    note: str = ""


Block = Heading | Paragraph | Table | Figure


class Paper(NamedTuple):
    """The contents of a report; references are (text, address or "")."""

    title: str
    author: str
    date: str
    abstract: str
    keywords: str
    blocks: Sequence[Block]
    references: Sequence[tuple[str, str]]


def require(path: str | os.PathLike) -> None:
    """Refuse a file whose format cannot be written, before the work for it is done.

    Raises
    ------
    BadInput
        Another suffix than .md, .html or .docx, or python-docx is wanted and not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"--report {path}: must end with {', '.join(SUFFIXES)}, not {suffix!r}")
    if suffix == ".docx":
        try:
            _docx()
        except ImportError as error:
            raise BadInput(f"--report {path}: {error}") from None


def _docx():
    try:
        import docx
    except ImportError:
        raise ImportError("python-docx is missing: pip install 'llmds_nb[report]'") from None
    return docx


def write(paper: Paper, path: str | os.PathLike) -> None:
    """Write a paper in the format of the file's suffix.

    Figures of a Markdown file become files beside it, named after it.

    Raises
    ------
    BadInput
        As `require`, or the file cannot be written.
    """
    require(path)
    path = Path(path)
    try:
        {".md": _markdown, ".html": _html, ".docx": _word}[path.suffix.lower()](paper, path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _numbered(blocks: Sequence[Block]) -> Iterator[tuple[Any, str]]:
    """(block, its number as text) in order."""
    sections, parts, tables, figures = 0, 0, 0, 0
    for block in blocks:
        if isinstance(block, Heading) and block.level == 1:
            sections, parts = sections + 1, 0
            yield block, f"{sections}"
        elif isinstance(block, Heading):
            parts += 1
            yield block, f"{sections}.{parts}"
        elif isinstance(block, Table):
            tables += 1
            yield block, f"{tables}"
        elif isinstance(block, Figure):
            figures += 1
            yield block, f"{figures}"
        else:
            yield block, ""


# ---- Markdown -----------------------------------------------------------------------------------


def _markdown(paper, path):
    lines = [f"# {paper.title}", "", f"{paper.author}, {paper.date}", "", "## Abstract", ""]
    lines += [paper.abstract, "", f"*Keywords:* {paper.keywords}", ""]
    for block, number in _numbered(paper.blocks):
        if isinstance(block, Heading):
            lines += [f"{'#' * (block.level + 1)} {number}. {block.text}", ""]
        elif isinstance(block, Paragraph):
            lines += [block.text, ""]
        elif isinstance(block, Table):
            lines += [f"**Table {number}.** *{block.title}*", "", _row(block.head)]
            lines += [_row("---" for _ in block.head), *map(_row, block.rows), ""]
            lines += [f"*Note.* {block.note}", ""] if block.note else []
        else:
            image = path.with_name(f"{path.stem}-figure-{number}.png")
            image.write_bytes(block.png)
            lines += [
                f"**Figure {number}.** *{block.title}*",
                "",
                f"![{block.title}]({image.name})",
            ]
            lines += ["", *([f"*Note.* {block.note}", ""] if block.note else [])]
    lines += ["## References", ""]
    lines += [f"- {text} {address}".rstrip() for text, address in paper.references]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(cells):
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


# ---- HTML ---------------------------------------------------------------------------------------

_STYLE = """
body { font: 17px/1.6 Georgia, serif; max-width: 52em; margin: 3em auto; color: #222 }
h1, .by { text-align: center } table { border-collapse: collapse; font-size: 15px; width: 100% }
thead { border-top: 2px solid; border-bottom: 1px solid } tbody { border-bottom: 2px solid }
th, td { text-align: left; vertical-align: top; padding: .3em .6em .3em 0 } img { max-width: 100% }
caption { text-align: left } .note { font-size: 15px }
.refs p { padding-left: 2em; text-indent: -2em }
"""


def _html(paper, path):
    e = html.escape
    out = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{e(paper.title)}</title>"]
    out += [f"<style>{_STYLE}</style>", f"<h1>{e(paper.title)}</h1>"]
    out.append(f"<p class='by'>{e(paper.author)}<br>{e(paper.date)}</p>")
    out += ["<h2>Abstract</h2>", f"<p>{e(paper.abstract)}</p>"]
    out.append(f"<p><i>Keywords:</i> {e(paper.keywords)}</p>")
    for block, number in _numbered(paper.blocks):
        if isinstance(block, Heading):
            tag = f"h{block.level + 1}"
            out.append(f"<{tag}>{number}. {e(block.text)}</{tag}>")
            continue
        if isinstance(block, Paragraph):
            out.append(f"<p>{e(block.text)}</p>")
            continue
        if isinstance(block, Table):
            out.append(
                f"<table><caption><b>Table {number}</b><br><i>{e(block.title)}</i></caption>"
            )
            out.append(
                "<thead><tr>" + "".join(f"<th>{e(c)}</th>" for c in block.head) + "</tr></thead>"
            )
            cells = ("".join(f"<td>{e(str(c))}</td>" for c in row) for row in block.rows)
            out.append("<tbody>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</tbody></table>")
        else:
            data = base64.b64encode(block.png).decode()
            out.append(f"<p><b>Figure {number}</b><br><i>{e(block.title)}</i></p>")
            out.append(f"<img alt='{e(block.title)}' src='data:image/png;base64,{data}'>")
        if block.note:
            out.append(f"<p class='note'><i>Note.</i> {e(block.note)}</p>")
    out.append("<h2>References</h2><div class='refs'>")
    for text, address in paper.references:
        link = f" <a href='{e(address)}'>{e(address)}</a>" if address else ""
        out.append(f"<p>{e(text)}{link}</p>")
    path.write_text("\n".join([*out, "</div></html>"]) + "\n", encoding="utf-8")


# ---- Word ---------------------------------------------------------------------------------------


def _word(paper, path):
    document = _docx().Document()
    _layout(document)
    for _ in range(4):
        document.add_paragraph()
    _centred(document, paper.title, bold=True)
    document.add_paragraph()
    for line in (paper.author, paper.date):
        _centred(document, line)
    document.add_page_break()
    document.add_heading("Abstract", 1)
    document.add_paragraph(paper.abstract)
    keywords = document.add_paragraph()
    keywords.paragraph_format.first_line_indent = _inches(0.5)
    keywords.add_run("Keywords: ").italic = True
    keywords.add_run(paper.keywords)
    document.add_page_break()
    for block, number in _numbered(paper.blocks):
        if isinstance(block, Heading):
            document.add_heading(f"{number}. {block.text}", block.level)
        elif isinstance(block, Paragraph):
            paragraph = document.add_paragraph(block.text)
            paragraph.paragraph_format.first_line_indent = _inches(0.5)
        else:
            kind = "Table" if isinstance(block, Table) else "Figure"
            _caption(document, f"{kind} {number}", block.title)
            if kind == "Table":
                _word_table(document, block)
            else:
                document.add_picture(io.BytesIO(block.png), width=_inches(6.5))
            note = document.add_paragraph()
            if block.note:
                note.add_run("Note. ").italic = True
                note.add_run(block.note)
    document.add_page_break()
    document.add_heading("References", 1)
    for text, address in paper.references:
        paragraph = document.add_paragraph(f"{text} {address}".rstrip())
        paragraph.paragraph_format.left_indent = _inches(0.5)
        paragraph.paragraph_format.first_line_indent = _inches(-0.5)
    document.save(path)


def _inches(n):
    from docx.shared import Inches

    return Inches(n)


def _layout(document):
    """Margins, page numbers, and the styles of text and headings."""
    from docx.enum.text import WD_ALIGN_PARAGRAPH, WD_LINE_SPACING
    from docx.oxml.ns import qn
    from docx.shared import Pt, RGBColor

    section = document.sections[0]
    section.left_margin = section.right_margin = _inches(1)
    section.top_margin = section.bottom_margin = _inches(1)
    for name in ("Normal", "Heading 1", "Heading 2"):
        style = document.styles[name]
        style.font.name, style.font.size = "Times New Roman", Pt(12)
        style.font.color.rgb = RGBColor(0, 0, 0)
        fonts = style.element.get_or_add_rPr().get_or_add_rFonts()
        for kind in ("w:ascii", "w:hAnsi", "w:eastAsia", "w:cs"):
            fonts.set(qn(kind), "Times New Roman")
        for kind in ("w:asciiTheme", "w:hAnsiTheme", "w:eastAsiaTheme", "w:cstheme"):
            fonts.attrib.pop(qn(kind), None)
        style.paragraph_format.line_spacing_rule = WD_LINE_SPACING.DOUBLE
        style.paragraph_format.space_before = style.paragraph_format.space_after = Pt(0)
    document.styles["Heading 1"].paragraph_format.alignment = WD_ALIGN_PARAGRAPH.CENTER
    header = section.header.paragraphs[0]
    header.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    _field(header.add_run(), "PAGE")


def _field(run, code):
    """A field that Word computes, such as the page number."""
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    for kind in ("begin", None, "end"):
        element = OxmlElement("w:instrText" if kind is None else "w:fldChar")
        if kind is None:
            element.set(qn("xml:space"), "preserve")
            element.text = code
        else:
            element.set(qn("w:fldCharType"), kind)
        run._r.append(element)


def _centred(document, text, *, bold=False):
    from docx.enum.text import WD_ALIGN_PARAGRAPH

    paragraph = document.add_paragraph()
    paragraph.alignment = WD_ALIGN_PARAGRAPH.CENTER
    paragraph.add_run(text).bold = bold


def _caption(document, number, title):
    for text, style in ((number, "bold"), (title, "italic")):
        paragraph = document.add_paragraph()
        paragraph.paragraph_format.keep_with_next = True
        setattr(paragraph.add_run(text), style, True)


def _word_table(document, block):
    from docx.shared import Pt

    table = document.add_table(rows=1 + len(block.rows), cols=len(block.head))
    for row, cells in zip(table.rows, [block.head, *block.rows], strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            paragraph = cell.paragraphs[0]
            paragraph.paragraph_format.line_spacing = 1.0
            paragraph.add_run(str(text)).font.size = Pt(9)
    for row, sides in ((0, ("top", "bottom")), (-1, ("bottom",))):
        for cell in table.rows[row].cells:
            _rules(cell, sides)


def _rules(cell, sides):
    """Rules at these sides of a cell."""
    from docx.oxml import OxmlElement
    from docx.oxml.ns import qn

    borders = OxmlElement("w:tcBorders")
    for side in sides:
        line = OxmlElement(f"w:{side}")
        for name, value in (("val", "single"), ("sz", "8"), ("space", "0"), ("color", "000000")):
            line.set(qn(f"w:{name}"), value)
        borders.append(line)
    cell._tc.get_or_add_tcPr().append(borders)
