"""The worked example of docs/more.md gives the numbers that stand below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "more.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="outside of a checkout")
def test_the_worked_example(capsys) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(program, str(PAGE), "exec"), {})
    printed = [
        (line.split()[0], [float(number) for number in re.findall(r"-?\d+\.\d+", line)])
        for line in capsys.readouterr().out.splitlines()
    ]
    stated = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1] in ("`paper`", "`released`"):
            numbers = re.findall(r"[-+]?\d+(?:\.\d+)?", " ".join(cells[2:]))
            stated.append((cells[1].strip("`"), [float(number) for number in numbers]))
    assert printed == stated
    assert len(stated) == 4
