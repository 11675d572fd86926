"""The README's table of model families; `python -m` this module writes it."""

from pathlib import Path

from .models import FAMILIES

README = Path(__file__).parents[3] / "README.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"


def table() -> str:
    """The table as Markdown, from the families that the tests go through."""
    same = ", ".join(name for name, family in FAMILIES.items() if not family.refused)
    lines = ["| families | greedy tokens |", "|---|---|", f"| {same} | identical |"]
    for name, family in FAMILIES.items():
        if family.refused:
            lines.append(f"| {name} | refused: {family.refused} |")
    return "\n".join(lines)


def parts(text: str) -> tuple[str, str, str]:
    """A README before its table, the table, and what comes behind it."""
    before, _, rest = text.partition(BEGIN)
    found, _, after = rest.partition(END)
    return before + BEGIN + "\n", found.strip("\n"), "\n" + END + after


if __name__ == "__main__":
    before, _, after = parts(README.read_text())
    README.write_text(before + table() + after)
