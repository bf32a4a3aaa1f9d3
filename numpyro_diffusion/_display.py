"""How priors and results show themselves: a line or some text in a shell, a table or that text in a notebook.

The facts of an object are gathered once (`_facts`), so that a shell and a notebook say the same. They may hold names
that a user gave, which HTML has to escape. Distributions name shapes and kinds only, since their arrays may be traced.
Named tuples cannot have a mixin among their bases, and get the same two methods from a decorator.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeVar

Shown = TypeVar("Shown", bound=type)


class Described:
    """A mixin for what a few facts describe."""

    @abstractmethod
    def _facts(self) -> Mapping[str, object]:
        """What is shown, by name; of distributions shapes and kinds only, as their arrays may be traced."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(v))}</td></tr>" for name, v in self._facts().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def evidence_of(result: Any) -> dict[str, object]:
    """The facts of a sampler's finished run."""
    return {"log_evidence": f"{result.log_evidence:.3f} ± {result.log_evidence_error:.3f} nats"}


def model_name(model: Any) -> str:
    """Of a NumPyro model."""
    return getattr(model, "__name__", type(model).__name__)


def shown_by_facts(cls: Shown) -> Shown:
    """A decorator of named tuples, which have no other base, with `_facts`."""
    return _showing(cls, Described.__repr__, Described._repr_html_)


def shown_as_text(cls: Shown) -> Shown:
    """A decorator of classes with a ``__str__``, whose objects show that wherever they are shown."""
    said: Any = cls.__str__
    return _showing(cls, said, lambda value: f"<pre>{escape(said(value))}</pre>")


def _showing(cls: Shown, text: Callable[[Any], str], page: Callable[[Any], str]) -> Shown:
    changed: Any = cls
    changed.__repr__, changed._repr_html_ = text, page
    return cls
