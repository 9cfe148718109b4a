"""The documents tell the truth: commands, files and links in them exist."""

import re
from pathlib import Path

import pytest
import typer

from maectl.cli import app
from maectl.recipe import shipped

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "adapters" / "README.md"]


def test_the_readme_lists_every_command():
    commands = set(typer.main.get_command(app).commands)
    assert set(re.findall(r"^\| `maectl (\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)) == commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_recipes_named_in_the_documents_exist():
    said = {name for page in PAGES for name in re.findall(r"--recipe ([a-z][\w-]*)(?![\w./])", page.read_text())}
    assert said <= set(shipped())


def test_the_readme_has_one_test_command_for_ci():
    lines = (ROOT / "README.md").read_text().splitlines()
    start, end = lines.index("<!-- test-command -->"), lines.index("<!-- end -->")
    command = [line for line in lines[start + 1 : end] if not line.startswith("```")]
    assert len(command) == 1
    assert "pytest" in command[0]
    assert ".ci/run" not in command[0]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
