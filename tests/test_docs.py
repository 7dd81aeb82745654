"""What the documentation shows works as it stands there, and all that is public is in it."""

import pytest
from snippets import ROOT, Reader, blocks, leave_something_to_look_into, looks_like

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(DOCS)): path
    for path in sorted(DOCS.rglob("*.md"))
    if not path.relative_to(DOCS).parts[0].startswith(("benchmarks", "promises"))
}
RUN = {"python", "bash", "text"}
DIRECTIVES = {"{toctree}", "{eval-rst}", "{literalinclude}", "{image}"}
WITH_DOUBTS = {"howto/ambiguous.md"}
"""The pages that begin where a run was killed."""

SNIPPETS = [name for name, path in PAGES.items() if RUN & {block.kind for block in blocks(path)}]


def test_no_snippet_is_left_out():
    """A fence holds what is run, what it writes, or a directive: there are no other kinds."""
    found = [(str(block), block.kind) for path in PAGES.values() for block in blocks(path)]

    assert [(where, kind) for where, kind in found if kind not in RUN | DIRECTIVES] == []
    assert sum(kind in RUN for _, kind in found) >= 40


def test_every_fence_is_found():
    """The expression that finds the snippets misses none."""
    for name, path in PAGES.items():
        fences = sum(line.startswith("```") for line in path.read_text("utf-8").splitlines())

        assert fences == 2 * len(blocks(path)), name


@pytest.mark.parametrize("name", SNIPPETS)
async def test_the_snippets_of_a_page_run(name, on_the_sandbox, tmp_path):
    """One after the other, as a reader would, on the sandbox; each output is the one that is shown."""
    if name in WITH_DOUBTS:
        await leave_something_to_look_into(on_the_sandbox)
    reader = Reader(tmp_path, on_the_sandbox)
    await reader.read(PAGES[name])

    assert reader.ran > 0


@pytest.mark.parametrize(
    ("shown", "output", "alike"),
    [
        ("a\n", "a  \n\n", True),
        ("a ... c", "a b c", True),
        ("a\n...\nc", "a\nb\nb\nc", True),
        ("a", "a\nb", False),
        ("a.c", "abc", False),
        ("...", "", True),
    ],
)
def test_an_output_is_held_against_the_page(shown, output, alike):
    """Only dots stand for something else."""
    assert looks_like(shown, output) is alike
