"""A YAML document that knows the line of every key, and says in one sentence why it does not fit a model.

text ─► Document (tree, lines) ─► override("a.b=c") ─► check(model) ─► the model, or a ConfigError that names
                                                                        file, line, path, and the nearest key
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from streamkd.errors import ConfigError

Checked = TypeVar("Checked", bound=BaseModel)
# what pydantic says of these names its own types
NEEDED = {
    **dict.fromkeys(("tuple_type", "list_type"), "needed a list"),
    **dict.fromkeys(("dict_type", "model_type"), "needed a mapping of keys"),
}
CHARACTERS, DEPTH, NODES = 1 << 20, 64, 100_000  # the largest configuration so far has 400 values on 6 levels


@dataclass
class Document:
    """A tree of plain values; ``lines`` has ``file:line`` of each dotted path that was written in a file."""

    tree: dict[str, Any]
    name: str = ""
    lines: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, name: str) -> "Document":
        """The document in a YAML text.

        Raises:
            ConfigError: it is not YAML, not a mapping, has a key twice, or is too large, too deep or without end.
        """
        root = _nodes(text, name)
        document = cls({}, name)
        document._note_lines(root, "")  # before merges are worked into the nodes
        tree = _values(root, name)
        if not isinstance(tree, dict):
            got = type(tree).__name__
            raise ConfigError(f"needed a mapping of keys, got {got}", where=name, fix="see streams/*.yaml")
        document.tree = tree
        return document

    def _note_lines(self, node: yaml.Node | None, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # no key of ours: said when the values are read
                below = f"{path}.{key.value}" if path else str(key.value)
                place = f"{self.name}:{key.start_mark.line + 1}"
                if key.value in seen:
                    raise ConfigError("the key is there twice", where=f"{place}: {below}")
                seen.add(key.value)
                self.lines[below] = place
                self._note_lines(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                below = f"{path}.{index}"
                self.lines[below] = f"{self.name}:{value.start_mark.line + 1}"
                self._note_lines(value, below)

    def override(self, setting: str) -> None:
        """Put ``a.b=c`` into the tree; the value is YAML.

        Raises:
            ConfigError: it has another form, is no YAML, or leads through something that holds nothing.
        """
        path, equals, text = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"needed a.b=c, got {setting!r}", where="--set")
        value = _values(_nodes(text, f"--set {path}"), f"--set {path}")
        *parents, last = path.split(".")
        node: Any = self.tree
        for key in parents:
            if isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, dict):
                node = node.setdefault(key, {})
            else:
                raise ConfigError(f"there is nothing at {key!r}", where=f"--set {path}")
        if isinstance(node, list) and last.isdigit() and int(last) < len(node):
            node[int(last)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(f"there is nothing at {last!r}", where=f"--set {path}")
        self.lines[path] = "--set"

    def move(self, path: str, to: str | None) -> bool:
        """Put what stands at a key under another name in the same place, or nowhere; whether there was anything."""
        *parents, last = path.split(".")
        tree = node = dict(self.tree)  # what was given may be somebody else's
        for key in parents:
            if not isinstance(node.get(key), Mapping):
                return False
            node[key] = dict(node[key])
            node = node[key]
        if last not in node:
            return False
        value = node.pop(last)
        if to is not None:
            both = isinstance(value, Mapping) and isinstance(node.get(to), Mapping)
            node[to] = {**node[to], **value} if both else value
            above = "".join(f"{key}." for key in parents)
            lines = {key.replace(path, above + to, 1): line for key, line in self.lines.items() if _within(key, path)}
            self.lines |= lines
        self.tree = tree
        return True

    def where(self, path: str) -> str:
        """``file:line: path`` of the nearest enclosing key that has a line."""
        at = path
        while at and at not in self.lines:
            at = at.rpartition(".")[0]
        place = self.lines.get(at, self.name)
        return ": ".join(part for part in (place, path) if part)

    def check(self, model: type[Checked], tree: Mapping[str, Any] | None = None, path: str = "") -> Checked:
        """The model of the whole tree, or of a part of it that stands at ``path``.

        Raises:
            ConfigError: the first thing that does not fit, in full, and the number of the others.
        """
        values = self.tree if tree is None else tree
        try:
            checked = model.model_validate(values)
        except ValidationError as fault:
            raise self._explain(fault, model, values, f"{path}." if path else "") from None
        self._refuse_switches(values, checked, path)
        return checked

    def _explain(self, fault: ValidationError, model: type[BaseModel], tree: Any, prefix: str) -> ConfigError:
        errors = fault.errors(include_url=False)
        first = errors[0]
        loc = _keys(first, tree)
        silent = first["type"] in ("missing", "extra_forbidden", "value_error")
        got = "" if silent else f", got {first['input']!r:.80}"
        message, fix = f"{NEEDED.get(first['type'], first['msg'].removeprefix('Value error, '))}{got}", ""
        if first["type"] == "extra_forbidden":
            known = _keys_at(model, loc[:-1])
            near = difflib.get_close_matches(loc[-1], known, 1)
            message = f"unknown key {loc[-1]!r}"
            fix = (f"did you mean {near[0]!r}? " if near else "") + f"known keys: {', '.join(known)}"
        elif first["type"] == "missing":
            message = f"the key {loc[-1]!r} is missing"
        if len(errors) > 1:
            rest = ", ".join(dict.fromkeys(prefix + ".".join(_keys(e, tree)) for e in errors[1:6]))
            message += f" (and {len(errors) - 1} more: {rest})"
        return ConfigError(message, where=self.where((prefix + ".".join(loc)).rstrip(".")), fix=fix)

    def _refuse_switches(self, said: Any, taken: Any, path: str) -> None:
        """Yes or no where a number was needed: pydantic takes it for 1 or 0."""
        if isinstance(said, bool) and isinstance(taken, int | float | str) and not isinstance(taken, bool):
            raise ConfigError(f"needed a number, got {'yes' if said else 'no'}", where=self.where(path))
        pairs: list[tuple[Any, Any, Any]] = []
        if isinstance(said, Mapping):
            values = taken if isinstance(taken, Mapping) else dict(taken) if isinstance(taken, BaseModel) else {}
            pairs = [(key, value, values.get(key, value)) for key, value in said.items()]
        elif isinstance(said, list) and isinstance(taken, Sequence):
            pairs = [(index, *both) for index, both in enumerate(zip(said, taken, strict=False))]
        for key, value, other in pairs:
            self._refuse_switches(value, other, f"{path}.{key}" if path else str(key))


def _within(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _nodes(text: str, name: str) -> yaml.Node | None:
    """The nodes of a text, which know their lines; not too many, not too deep."""
    if len(text) > CHARACTERS:
        raise ConfigError(f"has {len(text)} characters, at most {CHARACTERS}", where=name)
    with _in_words(name):
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _measure(root, name)
        return root


def _values(root: yaml.Node | None, name: str) -> Any:
    """The plain values that nodes stand for."""
    with _in_words(name):
        return None if root is None else yaml.SafeLoader("").construct_document(root)


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    try:
        yield
    except yaml.YAMLError as fault:
        where = _place(name, getattr(fault, "problem_mark", None))
        said = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise ConfigError(f"is not YAML: {said}", where=where) from None
    except RecursionError:
        raise ConfigError(f"is nested deeper than {DEPTH} levels", where=name) from None
    except (ValueError, OverflowError, LookupError, AttributeError) as fault:
        # a date that there is not, a number of thousands of digits, a text that is not what its tag says
        raise ConfigError(f"holds a value that cannot be: {fault}", where=name) from None


def _measure(root: yaml.Node, name: str) -> None:
    """Refuse what aliases make endless, or larger than anybody wrote: every alias is counted as what it stands for."""
    sizes: dict[int, int] = {}
    within: list[int] = []

    def size(node: yaml.Node) -> int:
        where = _place(name, node.start_mark)
        if id(node) in within:
            raise ConfigError("holds itself", where=where, fix="write the values out instead of the alias")
        if len(within) >= DEPTH:
            raise ConfigError(f"is nested deeper than {DEPTH} levels", where=where)
        if id(node) not in sizes:
            within.append(id(node))
            sizes[id(node)] = 1 + sum(map(size, _below(node)))
            within.pop()
        if sizes[id(node)] > NODES:
            raise ConfigError(f"has more than {NODES} values, aliases counted as what they stand for", where=where)
        return sizes[id(node)]

    size(root)


def _place(name: str, mark: yaml.Mark | None) -> str:
    """``file:line``; a value of the command line has no lines."""
    return name if mark is None or name.startswith("--set") else f"{name}:{mark.line + 1}"


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _keys(error: Any, tree: Any) -> list[str]:
    """The error's place as keys of the tree: pydantic's own words for branches of a type are left out."""
    keys: list[str] = []
    for depth, part in enumerate(error["loc"], 1):
        missing = error["type"] == "missing" and depth == len(error["loc"])
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, Sequence) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif not missing:
            continue
        keys.append(str(part))
    return keys


def _keys_at(model: type[BaseModel], loc: Sequence[str]) -> list[str]:
    """The known keys of the node at a path of the tree."""
    for part in loc:
        if part.isdigit():
            continue
        found = model.model_fields.get(part)
        nested = list(_models(found.annotation)) if found else []
        if not nested:
            return sorted(model.model_fields)
        model = nested[0]
    return sorted(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
