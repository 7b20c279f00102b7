"""A .pt2 archive cut down to tensors and a checked graph, so that reading it runs no code.

`torch.export.load` unpickles some entries, loads native code from others, evaluates expressions and turns
names into Python source. Only what a usual file holds goes through here; all else is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from causal_dfq.errors import WeightsError
from causal_dfq.network.operations import aten_overload, is_identifier

HOW_TO_EXPORT = (
    "export it again from the plain network, with the batch size left open: torch.export.save(torch.export.export("
    "network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), 'network.pt2')"
)

_MODEL = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_PAYLOADS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+"),
}
_PLAIN_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
)
_EXTRA = "extra/"

_PYTHON_FUNCTIONS = frozenset(
    {f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos")}
    | {f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "lshift", "rshift")}
    | {f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")}
    | {"_operator.getitem", "torch._sym_sqrt", "math.trunc"}
)
_REFUSED_ARGUMENTS = frozenset({"as_operator", "as_graph", "as_custom_obj"})
_DOTTED_NAMES = frozenset({"parameter_name", "buffer_name", "tensor_constant_name"})
_NAMES = frozenset({"name", "as_name", "user_input_name"})
_MODULE_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_STRUCTURES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})

_SYMBOL = re.compile(r"Symbol\('[A-Za-z]\w*'")
_FLOAT = re.compile(r"Float\('[\d.eE+-]+'")
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),.<>=!&|~]*")
_WORDS = re.compile(r"[A-Za-z_]\w*")
_SHAPE_VARIABLE = re.compile(r"[a-z]+\d+")
_EXPRESSION_WORDS = frozenset(
    {
        *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs", "true", "false"),
        *("True", "False", "positive", "nonnegative", "integer", "precision", "And", "Or", "Not", "Eq", "Ne"),
        *("Le", "Lt", "Ge", "Gt", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan"),
        *("StrictGreaterThan", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt"),
        *("FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv"),
        *("TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
    }
)


class _Refusal(Exception):
    """What an archive holds that a plain network does not."""


def safe_archive(path: Path) -> io.BytesIO:
    """A copy of a .pt2 file that holds plain tensors and a checked graph alone.

    The example inputs are the one pickled entry of a usual file: they are emptied, which torch takes for
    none. Extra files are left out.

    Raises:
        WeightsError: the file holds anything else, named in the message.
        zipfile.BadZipFile, ValueError, OSError: it is damaged or no archive.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as clean:
        seen = set()
        for entry in archive.infolist():
            root, _, name = entry.filename.partition("/")
            if name.startswith(_EXTRA):
                continue
            try:
                if name in seen:
                    raise _Refusal("an entry twice")
                seen.add(name)
                clean.writestr(f"network/{name}", _clean_entry(archive, entry, name))
            except _Refusal as refusal:
                raise WeightsError(
                    f"{path} holds {refusal}, which is refused because reading it could run code "
                    f"(entry {name or root!r}); {HOW_TO_EXPORT}"
                ) from refusal
    copy.seek(0)
    return copy


def _clean_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    if name == _SAMPLE_INPUTS:
        return b""
    if name == _MODEL:
        return json.dumps(_checked_model(json.loads(archive.read(entry)))).encode()
    if name in _PAYLOADS:
        # Written anew: what torch parses is what was checked, even where a key stands twice.
        return json.dumps(_checked_payloads(json.loads(archive.read(entry)), _PAYLOADS[name])).encode()
    if not _PLAIN_ENTRY.fullmatch(name):
        raise _Refusal("an entry that is neither a tensor nor part of a plain network")
    return archive.read(entry)


def _checked_payloads(data: Any, file_name: re.Pattern[str]) -> Any:
    for name, payload in data["config"].items():
        is_tensor = file_name.fullmatch(str(payload.get("path_name"))) and payload.get("tensor_meta")
        if payload.get("use_pickle") is not False or not is_tensor:
            raise _Refusal(f"{name!r} as a pickled object")
        _check_values(payload["tensor_meta"])
    return {"config": data["config"]}


