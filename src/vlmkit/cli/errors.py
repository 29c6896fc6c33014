"""`python -m vlmkit.cli.errors`: every message that a user can meet, with its remedy, read out of the code.

The source is parsed, nothing is imported. A message is the text that an error of the `VlmkitError` family is made with. A
`ValueError` counts where it is told to a user: in what constructors check, and where somebody catches it to raise one of
the family. What stands in braces in the code becomes a placeholder; the clause that says what to do is told apart from
what is wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

FAMILY_ROOT = "VlmkitError"
SETTINGS_ERROR = "ValueError"
ROOMS = {
    "cli": "Commands",
    "config": "Configuration",
    "data": "Data",
    "processing": "Images, videos and templates",
    "model": "Models",
    "training": "Training",
    "sweeps": "Sweeps",
    "generation": "Generation",
    "evaluation": "Evaluation",
    "pages": "Pages",
    "demo": "Embedded checkpoints and data",
}
"""Rooms of the code in the order of the page, with their headings."""

HEAD = """\
# Errors and what to do

<!-- the output of python -m vlmkit.cli.errors; a test compares -->

A command says what is wrong, where, and what to do, without a traceback, and exits with status 1 (75 where a signal told a
run to leave and it can be resumed). This page lists every such message as it stands in the code; ‹name› stands for what is
put in. A message about a row begins with its file and row, `train.jsonl:17:`. A traceback is a fault of vlmkit: please
report it.

A mistyped key, group choice or name is answered with the nearest that exists. A value that cannot be is told with its key
first: `optim: OptimizerPlan refused its settings: optim.lr must not be negative, got -1`.
"""

_NOT_TOLD = {("evaluation", "scorers")}
"""What is raised here says that an answer cannot be read, and is counted, not told."""
_VERBS = """
    Add Check Choose Compare Convert Copy Crop Delete Download Drop Empty Evaluate Export Fill Freeze Give Install Keep
    Leave Look Lower Make Mend Move Name Pip Put Raise Read Reinstall Remove Rename Replace Report Resume Reword Run Save Say Scale
    Set Share Start Take Train Unfreeze Update Use Wait Write
"""
_BORDER = re.compile(r"(?:(?<=[.?!;:])\s+|(?<=›)\s+(?=[A-Z])|,\s+(?=wanted )|\n\s*)(?:or\s+|so\s+|and\s+)?")
"""Where one clause ends and the next begins."""
_BIDS = re.compile(
    rf"(?:[Pp]lease )?(?:{'|'.join((_VERBS + _VERBS.lower()).split())})\b(?![.=:])|Did you mean|Where that is wanted"
    r"|There (?:are|is): |[Kk]nown(?: \w+)?: |[Ss]upported: |‹remedy›"
)
"""A clause that tells what to do, or what there is to choose from."""
_DEMANDS = re.compile(r"wanted |(?:It|The row|the row|A source) has:? |.*?\b(?:must|needs|goes with)\b")
"""A clause that tells what must be; it counts where no other does."""
_HANDS_ON = re.compile(
    r"^(?:(?:‹\w+›|[\w.]+): )?(?:‹[^›]+› refused its settings: )?‹(?:error|told|finding|done|text|wrong|complain|interrupted)›(?:\n‹cause›)?\.?$"
)
"""A text that only hands on another message, which the table has itself."""

_SUPER = "super().__init__"

Scope = ast.FunctionDef | ast.Module


@dataclass(frozen=True, kw_only=True, order=True)
class Message:
    """One message as the code has it.

    Attributes:
        room: First folder, or file, under the package.
        finding: What is wrong.
        remedy: What to do; empty where the message does not say.
        place: File and line, for whoever mends the message.
    """

    room: str
    finding: str
    remedy: str
    place: str


def messages(package: Path | None = None) -> list[Message]:
    """Every message of the package, by room and text; one that stands in several places of a room is told once.

    Args:
        package: Directory of the code; None: this one.
    """
    root = package or Path(__file__).resolve().parents[1]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))}
    family = _family(trees.values())
    told = _told_to_users(trees.values(), family)
    found: dict[tuple[str, str], Message] = {}
    for path, tree in trees.items():
        place = path.relative_to(root)
        if place.parts[:2] in _NOT_TOLD:
            continue
        room = place.parts[0].removesuffix(".py")
        for scope, call in _constructions(tree, {*family, SETTINGS_ERROR}):
            if _name_of(call) == SETTINGS_ERROR and getattr(scope, "name", "") not in told:
                continue
            for text in _texts(call.args[0], scope):
                if not _HANDS_ON.match(text):
                    finding, remedy = split(text)
                    message = Message(room=room, finding=finding, remedy=remedy, place=f"{place}:{call.lineno}")
                    found.setdefault((room, text), message)
    return sorted(found.values())


def split(text: str) -> tuple[str, str]:
    """What is wrong, and what to do about it; the second is empty where the text says nothing of the kind."""
    begins = [0, *(match.end() for match in _BORDER.finditer(text))]
    for says in (_BIDS, _DEMANDS):
        begin = next((place for place in begins if says.match(_clause(text, place))), None)
        if begin is not None:
            finding = re.sub(r"(?:,? or|[,;])$", "", text[:begin].rstrip())
            whole = not finding or finding.endswith(":")  # a key alone says nothing: the whole text is the finding
            remedy = re.sub(r",? (?:got|found) ‹.*", "", text[begin:].strip(), flags=re.DOTALL)
            return (text.strip() if whole else finding), remedy
    return text.strip(), ""


def _clause(text: str, begin: int) -> str:
    border = _BORDER.search(text, begin)
    return text[begin : border.start()] + " " if border else text[begin:]


def page() -> str:
    """The page of the documentation."""
    lines = [HEAD.rstrip()]
    found = messages()
    for room, heading in ROOMS.items():
        rows = [f"| {_cell(one.finding)} | {_cell(_sentence(one.remedy))} |" for one in found if one.room == room]
        if rows:
            lines += ["", f"## {heading}", "", "| message | what to do |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    """With a capital, where it begins with a word and not with a key or a command."""
    first = re.match(r"[a-z]+(?=:? )", text)
    return text[:1].upper() + text[1:] if first and first[0] != "pip" else text


def _cell(text: str) -> str:
    """Plain text as the cell of a table."""
    return re.sub(r"([\\|<>*_`\[\]~])", r"\\\1", text).replace("\n", "<br>")


# --- which errors, and where they are made ----------------------------------------------------------------------------


def _family(trees: Iterable[ast.Module]) -> set[str]:
    """Names of the classes that descend from the root of the family."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    family = {FAMILY_ROOT}
    while more := {name for name, above in bases.items() if above & family} - family:
        family |= more
    return family


