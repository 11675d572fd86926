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
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BadInput, bad_input

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

    BadInput if its suffix is not .md, .html or .docx, or python-docx is wanted and not installed.
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

    Figures of a Markdown file become files beside it, named after it. BadInput as `require`, or if
    the file cannot be written.
    """
    require(path)
    path = Path(path)
    with bad_input(path):
        {".md": _markdown, ".html": _html, ".docx": _word}[path.suffix.lower()](paper, path)


def _numbered(blocks: Sequence[Block]) -> Iterator[tuple[Any, str]]:
    """(block, "1.2" of a heading, "Table 3", "Figure 4" or "") in order."""
    sections, parts, seen = 0, 0, Counter[str]()
    for block in blocks:
        kind = type(block).__name__
        if isinstance(block, Heading):
            sections, parts = (sections + 1, 0) if block.level == 1 else (sections, parts + 1)
            yield block, f"{sections}.{parts}" if parts else f"{sections}"
        elif isinstance(block, Paragraph):
            yield block, ""
        else:
            seen[kind] += 1
            yield block, f"{kind} {seen[kind]}"


def _markdown(paper, path):
    lines = [f"# {paper.title}", "", f"{paper.author}, {paper.date}", "", "## Abstract", ""]
    lines += [paper.abstract, "", f"*Keywords:* {paper.keywords}", ""]
    for block, label in _numbered(paper.blocks):
        if isinstance(block, Heading):
            lines += [f"{'#' * (block.level + 1)} {label}. {block.text}", ""]
        elif isinstance(block, Paragraph):
            lines += [block.text, ""]
        else:
            lines += [f"**{label}.** *{block.title}*", ""]
            if isinstance(block, Table):
                lines += map(_row, [block.head, ["---"] * len(block.head), *block.rows])
            else:
                image = path.with_name(f"{path.stem}-{label.lower().replace(' ', '-')}.png")
                image.write_bytes(block.png)
                lines.append(f"![{block.title}]({image.name})")
            lines += ["", *([f"*Note.* {block.note}", ""] if block.note else [])]
    lines += ["## References", ""]
    lines += [f"- {text} {address}".rstrip() for text, address in paper.references]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(cells):
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


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
    for block, label in _numbered(paper.blocks):
        if isinstance(block, Heading):
            tag = f"h{block.level + 1}"
            out.append(f"<{tag}>{label}. {e(block.text)}</{tag}>")
        elif isinstance(block, Paragraph):
            out.append(f"<p>{e(block.text)}</p>")
        else:
            title = f"<b>{label}</b><br><i>{e(block.title)}</i>"
            if isinstance(block, Table):
                out.append(f"<table><caption>{title}</caption>")
                out.append(f"<thead>{_html_row(block.head, 'th')}</thead>")
                rows = "".join(_html_row(row, "td") for row in block.rows)
                out.append(f"<tbody>{rows}</tbody></table>")
            else:
                data = base64.b64encode(block.png).decode()
                out.append(f"<p>{title}</p>")
                out.append(f"<img alt='{e(block.title)}' src='data:image/png;base64,{data}'>")
            if block.note:
                out.append(f"<p class='note'><i>Note.</i> {e(block.note)}</p>")
    out.append("<h2>References</h2><div class='refs'>")
    for text, address in paper.references:
        link = f" <a href='{e(address)}'>{e(address)}</a>" if address else ""
        out.append(f"<p>{e(text)}{link}</p>")
    path.write_text("\n".join([*out, "</div></html>"]) + "\n", encoding="utf-8")


def _html_row(cells, tag):
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"


def _word(paper, path):
    docx = _docx()
    inches = docx.shared.Inches
    document = docx.Document()
    _layout(document, docx)
    for _ in range(4):
        document.add_paragraph()
    _centred(document, docx, paper.title, bold=True)
    document.add_paragraph()
    for line in (paper.author, paper.date):
        _centred(document, docx, line)
    document.add_page_break()
    document.add_heading("Abstract", 1)
    document.add_paragraph(paper.abstract)
    keywords = document.add_paragraph()
    keywords.paragraph_format.first_line_indent = inches(0.5)
    keywords.add_run("Keywords: ").italic = True
    keywords.add_run(paper.keywords)
    document.add_page_break()
    for block, label in _numbered(paper.blocks):
        if isinstance(block, Heading):
            document.add_heading(f"{label}. {block.text}", block.level)
        elif isinstance(block, Paragraph):
            document.add_paragraph(block.text).paragraph_format.first_line_indent = inches(0.5)
        else:
            for text, style in ((label, "bold"), (block.title, "italic")):
                paragraph = document.add_paragraph()
                paragraph.paragraph_format.keep_with_next = True
                setattr(paragraph.add_run(text), style, True)
            if isinstance(block, Table):
                _word_table(document, docx, block)
            else:
                document.add_picture(io.BytesIO(block.png), width=inches(6.5))
            note = document.add_paragraph()
            if block.note:
                note.add_run("Note. ").italic = True
                note.add_run(block.note)
    document.add_page_break()
    document.add_heading("References", 1)
    for text, address in paper.references:
        paragraph = document.add_paragraph(f"{text} {address}".rstrip())
        paragraph.paragraph_format.left_indent = inches(0.5)
        paragraph.paragraph_format.first_line_indent = inches(-0.5)
    document.save(path)


def _layout(document, docx):
    """Margins, page numbers, and the styles of text and headings."""
    align, points = docx.enum.text.WD_ALIGN_PARAGRAPH, docx.shared.Pt
    section = document.sections[0]
    section.left_margin = section.right_margin = docx.shared.Inches(1)
    section.top_margin = section.bottom_margin = docx.shared.Inches(1)
    for name in ("Normal", "Heading 1", "Heading 2"):
        style = document.styles[name]
        style.font.name, style.font.size = "Times New Roman", points(12)
        style.font.color.rgb = docx.shared.RGBColor(0, 0, 0)
        fonts = style.element.get_or_add_rPr().get_or_add_rFonts()
        for kind in ("w:ascii", "w:hAnsi", "w:eastAsia", "w:cs"):
            fonts.set(docx.oxml.ns.qn(kind), "Times New Roman")
        for kind in ("w:asciiTheme", "w:hAnsiTheme", "w:eastAsiaTheme", "w:cstheme"):
            fonts.attrib.pop(docx.oxml.ns.qn(kind), None)
        style.paragraph_format.line_spacing_rule = docx.enum.text.WD_LINE_SPACING.DOUBLE
        style.paragraph_format.space_before = style.paragraph_format.space_after = points(0)
    document.styles["Heading 1"].paragraph_format.alignment = align.CENTER
    header = section.header.paragraphs[0]
    header.alignment = align.RIGHT
    # A field that Word computes: the number of the page.
    code = _element(docx, "w:instrText", **{"xml:space": "preserve"})
    code.text = "PAGE"
    begin, end = (_element(docx, "w:fldChar", **{"w:fldCharType": k}) for k in ("begin", "end"))
    header.add_run()._r.extend([begin, code, end])


def _element(docx, tag, **attributes):
    element = docx.oxml.OxmlElement(tag)
    for name, value in attributes.items():
        element.set(docx.oxml.ns.qn(name), value)
    return element


def _centred(document, docx, text, *, bold=False):
    paragraph = document.add_paragraph()
    paragraph.alignment = docx.enum.text.WD_ALIGN_PARAGRAPH.CENTER
    paragraph.add_run(text).bold = bold


def _word_table(document, docx, block):
    table = document.add_table(rows=1 + len(block.rows), cols=len(block.head))
    for row, cells in zip(table.rows, [block.head, *block.rows], strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            paragraph = cell.paragraphs[0]
            paragraph.paragraph_format.line_spacing = 1.0
            paragraph.add_run(str(text)).font.size = docx.shared.Pt(9)
    rule = {"w:val": "single", "w:sz": "8", "w:space": "0", "w:color": "000000"}
    for row, sides in ((0, ("top", "bottom")), (-1, ("bottom",))):
        for cell in table.rows[row].cells:
            borders = _element(docx, "w:tcBorders")
            borders.extend(_element(docx, f"w:{side}", **rule) for side in sides)
            cell._tc.get_or_add_tcPr().append(borders)