def _checked_model(data: Any) -> Any:
    module = data["graph_module"]
    graph = module["graph"]
    data["guards_code"] = []
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    for node in graph["nodes"]:
        _check_target(node["target"])
        # Of the notes on a node only its place in the network is of use.
        node["metadata"] = {key: text for key, text in node["metadata"].items() if key == "nn_module_stack"}
    for argument in [*graph["inputs"], *_user_inputs(module["signature"])]:
        # Values of other inputs become source code of the guards.
        if list(argument) != ["as_tensor"]:
            raise _Refusal("an input that is no tensor")
    module["module_call_graph"] = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    for entry in module["module_call_graph"]:
        _check_signature(entry["signature"])
    _check_values(graph)
    _check_values(module["signature"])
    return data


def _user_inputs(signature: Any) -> Iterator[Any]:
    for specification in signature["input_specs"]:
        if "user_input" in specification:
            yield specification["user_input"]["arg"]
        elif not specification.keys() <= {"parameter", "buffer", "tensor_constant"}:
            raise _Refusal(f"an input of the kind {', '.join(specification)!r}")


def _check_target(target: Any) -> None:
    if target in _PYTHON_FUNCTIONS:
        return
    try:
        namespace, packet, overload = str(target).rsplit(".", 2)
        is_tensor_operation = namespace == "torch.ops.aten" and aten_overload(packet, overload) is not None
    except (ValueError, AttributeError):
        is_tensor_operation = False
    if not is_tensor_operation:
        hint = ", which a forward without torch.no_grad(), torch.autocast() and torch.cond() does not need"
        raise _Refusal(f"the operation {target!r}{hint if 'higher_order' in str(target) else ''}")


def _check_signature(signature: Any) -> None:
    if signature is None:
        return
    for structure in (signature["in_spec"], signature["out_spec"]):
        _, tree = json.loads(structure)
        _check_structure(tree)
    for name in signature.get("forward_arg_names") or []:
        _check_name(name)
    _check_values([signature["inputs"], signature["outputs"]])


def _check_structure(tree: Any) -> None:
    # Other types import the module that the file names; an enumeration does so inside of a context.
    keys = [] if tree["context"] is None else json.loads(tree["context"]) or []
    if tree["type"] not in _STRUCTURES or not isinstance(keys, list):
        raise _Refusal(f"inputs or outputs of the type {tree['type']!r}")
    for key in keys:
        _check_name(key)
    for child in tree["children_spec"]:
        _check_structure(child)


def _check_values(value: Any) -> None:
    """Refuses expressions and names that would be evaluated, wherever they stand."""
    if isinstance(value, list):
        for item in value:
            _check_values(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in _REFUSED_ARGUMENTS:
            raise _Refusal(f"an argument of the kind {key!r}")
        if isinstance(item, dict | list):
            _check_values(item)
        elif key in _NAMES and item not in (None, ""):
            _check_name(item)
        elif key in _DOTTED_NAMES and not _MODULE_NAME.fullmatch(str(item)):
            raise _Refusal(f"the name {item!r}")
        elif key == "expr_str":
            _check_expression(str(item))


def _check_name(name: Any) -> None:
    if not is_identifier(name):
        raise _Refusal(f"the name {name!r}")


def _check_expression(text: str) -> None:
    plain = _FLOAT.sub("Float(", _SYMBOL.sub("Symbol(", text))
    words = _WORDS.findall(plain)
    is_known = all(word in _EXPRESSION_WORDS or _SHAPE_VARIABLE.fullmatch(word) for word in words)
    has_attribute = re.search(r"\.\s*[A-Za-z_]|[)\w]\s*\.\s*\D", plain)
    if "__" in text or has_attribute or not _EXPRESSION.fullmatch(plain) or not is_known:
        raise _Refusal(f"the expression {text!r}")
