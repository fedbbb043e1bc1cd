"""Writes api.md and how-it-works.md from the docstrings: python docs/build.py [FOLDER]."""

import re
import sys
from pathlib import Path

import griffe

HERE = Path(__file__).parent
MADE = "*Made by `make docs` from the docstrings: change those, not this page.*"
TITLES = {"parameters": "Args", "attributes": "Attributes", "raises": "Raises"}
OPTIONS = {"returns_multiple_items": False, "warnings": False}
KERASIM = griffe.load(HERE.parent / "kerasim", docstring_parser="google", docstring_options=OPTIONS)
HOUSE = (HERE.parent / "tests" / "test_house.py").read_text("utf-8")
ORDER = re.findall(r'^ORDER = """(.*?)__main__', HOUSE, re.S | re.M)[0].split()


def names(of) -> dict:
    """Returns what is public in a module, by its `__all__`, or in a class."""
    if of.is_module:
        found = {n: of[n].final_target if of[n].is_alias else of[n] for n in of.exports or ()}
        # A name that is public in another module is documented there.
        return {
            n: x for n, x in found.items() if x.module is of or n not in (x.module.exports or ())
        }
    found = {**of.inherited_members, **of.members}
    told = {n: x for n, x in found.items() if x.docstring or n.isupper()}
    return {n: x for n, x in told.items() if not re.match("_[^_]", n)}


# `kerasim --help` describes `cli`; modules with an underscore are private.
LIBRARY = [module for module in ORDER if module != "cli" and not module.startswith("_")]
PUBLIC = {f"{module}.{name}": x for module in LIBRARY for name, x in names(KERASIM[module]).items()}
CLASSES = {path.partition(".")[2]: path for path, item in PUBLIC.items() if item.is_class}
INNER = {path: names(item) if item.is_class else {} for path, item in PUBLIC.items()}
KNOWN = {*PUBLIC, *(f"{path}.{name}" for path, inner in INNER.items() for name in inner)}


def linked(text: str, at: str, page: str = "") -> str:
    """Makes links of names in backticks, each looked up where it stands, then further out."""

    def link(found):
        within = at.split(".")
        places = [".".join([*within[:n], found[1]]) for n in range(len(within), -1, -1)]
        known = [place for place in [*places, CLASSES.get(found[1])] if place in KNOWN]
        return f"[{found[0]}]({page}#{known[0]})" if known and known[0] != at else found[0]

    return re.sub(r"(?<!\*)`([A-Za-z][\w.]*)(\([^`]*\))?`", link, text)


def rendered(docstring, at: str, page: str = "") -> str:
    """Returns a docstring as Markdown, section by section."""
    parts = []
    for section in docstring.parsed if docstring else ():
        kind, value = section.kind.value, section.value
        if kind in TITLES:
            named = [f"`{x.annotation}`" if kind == "raises" else f"**`{x.name}`**" for x in value]
            texts = [x.description.replace("\n", "\n  ") for x in value]
            rows = [f"- {name}: {text}" for name, text in zip(named, texts, strict=True)]
            parts += [f"**{TITLES[kind]}**", "\n".join(rows)]
        elif kind == "returns":
            parts += ["**Returns**", value[0].description]
        else:  # a Reference is an admonition to griffe
            parts += [value] if kind == "text" else [f"**{section.title}**", value.description]
    return linked("\n\n".join(parts), at, page)


def entry(path: str, item, level: int = 3) -> str:
    """Returns what the API page says of a function, class, method, property or constant."""
    if item.is_attribute:
        known = f": {item.annotation}" if item.docstring else f" = {item.value}"
        shown = f"{item.name}{known}"
    else:
        shown = item.signature(return_type=item.is_function)
        shown = shown or f"class {item.name}({', '.join(map(str, item.bases))})"
        own = "|".join(parameter.name for parameter in item.parameters)
        if len(shown) > 88:
            shown = re.sub(rf"([(,]) ?(?=\**({own})(: |=|,|\)))", r"\1\n    ", shown)
    head = f'{"#" * level} <a id="{path}"></a>`{path}`'
    inner = [entry(f"{path}.{name}", x, level + 1) for name, x in INNER.get(path, {}).items()]
    text = [head, f"```python\n{shown}\n```", rendered(item.docstring, path), *inner]
    return "\n\n".join(filter(None, text))


def main(folder: Path) -> None:
    """Writes both pages."""
    api, told = ["# API of kerasim", MADE, ""], ["# How kerasim works", MADE]
    overview = rendered(KERASIM.docstring, "", "api.md")
    told.append(re.sub(rf"`({'|'.join(ORDER)})`", r"[`\1`](#\1)", overview))
    for module in ORDER:
        own = {path: item for path, item in PUBLIC.items() if path.startswith(f"{module}.")}
        listed = linked(", ".join(f"`{path.partition('.')[2]}`" for path in own), module)
        head, says = f'## <a id="{module}"></a>`{module}`', KERASIM[module].docstring
        api[2] += f"- [`{module}`](#{module}): {listed}\n"
        api += [head, f"{says.lines[0]} [How it works.](how-it-works.md#{module})"]
        api += [entry(path, item) for path, item in own.items()]
        told += [head, rendered(says, module, "api.md")]
        inside = [x for _, x in sorted(KERASIM[module].modules.items()) if not x.is_alias]
        texts = [rendered(x.docstring, module, "api.md").replace("\n", "\n  ") for x in inside]
        rows = [f"- `{module}.{x.name}`: {text}" for x, text in zip(inside, texts, strict=True)]
        told += ["\n".join(rows)] if rows else []
        told.append(f"[All names of `{module}`](api.md#{module})")
    (folder / "api.md").write_text("\n\n".join(api) + "\n", "utf-8")
    (folder / "how-it-works.md").write_text("\n\n".join(told) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
