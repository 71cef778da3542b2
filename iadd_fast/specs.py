"""One grammar for naming a thing with options: ``name:key=value,key=value``."""

from __future__ import annotations

from iadd_fast import arguments

Value = str | int | float | bool


def parse_spec(text: str, argument: str) -> tuple[str, dict[str, Value]]:
    """``"convnet:width=32"`` -> ``("convnet", {"width": 32})``.

    Values become int, float or bool (``true``/``false``) where they read as one, else text.

    Raises:
        TypeError: ``text`` is none.
        ValueError: an option is not ``key=value``. The messages name ``argument``.
    """
    arguments.text(argument, text, "a text such as name:key=value")
    name, _, rest = text.partition(":")
    options: dict[str, Value] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not key or not equals:
            raise ValueError(f"{argument}: got option {arguments.shown(pair)}; takes key=value")
        options[key] = _value(value.strip())
    return name.strip(), options


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
