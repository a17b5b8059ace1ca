"""What the tests of the pages share: running one, and reading what it shows."""


def rerun(at):
    at.run()
    assert not at.exception
    return at


def control(at, kind: str, label: str):
    return next(widget for widget in at.get(kind) if widget.label.startswith(label))


def texts(at) -> str:
    """Everything that is said on the page, as Markdown."""
    shown = [*at.markdown, *at.caption, *at.info, *at.error, *at.warning, *at.success, *at.subheader]
    return "\n".join(element.value for element in shown)


def plain_texts(at) -> str:
    """The same without the backslashes that keep Markdown from reading what comes from files."""
    return texts(at).replace("\\", "")
