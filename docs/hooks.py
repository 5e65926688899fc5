"""What MkDocs does besides: pages from files that live elsewhere in the repository, and links to them and to code."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"adapters/README.md": "adapters.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TAKEN = re.compile(r"<!-- of README.md: ([\w ]+) -->")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    os.environ["NO_MKDOCS_2_WARNING"] = "1"  # it is told to whoever pins the version, not to whoever builds
    return config


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of docs/ lead to the page that was made of the file; to code they become its name.

    What README.md holds between its markers stands where a page asks for it.
    """
    origin = {target: source for source, target in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def linked(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not (ROOT / path).exists():
            return match[0]  # it is wrong, and the build will say so
        inside = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None or files.get_file_from_path(inside) is None:
            return text if path in text else f"{text} (`{path}`)"
        here = posixpath.dirname(page.file.src_uri)
        return f"[{text}]({posixpath.relpath(inside, here or '.')}{anchor})"

    return LINK.sub(linked, TAKEN.sub(lambda match: of_readme(match[1]), markdown))


def of_readme(name: str) -> str:
    """Raises ValueError if the README has no such part."""
    text = (ROOT / "README.md").read_text()
    found = re.search(f"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no part between <!-- {name}: begin --> and <!-- {name}: end -->")
    return found[1]
