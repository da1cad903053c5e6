"""Settings, read once: defaults, then a TOML file, then FMREC_ variables, then --set, merged, checked and frozen.

1. A later source wins key by key; tables are merged, anything else is replaced. A default *table of tables* (the manager's
   `tree`) is replaced as a whole by the first source that names a key in it.
2. FMREC_TREE__MAIN__ROUNDS=10 and --set tree.main.rounds=10 say the same. A value is read as TOML; what is not TOML, or is
   some other type where a string is wanted, is the string as it was typed.
3. Every key remembers where it came from, so that a mistake is told with its place: a file, a variable, --set.
4. TOML has types, so the models are strict: `rounds = "10"` is a mistake and not a number.

All mistakes are told at once, one sentence each. A validator of one field raises ValueError with a clause that begins with
"should", which is put after the key and the value; a validator of a model raises a whole sentence that names the keys.

pydantic-settings is not used for this: it ignores a variable that it does not know, and forgets where a value came from.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Strict,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

from protocol.identifiers import Address
from protocol.parameters import PRESETS, OverlayParameters

PREFIX = "FMREC_"
LogLevel = Literal["debug", "info", "warning", "error"]
Key = tuple[str, ...]
Model = TypeVar("Model", bound=BaseModel)


class SettingsError(Exception):
    """The settings are wrong; nothing was started. `problems` holds one sentence for each mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


# --- what both daemons' models are made of ----------------------------------------------------------------------------


