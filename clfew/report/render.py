"""Renders pages from templates. Names in them are untrusted: everything is escaped."""

from collections.abc import Callable
from typing import Any

import jinja2

from clfew.console import printable


def render_page(template: str, filters: dict[str, Callable[..., str]], **content: Any) -> str:
    """Returns a page. template: a file of `templates/`; what is put into one of HTML is escaped.
    filters: besides `printable`. content: the variables of the template, of which none may be
    missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clfew.report"),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(printable=printable, **filters)
    return environment.get_template(template).render(**content)
