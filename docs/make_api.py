"""Write docs/api.md from the signatures and docstrings of socklb's public names; with --check, only compare it.

The sources are parsed, not imported: annotations stand as they were written, named tuples have the types that type
checkers see, and every Python version makes the same text.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_API = Path(__file__).resolve().parent / "api.md"
_PACKAGE = Path(__file__).resolve().parents[1] / "socklb" / "__init__.py"
_TOPICS = {
    "Find": "find_sockets live_cookies InetSocket",
    "Destroy": "destroy_sockets Report Outcome Counts UnsearchedNamespace",
    "Terminate": "terminate_connections TerminationLoop Pass",
    "Filters and conditions": "SocketFilter Condition dst src dport sport device mark cgroup autobound uid pid stalled "
    "idle",
    "Backends": "Backend BackendState BackendTable Instance",
    "Namespaces": "discover_namespaces NetworkNamespace",
    "Conntrack": "find_flows Flow",
    "Reverse NAT": "RevNatMaps RevNatEntry",
    "What this kernel can do": "probe Support",
    "States": "TcpState state_mask states_in STATE_FILTER_TCP STATE_FILTER_UDP",
    "Errors": "SocklbError MalformedMessage KernelError NotPermitted NotSupported AuditError "
    "UnboundedFilter FilterSyntaxError RunStopped",
}
_CONSTRUCTORS = ("__init__", "__new__")


class Statement(NamedTuple):
    """A statement of a module, with its docstring: the one inside, the string below it, or the comment beside it."""

    module: Path
    node: Any  # an ast.stmt
    name: str  # of what it defines, or ""
    doc: str

    def source(self, part: ast.AST | None) -> str:
        return (part and ast.get_source_segment(_text(self.module), part)) or ""


def make_api() -> str:
    """The text of api.md. Raises LookupError if a public name has no docstring, or no topic in `_TOPICS`."""
    names = ast.literal_eval(_find(_PACKAGE, "__all__").node.value)
    public = {name: _find(_PACKAGE, name) for name in names if name != "__version__"}
    stray = {*public} ^ {*" ".join(_TOPICS.values()).split()}
    if stray:
        raise LookupError(f"public without a topic, or in a topic and not public: {', '.join(sorted(stray))}")
    undocumented = [name for name, found in public.items() if not (found and found.doc)]
    if undocumented:
        raise LookupError(f"without a docstring: {', '.join(undocumented)}")
    parts = ["# API reference", "Made from the sources by `python3 docs/make_api.py`."]
    parts.append(ast.get_docstring(ast.parse(_text(_PACKAGE))) or "")
    for topic, in_topic in _TOPICS.items():
        parts += [f"## {topic}", *(part for name in in_topic.split() for part in _entry(public[name], public))]
    shown = (member for statement in public.values() for member in _members(statement, public))
    aliases = sorted({alias for member in shown for alias in _aliases(member, public)})
    return "\n\n".join([*parts, "## Other names in signatures", _code("\n".join(aliases))]) + "\n"


def _entry(defined: Statement, public: dict[str, Statement]) -> Iterator[str]:
    """The paragraphs about a public name."""
    members = {member.name: member for member in _members(defined, public)}  # the last one overrides
    calls = [members.pop(name) for name in (*_CONSTRUCTORS, defined.name) if name in members]
    heads = [_signature(call, defined.name) for call in calls]
    if isinstance(defined.node, ast.ClassDef):
        bases = ", ".join(base for base in _bases(defined) if base in public or not _find(defined.module, base))
        heads.insert(0, f"class {defined.name}({bases})" if bases else f"class {defined.name}")
    yield f"### {defined.name}"
    yield _code("\n\n".join(heads))
    yield "\n\n".join(dict.fromkeys(part.doc for part in (defined, *calls) if part.doc))
    if members:
        yield "\n".join(_item(member, defined.name) for member in members.values())


def _item(member: Statement, owner: str) -> str:
    signature = " ".join(_signature(member, owner).split()).replace("( ", "(").replace(", )", ")")
    return textwrap.indent(f"- `{signature}`" + (f" - {member.doc}" if member.doc else ""), "  ")[2:]


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _signature(defined: Statement, owner: str) -> str:
    """How a function is called, what type an attribute or a property has; any other statement as it is."""
    node, name = defined.node, defined.name
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):  # of self
        return f"{name}: {defined.source(node.annotation)}"
    if not isinstance(node, ast.FunctionDef):
        return defined.source(node)
    decorators = [defined.source(decorator) for decorator in node.decorator_list]
    if "property" in decorators:
        return f"{name}: {defined.source(node.returns)}"
    lines = _text(defined.module).splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    head = textwrap.dedent("\n".join(lines)).rstrip(":")
    if name in _CONSTRUCTORS:
        name, head = owner, head[: head.rindex(")") + 1]
    elif "classmethod" in decorators or "staticmethod" in decorators:
        name = f"{owner}.{name}"
    return re.sub(r"def \w+\((\s*)((self|cls)(,\s*|(?=\))))?", rf"{name}(\1", head)


def _members(defined: Statement, public: dict[str, Statement]) -> Iterator[Statement]:
    """What a class has, with what it has from bases that are not public; of anything else, that itself."""
    if not isinstance(defined.node, ast.ClassDef):
        yield defined
        return
    for base in _bases(defined):
        private = None if base in public else _find(defined.module, base)
        if private:
            yield from _members(private, public)
    for statement in _statements(defined.module, defined.node.body):
        if statement.name in _CONSTRUCTORS or (statement.name and not statement.name.startswith("_")):
            yield statement
        if statement.name == "__init__":
            for inner in _statements(defined.module, statement.node.body):
                if isinstance(inner.node, ast.AnnAssign) and not inner.name.startswith("_"):
                    yield inner._replace(doc="")  # a comment there is for whoever reads the code


def _bases(defined: Statement) -> list[str]:
    return [base.id for base in defined.node.bases if isinstance(base, ast.Name)]


def _aliases(defined: Statement, public: dict[str, Statement]) -> Iterator[str]:
    """What a signature names and has no entry, as it is defined: aliases of types, constants, and those in them."""
    for field in ("args", "returns", "annotation", "value"):
        for part in ast.walk(getattr(defined.node, field, None) or ast.Pass()):
            alias = None if not isinstance(part, ast.Name) or part.id in public else _find(defined.module, part.id)
            if alias and isinstance(alias.node, ast.Assign):
                yield alias.source(alias.node)
                yield from _aliases(alias, public)


@cache
def _text(module: Path) -> str:
    return module.read_text(encoding="utf-8")


@cache
def _find(module: Path, name: str) -> Any:
    """The statement that defines what a module calls so, or None; what type checkers see comes first."""
    for statement in _statements(module, ast.parse(_text(module)).body):
        if isinstance(statement.node, ast.ImportFrom) and statement.node.level:
            for alias in statement.node.names:
                if name == (alias.asname or alias.name):
                    path = module.parents[statement.node.level - 1].joinpath(*(statement.node.module or "").split("."))
                    return _find(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"), alias.name)
        elif statement.name == name:
            return statement
    return None


def _statements(module: Path, body: list[Any]) -> Iterator[Statement]:
    """A body statement by statement, those of an `if` among them."""
    for node, below in zip(body, [*body[1:], None]):
        if isinstance(node, ast.If):
            yield from _statements(module, [*node.body, *node.orelse])
            continue
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            doc = ast.get_docstring(node) or ""
        elif isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            doc = str(below.value.value)
        else:
            doc = _text(module).splitlines()[node.end_lineno - 1][node.end_col_offset :].partition("# ")[2]
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", node)
        name = next((getattr(target, field) for field in ("name", "id", "attr") if hasattr(target, field)), "")
        yield Statement(module, node, name, doc)


def main() -> None:
    made = make_api()
    if "--check" not in sys.argv[1:]:
        _API.write_text(made, encoding="utf-8")
    elif _API.read_text(encoding="utf-8") != made:
        sys.exit("docs/api.md differs from the sources: run python3 docs/make_api.py")


if __name__ == "__main__":
    main()
