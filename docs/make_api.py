"""Writes `docs/api.md`, what `import kdad` offers, from the docstrings: `python -m docs.make_api`."""

import inspect
from pathlib import Path

import kdad
from kdad.files import write_text

PAGE = Path(__file__).parent / "api.md"
HEAD = (
    "# What `import kdad` offers\n\n"
    "Made by `python -m docs.make_api` from the docstrings. These names are stable; what lies deeper may move."
)


def main() -> None:
    """Write the page."""
    write_text(PAGE, page())


def page() -> str:
    """The page as Markdown: one section per name of `kdad.__all__`."""
    return "\n\n".join([HEAD, *(_section(name, getattr(kdad, name)) for name in kdad.__all__)]) + "\n"


def _section(name: str, thing: object) -> str:
    parts = [f"## `{name}{_signature(thing)}`", f"From `{thing.__module__}`.", _text(thing)]
    if inspect.isclass(thing):
        parts += [_member(name, key, member) for key, member in vars(thing).items() if _is_public(key, member)]
    return "\n\n".join(parts)


def _is_public(key: str, member: object) -> bool:
    return not key.startswith("_") and inspect.getdoc(_function(member)) is not None and callable(_function(member))


def _function(member: object) -> object:
    """What a class member runs: of a property or a class method, the function behind it."""
    if isinstance(member, property):
        return member.fget
    return getattr(member, "__func__", getattr(member, "func", member))


def _member(owner: str, key: str, member: object) -> str:
    signature = "" if isinstance(member, property) or hasattr(member, "attrname") else _signature(_function(member))
    return f"### `{owner}.{key}{signature}`\n\n{_text(_function(member))}"


def _signature(thing: object) -> str:
    """Names and defaults of the parameters; their types stand in the code."""
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return ""
    shown = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(thing).parameters.items()
        if name not in ("self", "cls")
    ]
    return str(inspect.Signature(shown))


def _text(thing: object) -> str:
    """The docstring, with its sections of arguments and errors as code blocks, so that they keep their shape."""
    head, *rest = (inspect.getdoc(thing) or "").split("\n\n")
    blocks = [f"```text\n{part}\n```" if part.split("\n")[0].endswith(":") else part for part in rest]
    return "\n\n".join([head, *blocks])


if __name__ == "__main__":
    main()
