"""The page as HTML: all of it escaped, without a script, and with headers that let a browser load nothing else."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from techflow_provider.page.content import CHART_HEIGHT, Content, bars, duration, total


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.jinja")


def render(content: Content) -> tuple[str, dict[str, str]]:
    """Return the page and its headers."""
    nonce = secrets.token_urlsafe(16)
    page = _template().render(
        content=content, bars=bars, duration=duration, total=total, height=CHART_HEIGHT, nonce=nonce
    )
    return page, _headers(nonce)


def _headers(nonce: str) -> dict[str, str]:
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
