"""Draws the pictures of ``docs/gallery.md`` by the code of that page.

``python docs/draw_gallery.py`` runs its blocks in order. A picture named in the page is the figure
that the block before it has made.
"""

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).parent / "gallery.md"
BLOCK_OR_IMAGE = re.compile(
    r"^```python\n(.*?)^```$|^!\[[^]]*\]\((.*?)\)$", re.MULTILINE | re.DOTALL
)


def main() -> None:
    namespace: dict[str, Any] = {}
    for code, image in BLOCK_OR_IMAGE.findall(PAGE.read_text(encoding="utf-8")):
        if code:
            exec(code, namespace)
            continue
        plt.savefig(PAGE.parent / image, dpi=100, metadata={"Software": None})
        plt.close()
        print(image)


if __name__ == "__main__":
    main()
