"""Draw an SVG file in the style of docs/figures: colours for light and dark pages, text, boxes."""

from __future__ import annotations

from collections.abc import Iterable

CSS = """
  svg { --paper: #ffffff; --ink: #1b1b1b; --faint: #b5b5b5; --held: #0072b2; --sent: #b34700; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #1e2129; --ink: #e6e6e6; --faint: #60646e; --held: #56b4e9; --sent: #f0a24b; }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink); }
  .small { font-size: 12px; }
  .middle { text-anchor: middle; }
  .paper { fill: var(--paper); }
  .frame { fill: none; stroke: var(--faint); }
  .held { fill: var(--held); }
  .part { fill: url(#part); stroke: var(--held); }
  .stroke { stroke: var(--held); stroke-width: 3; }
  .sent { fill: none; stroke: var(--sent); stroke-width: 1.5; }
  .zero { stroke-dasharray: 5 3; }
  .name { fill: var(--sent); font-weight: 600; }
  .residual { fill: none; stroke: var(--ink); }
"""


def document(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """A whole SVG file of these sizes in pixels."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title><style>{CSS}</style>",
        '<defs><pattern id="part" width="7" height="7" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0V7" class="stroke"/></pattern></defs>',
        f'<rect class="paper" width="{width}" height="{height}" rx="6"/>',
        *body,
    ]
    return "\n".join([*lines, "</svg>", ""])


def text(x: float, y: float, words: str, kind: str = "small") -> str:
    """One line of text; `kind` holds its classes of the style."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "frame") -> str:
    """A rectangle; `kind` holds its classes of the style."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{kind}"/>'
