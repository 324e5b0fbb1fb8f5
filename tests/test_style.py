"""What no linter enforces: the form of messages, the sizes of files and functions, what lies in the top folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hvp_engine"
FILE_LINES, FUNCTION_LINES = 400, 60
SOURCES = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".cmake"}
TOP = {"__init__", "__main__", "config", "errors", "losses", "_native.pyi", "py.typed"}

PLACEHOLDER = "\0"  # stands for {...} in an f-string
START = re.compile(rf"[A-Z{PLACEHOLDER}]|[a-z_]+[=.(\[_]|(?P<word>\w+) ")
END = re.compile(rf"[.{PLACEHOLDER}]$")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def at(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def messages(expression: ast.expr) -> Iterator[str]:
    """The texts that an expression may give, as far as they stand in it; what does not is a placeholder."""
    match expression:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = list(messages(right))
            yield from (start + end for start in messages(left) for end in ends)
        case ast.IfExp(body=body, orelse=otherwise):
            yield from messages(body)
            yield from messages(otherwise)
        case _:
            yield PLACEHOLDER


def raised(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every message with which a file raises an error."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield from ((node.lineno, text) for text in messages(node.exc.args[0]))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end without the docstring: a call with many options has a long one, and should."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        assert function.body[0].end_lineno is not None
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def names_in_code(*paths: Path) -> set[str]:
    """Functions and their arguments: a message may begin with one, as in "steps must be positive."."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names |= {node.name, *(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))}
    return names


def is_sentence(text: str, names: set[str]) -> bool:
    """Whether a text begins with a capital, a placeholder or a name from the code, and ends with a full stop."""
    start = START.match(text)
    return start is not None and (start["word"] is None or start["word"] in names) and END.search(text) is not None


def test_sentences_are_told_from_fragments() -> None:
    names = {"steps"}
    for text in (
        "Give data.",
        "\0 is no block.",
        "steps=3 is too few.",
        "steps must be positive.",
        "torch.compile: \0",
    ):
        assert is_sentence(text, names), text
    for text in ("give data.", "Give data", "steps must be positive", "", f"the {PLACEHOLDER}."):
        assert not is_sentence(text, names), text


def test_messages_are_whole_sentences() -> None:
    found = [(path, line, text) for path in python_files("hvp_engine") for line, text in raised(path)]
    assert found
    names = names_in_code(*python_files("hvp_engine"))
    wrong = [
        f"{at(path, line)}: {text.replace(PLACEHOLDER, '{}')!r}"
        for path, line, text in found
        if not is_sentence(text, names)
    ]
    assert not wrong, "\n".join(["A message begins with a capital or a name and ends with a full stop:", *wrong])


def test_files_are_short() -> None:
    paths = [path for folder in ("hvp_engine", "csrc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*")]
    sizes = {path: len(path.read_text().splitlines()) for path in paths if path.suffix in SOURCES}
    assert sizes
    long = [f"{path.relative_to(ROOT)}: {size} lines" for path, size in sorted(sizes.items()) if size > FILE_LINES]
    assert not long, "\n".join([f"A file has at most {FILE_LINES} lines:", *long])


def test_functions_are_short() -> None:
    functions = [
        (path, node)
        for path in python_files("hvp_engine", "tests", "benchmarks")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert functions
    long = [
        f"{at(path, node.lineno)}: {node.name} has {size} lines"
        for path, node in functions
        if (size := code_lines(node)) > FUNCTION_LINES
    ]
    assert not long, "\n".join([f"A function has at most {FUNCTION_LINES} lines beside its docstring:", *long])


def test_the_top_folder_holds_only_what_users_import() -> None:
    files = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.is_file() and path.suffix != ".so"}
    assert files == TOP