class Settings(BaseModel):
    """What every table of settings is: frozen, strict, and without room for keys that it does not know."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def parse_address(text: str) -> Address:
    """'127.0.0.1:7700' or '[::1]:7700' as an Address; ValueError otherwise."""
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    numbered = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not separator or not host or (":" in host and not bracketed) or not numbered:
        raise ValueError('should be HOST:PORT, such as "127.0.0.1:7700"')
    return Address(host, int(port))


def address_argument(option: str, text: str) -> Address:
    """The address that an option of the command line holds; SettingsError that names the option."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise SettingsError(f"{option} is {toml_value(text)}, but {error}") from None


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The host as an address, in all forms that the system takes for one; None where it is a name."""
    host = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))  # 0, 127.1
        except (OSError, ValueError):
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_ours(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Is it one of this machine's? Where that can't be told, it is."""
    try:
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM) as asked:
            asked.bind((str(address), 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def dialable(host: str) -> str:
    """The host, where peers that are told of it can dial it; ValueError for one that stands for any address of this machine."""
    address = _literal(host)
    if address is not None and address.is_unspecified:
        raise ValueError("should name one address that peers can dial: they are told it")
    return host


def out_of_reach(host: str, seeds: Sequence[Address]) -> Address | None:
    """The first seed that is on another machine, where `host` can be dialled from this one alone. Names are not looked up."""
    own = _literal(host)
    if own is None or not own.is_loopback:
        return None
    literals = ((seed, _literal(seed.host)) for seed in seeds)
    return next((seed for seed, at in literals if at is not None and not _is_ours(at)), None)


def _checked_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("should be a path, and none has the character NUL")
    return path


def _checked_address(text: str) -> str:
    return str(parse_address(text))


def _checked_listen(text: str) -> str:
    dialable(parse_address(text).host)
    return text


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Of a cluster, an agent or a tree: it becomes part of ids, of file names and of lines in logs."""
HostPort = Annotated[str, AfterValidator(_checked_address)]
Listen = Annotated[HostPort, AfterValidator(_checked_listen)]
"""Where to listen, and what peers are told."""
ListenHost = Annotated[str, StringConstraints(min_length=1), AfterValidator(dialable)]
Addresses = Annotated[tuple[HostPort, ...], Strict(False), BeforeValidator(_split)]
"""A TOML array, or one string with commas, which is what a variable holds most easily."""
StateDir = Annotated[Path, Strict(False), AfterValidator(_checked_path)]

_FIELDS: dict[str, Any] = {name: (kind | None, None) for name, kind in get_type_hints(OverlayParameters).items()}
_Overrides: Any = create_model("_Overrides", __base__=Settings, **_FIELDS)


class OverlaySettings(_Overrides):  # type: ignore[misc]  # derived from OverlayParameters' fields, so that none is listed twice
    """A preset of OverlayParameters, and any of its fields by name where the preset does not fit."""

    preset: Literal["loopback", "lan", "wan"] = "loopback"
    """loopback notices a death soonest and needs one machine; lan and wan forgive longer delays and notice later."""

    def parameters(self) -> OverlayParameters:
        """The preset with the overrides in it."""
        given = {field.name: getattr(self, field.name) for field in fields(OverlayParameters)}
        return replace(PRESETS[self.preset](), **{name: value for name, value in given.items() if value is not None})

    @model_validator(mode="after")
    def _nests(self) -> OverlaySettings:
        self.parameters().validate()
        return self


# --- loading ----------------------------------------------------------------------------------------------------------


def load(model: type[Model], file: Path | None, overrides: Sequence[str], environment: Mapping[str, str]) -> Model:
    """The merged settings as an instance of `model`.

    overrides: `key=value` each from --set, `--count count=8` from an option of its own; a later one wins.
    environment: os.environ or what a test says; only FMREC_ names count, and a variable's key is its name in small letters.
    SettingsError with every mistake in it.
    """
    merged = _Merged()
    if file is not None:
        merged.table(_read(file), str(file))
    for name in sorted(name for name in environment if name.startswith(PREFIX)):
        key = tuple(name.removeprefix(PREFIX).lower().split("__"))
        merged.typed(key, environment[name], f"variable {name}")
    for override in overrides:
        option, _, said = override.partition(" ") if override.startswith("--") else ("--set", "", override)
        dotted, separator, text = said.partition("=")
        if not separator or not all(dotted.strip().split(".")):
            raise SettingsError(f"{option}: {toml_value(said)} should be key=value, such as overlay.preset=lan")
        merged.typed(tuple(dotted.strip().split(".")), text.strip(), option)
    try:
        return model.model_validate(merged.data)
    except ValidationError as first:
        if not merged.retype(first):
            raise SettingsError(*_problems(model, merged, first)) from None
    try:
        return model.model_validate(merged.data)
    except ValidationError as second:
        raise SettingsError(*_problems(model, merged, second)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{file}: there is no such file of settings") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{file}: is not TOML: {error}") from None


class _Merged:
    """Nested tables under construction, with the origin of each key, and the text of those that were typed."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.origins: dict[Key, str] = {}
        self.texts: dict[Key, str] = {}

    def put(self, key: Key, value: object, origin: str) -> None:
        table = self.data
        for part in key[:-1]:
            below = table.get(part)
            if not isinstance(below, dict):
                below = table[part] = {}
            table = below
        table[key[-1]] = value
        self.origins[key] = origin
        self.texts.pop(key, None)

    def table(self, table: Mapping[str, Any], origin: str, above: Key = ()) -> None:
        for name, value in table.items():
            key = (*above, name)
            if isinstance(value, dict) and value:
                self.table(value, origin, key)
            else:
                self.put(key, value, origin)

    def typed(self, key: Key, text: str, origin: str) -> None:
        value = _value(text)
        if isinstance(value, dict) and value:
            self.table(value, origin, key)
            return
        self.put(key, value, origin)
        self.texts[key] = text

    def retype(self, error: ValidationError) -> bool:
        """Put back the text of what was read as another type where a string is wanted (--set name=7); True if there was any."""
        wanted = {self.key(problem["loc"]) for problem in error.errors() if problem["type"] == "string_type"}
        again = {key: self.texts[key] for key in wanted if key in self.texts}
        for key, text in again.items():
            self.put(key, text, self.origins[key])
        return bool(again)

    def key(self, location: tuple[int | str, ...]) -> Key:
        """What a pydantic location names of the data: without the branches of unions and the places in arrays."""
        key: list[str] = []
        below: Any = self.data
        for part in location:
            if isinstance(below, dict) and part in below:
                key.append(str(part))
                below = below[part]
        return tuple(key)

    def origin(self, key: Key) -> str:
        """Where the key was given, or one of the tables that it is in; of a table, where its first key was given."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return f"{self.origins[key[:length]]}: "
        return next((f"{origin}: " for given, origin in self.origins.items() if key and given[: len(key)] == key), "")


def _value(text: str) -> object:
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text


# --- telling mistakes -------------------------------------------------------------------------------------------------


def _problems(model: type[BaseModel], merged: _Merged, error: ValidationError) -> list[str]:
    """One sentence for each key that is wrong, whatever the number of types that it could have been."""
    sentences: dict[Key, str] = {}
    wanted: dict[Key, list[str]] = {}
    values: dict[Key, object] = {}
    for problem in error.errors():
        key, kind = merged.key(problem["loc"]), problem["type"]
        if kind == "extra_forbidden":
            sentences[key] = merged.origin(key) + _unknown(".".join(key), list(known_keys(model)))
        elif kind == "value_error" and isinstance(problem["input"], dict | BaseModel):
            sentences[key] = f"{'.'.join(key)}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
        else:
            values[key] = problem["input"]
            wanted.setdefault(key, []).append(_expectation(problem))
    for key, clauses in wanted.items():
        told = " or ".join(dict.fromkeys([clauses[0], *(clause.removeprefix("should be ") for clause in clauses[1:])]))
        sentences[key] = f"{merged.origin(key)}{'.'.join(key)} is {_told(values[key])}, but {told}"
    return list(sentences.values())


def _expectation(problem: Mapping[str, Any]) -> str:
    special = {
        "bool_type": "should be true or false",
        "int_type": "should be a whole number",
        "int_from_float": "should be a whole number",
        "float_type": "should be a number",
        "string_type": "should be a string",
        "string_pattern_mismatch": "should be at most 64 letters, digits, dots, dashes or underscores, a letter or digit first",
        "model_type": "should be a table of settings",
        "dict_type": "should be a table of settings",
        "tuple_type": "should be an array",
    }
    if problem["type"] == "union_tag_invalid":
        return f"should be a table whose name is one of {problem['ctx']['expected_tags']}".replace("'", '"')
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] in special:
        return special[problem["type"]]
    message = str(problem["msg"]).replace("'", '"')
    _, should, rest = message.partition(" should ")
    return f"should {rest}" if should else f"is wrong: {message}"


def _unknown(key: str, known: Sequence[str]) -> str:
    if key in known:
        table = key.rpartition(".")[0]
        return f"{key} belongs to another kind of {table} than the one that {table}.name says"
    return f"{key} is no setting; the nearest is {nearest(key, known)}"


def _told(value: object) -> str:
    try:
        text = toml_value(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def known_keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every dotted key of the model, tables included. The tables of a table of tables are named as in its default."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        default = field.get_default(call_default_factory=True, validated_data={})
        entries = [f".{entry}" for entry in default] if isinstance(default, dict) else [""]
        for inner in _models(field.annotation):
            for entry in entries:
                yield from known_keys(inner, f"{above}{name}{entry}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def nearest(key: str, known: Sequence[str]) -> str:
    """The known key most like `key`: by its last part first, so that a key in the wrong table is found in the right one."""

    def likeness(other: str) -> tuple[float, float]:
        last = SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return last, SequenceMatcher(None, key, other).ratio()

    return max(known, key=likeness)


# --- showing ----------------------------------------------------------------------------------------------------------


def show(settings: BaseModel) -> str:
    """The settings as TOML that load() reads back to an equal instance. What is not set is a comment."""
    return "\n".join(_table(settings, ())).lstrip("\n") + "\n"


def _table(table: BaseModel | Mapping[str, Any], name: Key) -> Iterator[str]:
    items = dict(table)
    below = {key: value for key, value in items.items() if isinstance(value, BaseModel | dict)}
    here = {key: value for key, value in items.items() if key not in below}
    if name and (here or not below):
        yield f"\n[{'.'.join(_bare(part) for part in name)}]"
    if isinstance(table, OverlaySettings):
        yield f"preset = {toml_value(here.pop('preset'))}"
        effective = table.parameters()
        here = {key: value if value is not None else _Unset(getattr(effective, key)) for key, value in here.items()}
    for key, value in here.items():
        if value is None:
            yield f"# {_bare(key)} is not set"
        elif isinstance(value, _Unset):
            yield f"# {_bare(key)} = {toml_value(value.preset)}"
        else:
            yield f"{_bare(key)} = {toml_value(value)}"
    for key, value in below.items():
        yield from _table(value, (*name, key))


class _Unset:
    """A field of the overlay that keeps its preset's value."""

    def __init__(self, preset: object) -> None:
        self.preset = preset


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: object) -> str:
    """One value as TOML; TypeError for what TOML cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_bare(str(key))} = {toml_value(entry)}" for key, entry in value.items()) + "}"
    raise TypeError(f"TOML has no form for a {type(value).__name__}")
