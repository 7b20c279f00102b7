"""A .pt2 file: the network of a usual one, and a refusal of all that could run code."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_dfq.errors import NetworkError, WeightsError
from causal_dfq.network.capture import capture
from causal_dfq.network.load import load_network
from tests.networks import Residual, SqueezeExcite, trained

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
DYNAMIC = ({0: torch.export.Dim.DYNAMIC},)


def save_exported(network: nn.Module, path: Path, dynamic_shapes: Any = DYNAMIC) -> None:
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=dynamic_shapes), path)


def exported(path: Path) -> nn.Module:
    network = trained(Residual())
    save_exported(network, path)
    return network


def rewritten(path: Path, changes: dict[str, Callable[[Any], Any]], added: dict[str, bytes] | None = None) -> str:
    """A copy of an archive with the JSON of some entries changed and some entries added."""
    changed = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(changed, "w") as copy:
        root = archive.namelist()[0].partition("/")[0]
        for entry in archive.infolist():
            data = archive.read(entry)
            change = changes.get(entry.filename.partition("/")[2])
            if change is not None:
                content = json.loads(data)
                change(content)
                data = json.dumps(content).encode()
            copy.writestr(entry.filename, data)
        for name, data in (added or {}).items():
            copy.writestr(f"{root}/{name}", data)
    return str(changed)


def test_exported_file_gives_the_network_and_its_shape(tmp_path: Path) -> None:
    network = exported(tmp_path / "n.pt2")
    loaded = load_network(str(tmp_path / "n.pt2"))
    assert loaded.input_shape == (3, 8, 8)
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(capture(loaded.network, (3, 8, 8))(images), network(images))


def test_exported_file_never_unpickles_its_example_inputs(tmp_path: Path) -> None:
    exported(tmp_path / "n.pt2")
    with zipfile.ZipFile(tmp_path / "n.pt2") as archive, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for entry in archive.infolist():
            data = archive.read(entry)
            is_example = "sample_inputs" in entry.filename
            evil.writestr(entry.filename, b"cos\nsystem\n(S'false'\ntR." if is_example else data)
    assert load_network(str(tmp_path / "evil.pt2")).input_shape == (3, 8, 8)


def test_exported_file_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "n.pt2")
    with zipfile.ZipFile(tmp_path / "n.pt2") as archive, zipfile.ZipFile(tmp_path / "p.pt2", "w") as pickled:
        for entry in archive.infolist():
            data = archive.read(entry)
            if entry.filename.endswith("_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                    b'"use_pickle":false', b'"use_pickle":true'
                )
            pickled.writestr(entry.filename, data)
    with pytest.raises(WeightsError, match="pickled object, which is refused"):
        load_network(str(tmp_path / "p.pt2"))


def test_file_that_is_no_export_is_told(tmp_path: Path) -> None:
    (tmp_path / "n.pt2").write_bytes(b"nonsense")
    with pytest.raises(NetworkError, match=r"cannot be read as a file of torch\.export"):
        load_network(str(tmp_path / "n.pt2"))


class Reshaping(nn.Module):
    """Sizes, constants, buffers outside of the weights, views and outputs of several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("scale", torch.full((1,), 1.5), persistent=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        count, channels, height, width = features.shape
        features = features.view(count * 2, channels // 2, height, width) * torch.tensor([2.0]) * self.scale
        left, right = features.reshape(count, -1, height, width).chunk(2, 1)
        return self.fc(functional.relu(torch.cat([right, left], 1)).mean((2, 3)))


@pytest.mark.parametrize("batch", [torch.export.Dim.DYNAMIC, torch.export.Dim("batch", min=1, max=64)])
def test_exported_file_with_sizes_and_constants_gives_the_network(tmp_path: Path, batch: Any) -> None:
    network = Reshaping().eval()
    save_exported(network, tmp_path / "n.pt2", ({0: batch},))
    loaded = load_network(str(tmp_path / "n.pt2"))
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(capture(loaded.network, (3, 8, 8))(images), network(images))


def test_file_exported_in_training_mode_gives_the_network_in_evaluation_mode(tmp_path: Path) -> None:
    network = trained(SqueezeExcite())
    save_exported(network.train(), tmp_path / "n.pt2")
    images = torch.randn(5, 3, 8, 8)
    captured = capture(load_network(str(tmp_path / "n.pt2")).network, (3, 8, 8))
    torch.testing.assert_close(captured(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_exported_view_of_a_contiguous_copy_gives_the_network(tmp_path: Path) -> None:
    class Shuffling(Residual):
        def forward(self, images: Tensor) -> Tensor:
            shuffled = images.transpose(2, 3).contiguous()
            return super().forward(shuffled.view(images.shape[0], 3, 8, 8))

    network = trained(Shuffling())
    save_exported(network, tmp_path / "n.pt2")
    images = torch.randn(5, 3, 8, 8)
    captured = capture(load_network(str(tmp_path / "n.pt2")).network, (3, 8, 8))
    torch.testing.assert_close(captured(images), network(images), rtol=1e-4, atol=1e-5)


def test_fixed_batch_size_is_told(tmp_path: Path) -> None:
    save_exported(Residual().eval(), tmp_path / "n.pt2", None)
    with pytest.raises(NetworkError, match=r"takes 2 images at a time and no other number; .*Dim\.DYNAMIC"):
        load_network(str(tmp_path / "n.pt2"))


@pytest.mark.parametrize(
    "name",
    [
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/opaque_obj_0",
        "data/constants/custom_obj_0",
        "data/aotinductor/model/model.so",
        "models/other.json",
        "data/weights/other.pkl",
        "serialized_state_dict.pt",
        "data/weights/weight_0",
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entry_of_no_plain_network_is_refused(tmp_path: Path, name: str) -> None:
    exported(tmp_path / "n.pt2")
    with pytest.raises(WeightsError, match=rf"which is refused .*\(entry '{name}'\); export it again"):
        load_network(rewritten(tmp_path / "n.pt2", {}, {name: b"cos\nsystem\n(S'false'\ntR."}))


def test_entries_outside_of_a_folder_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_state_dict.pt", b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(WeightsError, match=r"which is refused .*\(entry 'version'\)"):
        load_network(str(tmp_path / "old.pt2"))


def test_extra_files_are_left_out(tmp_path: Path) -> None:
    exported(tmp_path / "n.pt2")
    changed = rewritten(tmp_path / "n.pt2", {}, {"extra/notes.txt": b"trained in May"})
    assert load_network(changed).input_shape == (3, 8, 8)


@pytest.mark.parametrize("file_name", ["opaque_obj_0", "custom_obj_0", "tensor_0/../../weights/weight_0"])
def test_constant_in_a_file_of_objects_is_refused(tmp_path: Path, file_name: str) -> None:
    exported(tmp_path / "n.pt2")

    def name_object(config: Any) -> None:
        config["config"]["x"] = {"path_name": file_name, "is_param": False, "use_pickle": False, "tensor_meta": None}

    with pytest.raises(WeightsError, match="'x' as a pickled object"):
        load_network(rewritten(tmp_path / "n.pt2", {CONSTANTS: name_object}))


def test_guards_of_the_file_are_not_run(tmp_path: Path) -> None:
    exported(tmp_path / "n.pt2")
    ran = tmp_path / "ran"
    code = f"__import__('os').mkdir({str(ran)!r}) is None"
    changed = rewritten(tmp_path / "n.pt2", {MODEL: lambda model: model.update(guards_code=[code])})
    capture(load_network(changed).network, (3, 8, 8))
    assert not ran.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__.default",
        "torch.ops.load_library",
        "torch.ops.higher_order.cond",
        "_operator.methodcaller",
        "math.factorial",
        "#namespace:name",
    ],
)
def test_operation_that_is_not_on_tensors_is_refused(tmp_path: Path, target: str) -> None:
    exported(tmp_path / "n.pt2")

    def call(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(WeightsError, match=f"the operation '{target}'"):
        load_network(rewritten(tmp_path / "n.pt2", {MODEL: call}))


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('false')",
        "Symbol('s77').__class__",
        "Symbol('s77', positive=True).func",
        "s77 . func",
        "sympify('1')",
        "lambdify(s77, s77)",
        "preview(s77)",
        'Symbol("s77")',
    ],
)
@pytest.mark.parametrize("entry", [MODEL, WEIGHTS])
def test_expression_that_could_run_code_is_refused(tmp_path: Path, entry: str, expression: str) -> None:
    exported(tmp_path / "n.pt2")

    def evaluate(content: Any) -> None:
        graph = content["graph_module"]["graph"] if entry == MODEL else None
        tensor = graph["tensor_values"]["images"] if graph else content["config"]["fc.bias"]["tensor_meta"]
        tensor["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}

    with pytest.raises(WeightsError, match="the expression"):
        load_network(rewritten(tmp_path / "n.pt2", {entry: evaluate}))


def rename_node(model: Any) -> None:
    model["graph_module"]["graph"]["nodes"][0]["name"] = "a\nimport os"


def rename_input(model: Any) -> None:
    model["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = "images=print(1)"


def rename_argument(model: Any) -> None:
    model["graph_module"]["graph"]["nodes"][0]["inputs"][0]["name"] = "input=print(1), other"


def rename_parameter(model: Any) -> None:
    model["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = 'a") or print("'


def rename_forward_argument(model: Any) -> None:
    model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=print(1)"]


@pytest.mark.parametrize(
    "rename", [rename_node, rename_input, rename_argument, rename_parameter, rename_forward_argument]
)
def test_name_that_could_run_code_is_refused(tmp_path: Path, rename: Callable[[Any], None]) -> None:
    exported(tmp_path / "n.pt2")
    with pytest.raises(WeightsError, match="the name "):
        load_network(rewritten(tmp_path / "n.pt2", {MODEL: rename}))


def test_input_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "n.pt2")

    def give_text(model: Any) -> None:
        model["graph_module"]["graph"]["inputs"][-1] = {"as_string": "' + print(1) + '"}

    with pytest.raises(WeightsError, match="an input that is no tensor"):
        load_network(rewritten(tmp_path / "n.pt2", {MODEL: give_text}))


def test_structure_that_imports_a_module_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "n.pt2")

    def import_module(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        context = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x"})
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        signature["in_spec"] = json.dumps([1, tree])

    with pytest.raises(WeightsError, match=r"of the type 'collections\.defaultdict'"):
        load_network(rewritten(tmp_path / "n.pt2", {MODEL: import_module}))
