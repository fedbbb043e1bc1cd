"""A griffe extension: `Example:` in a docstring is a section of examples, as `Examples:` is.

griffe takes `Example:` for a note, and the prompts of a doctest in it for quotations.
"""

import re

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section before griffe parses the docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Renames `Example:` in the docstring of an object."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
