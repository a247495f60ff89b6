r"""Equations as MathML, made when the site is built: a browser fetches nothing from elsewhere for them.

Inline `$...$` and blocks fenced as `math`, which GitHub typesets too, go through pymdownx.arithmatex; what it leaves,
`\(...\)` and `\[...\]`, becomes MathML Core by math-core. An equation that does not parse ends the build. The font is
STIX Two Math (SIL Open Font License 1.1) as ziamath carries it, cut down to the symbols of formulas.
"""

import re
from html import unescape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexToMathML
from mkdocs.structure.files import File, Files
from pymdownx.arithmatex import arithmatex_fenced_format

ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
CONVERTER = LatexToMathML()
FONT = Path(str(getattr(find_spec("ziamath"), "origin", None))).parent / "fonts" / "STIXTwoMath-Regular.ttf"
SYMBOLS = [
    *range(0x20, 0x7F),  # Latin, upright
    *range(0x391, 0x3F7),  # Greek, upright
    *range(0x1D434, 0x1D468),  # Latin, italic
    *range(0x1D6E2, 0x1D71C),  # Greek, italic
    *range(0x2190, 0x2300),  # arrows and operators
    *(0x2C6, 0x210E, 0x2026, 0x22EF, 0x27FA),  # hat, italic h, dots, long double arrow
]


def on_config(config: Any) -> Any:  # noqa: ANN401
    """Read fences named math as equations."""
    fence = {"name": "math", "class": "arithmatex", "format": arithmatex_fenced_format(mode="generic", tag="div")}
    config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", []).append(fence)
    return config


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the font."""
    font, woff = TTFont(FONT), BytesIO()
    cut = subset.Subsetter(subset.Options(layout_features=["*"]))
    cut.populate(unicodes=SYMBOLS)
    cut.subset(font)
    font.flavor = "woff"
    font.save(woff)
    files.append(File.generated(config, "assets/stix-two-math.woff", content=woff.getvalue()))
    return files


def on_page_content(html: str, **_: Any) -> str:  # noqa: ANN401
    """The page with its equations as MathML."""

    def equation(match: re.Match[str]) -> str:
        block = match[2] == "["
        mathml = CONVERTER.convert_with_local_state(unescape(match[3]).strip(), displaystyle=block)
        return f'<div class="equation">{mathml}</div>' if block else mathml

    return ARITHMATEX.sub(equation, html)