def _constructions(node: ast.AST, names: set[str], scope: Scope | None = None) -> Iterator[tuple[Scope, ast.Call]]:
    """Calls of these names (also as `super()` in one of them) that have an argument, each with the function around it."""
    around = node if isinstance(node, ast.FunctionDef | ast.Module) else scope
    assert around is not None
    if isinstance(node, ast.ClassDef) and node.name in names:
        names = names | {_SUPER}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and _name_of(child) in names and child.args:
            yield around, child
        yield from _constructions(child, names, around)


def _name_of(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(attr="__init__", value=ast.Call(func=ast.Name(id="super"))):
            return _SUPER
        case _:
            return ""


def _told_to_users(trees: Iterable[ast.Module], family: set[str]) -> set[str]:
    """Names of functions whose `ValueError` a user gets to read.

    They are the constructors, what is called in a `try` that turns one into an error of the family, and what these call.
    """
    calls: dict[str, set[str]] = {}
    told = {"__init__", "__post_init__"}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef):
            calls.setdefault(node.name, set()).update(_called(node.body))
        if isinstance(node, ast.Try) and any(_turns(handler, family) for handler in node.handlers):
            told |= _called(node.body)
    while more := {name for caller in told for name in calls.get(caller, ())} - told:
        told |= more
    return told


def _called(body: list[ast.stmt]) -> set[str]:
    return {_name_of(node) for part in body for node in ast.walk(part) if isinstance(node, ast.Call)} - {""}


def _turns(handler: ast.ExceptHandler, family: set[str]) -> bool:
    """Whether a handler catches `ValueError` and tells it as an error of the family."""
    caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set[str]()
    return SETTINGS_ERROR in caught and bool(_called(handler.body) & family)


# --- what they say ----------------------------------------------------------------------------------------------------


def _texts(node: ast.expr, scope: Scope) -> list[str]:
    """The texts that an expression can become: several where a choice stands in it.

    Raises:
        TypeError: it cannot be seen what is said.
    """
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(chosen) for chosen in product(*(_texts(part, scope) for part in parts))]
        case ast.FormattedValue(value=ast.Call(func=ast.Name(id="_nearest" | "_nearest_key" | "_hint"))):
            return [" Did you mean ‹the nearest›?"]
        case ast.FormattedValue(value=value):
            return _put_in(value, scope)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a, b in product(_texts(left, scope), _texts(right, scope))]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body, scope), *_texts(orelse, scope)]
        case ast.Name(id=name) if values := _assigned(name, scope):
            return [text for value in values for text in _texts(value, scope)]
        case _:
            return [f"‹{_placeholder(node)}›"]


def _put_in(value: ast.expr, scope: Scope) -> list[str]:
    """What is put into braces: the texts to choose from where it is one of two, else a placeholder."""
    match value:
        case ast.IfExp(body=ast.Constant(value=str(one)), orelse=ast.Constant(value=str(other))):
            return [f"{one}/{other}" if one and other else f"({one or other})"]
        case ast.Name(id="remedy" | "told" as name) if values := _assigned(name, scope):
            return [text for one in values for text in _texts(one, scope)]
        case _:
            return [f"‹{_placeholder(value)}›"]


def _assigned(name: str, scope: Scope) -> list[ast.expr]:
    """What a function gives a name, where that is text."""
    return [
        node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
        and isinstance(node.value, ast.JoinedStr | ast.IfExp | ast.BinOp | ast.Constant)
    ]


def _placeholder(value: ast.expr) -> str:
    """A word for what is put in: the last name of an attribute, what a function is called with, else the first name."""
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Call(func=ast.Name(id="len"), args=[counted]):
            return f"number of {_placeholder(counted)}"
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_]):
            return key
        case ast.Call(func=ast.Name(id="map" | "getattr"), args=[_, last]):
            return _placeholder(last)
        case ast.Call(args=[first, *_]) if not isinstance(first, ast.Constant):
            return _placeholder(first)
        case ast.Call(func=ast.Attribute(attr="getcwd")):
            return "directory"
        case ast.Call(func=ast.Attribute(value=of)) | ast.BinOp(left=of) | ast.BoolOp(values=[of, *_]):
            return _placeholder(of)
        case ast.Subscript(value=of, slice=ast.Constant(value=str(key))):
            return key if key.isidentifier() else _placeholder(of)
        case ast.Subscript(value=of) | ast.GeneratorExp(elt=of) | ast.IfExp(body=of) | ast.Starred(value=of):
            return _placeholder(of)
        case _:
            return next((_placeholder(n) for n in ast.walk(value) if isinstance(n, ast.Attribute | ast.Name)), "...")


if __name__ == "__main__":
    print(page(), end="")
