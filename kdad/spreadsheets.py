"""Tables as CSV that spreadsheets show and do not run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a cell begins with that a spreadsheet computes, as OWASP lists them


def as_csv(table: "pandas.DataFrame", separator: str = ",") -> str:
    """A table as CSV without its index. Text that a spreadsheet would run as a formula begins with a single quote.

    Names of files and classes come from other people, and `=HYPERLINK(…)` is a valid one. Numbers stay numbers.
    """
    words = table.select_dtypes(exclude=["number", "bool"])  # the others keep their precision
    return table.assign(**words.map(harmless)).rename(columns=harmless).to_csv(index=False, sep=separator)


def harmless(cell: Any) -> Any:
    """A cell as `as_csv` writes it: text that would be run as a formula is quoted, all else stays."""
    if not isinstance(cell, str) or _is_number(cell):
        return cell
    text = cell.replace("\r", "\\r")  # not quoted by `csv` before Python 3.13, where it ended the row
    return f"'{text}" if cell.startswith(FORMULA) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
