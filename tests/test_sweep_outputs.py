"""The files that come out of a sweep."""

import re

from ralu_cache.sweep.outputs import write_outputs
from tests.sweep_results import fabricated, write_results


def test_all_outputs_are_written_and_the_page_stands_alone(tmp_path):
    write_outputs(write_results(tmp_path, fabricated()), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.csv", "table.md", "pareto.png", "strip.png", "index.html"}
    html = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "out of &lt;memory&gt;" in html and "<memory>" not in html and "circle <0>" not in html
    assert "ralu-7x (only 12 pictures)" in html
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 22
