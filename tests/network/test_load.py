"""Where a network comes from, and what is said where it cannot be had."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from causal_dfq.errors import NetworkError, WeightsError
from causal_dfq.network.load import load_network
from causal_dfq.network.weights import load_weights
from tests.networks import Residual

FACTORY = "tests.e2e.factories:residual"


def test_factory_is_called_and_put_into_evaluation_mode() -> None:
    loaded = load_network(FACTORY)
    assert not loaded.network.training
    assert loaded.input_shape is None


def test_weights_of_a_file_are_taken_whatever_prefix_they_share(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in load_network(FACTORY).network.state_dict().items()}
    state["fc.bias"] += 1
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
    loaded = load_network(FACTORY, tmp_path / "w.safetensors").network
    assert torch.equal(loaded.state_dict()["fc.bias"], state["fc.bias"])


def test_torchvision_network_comes_with_its_preprocessing(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    save_file(squeezenet1_1(weights=None).state_dict(), tmp_path / "w.safetensors")
    loaded = load_network("torchvision:squeezenet1_1", tmp_path / "w.safetensors")
    assert loaded.input_shape == (3, 224, 224)
    assert loaded.mean == (0.485, 0.456, 0.406)


def test_number_of_classes_is_that_of_the_file(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    save_file(squeezenet1_1(weights=None, num_classes=7).state_dict(), tmp_path / "w.safetensors")
    network = load_network("torchvision:squeezenet1_1", tmp_path / "w.safetensors").network
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("has_heads", [True, False])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_network_that_normalizes_anew_does_so_with_a_file_with_and_without_auxiliary_heads(
    tmp_path: Path, name: str, has_heads: bool
) -> None:
    from torchvision.models import get_model

    saved = get_model(name, weights=None, init_weights=False, aux_logits=has_heads, num_classes=7)
    save_file(saved.state_dict(), tmp_path / "w.safetensors")
    loaded = load_network(f"torchvision:{name}", tmp_path / "w.safetensors")
    # Mean and deviation are those of the hub's weights, so the rest of their preprocessing must be as well.
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.network.transform_input
    assert set(loaded.network.state_dict()) == set(saved.state_dict())
    assert torch.equal(loaded.network.fc.weight, saved.fc.weight)


@pytest.fixture
def small_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's vision transformers with one layer of four channels."""
    from torchvision.models import vision_transformer

    def small(patch_size: int, image_size: int = 224, num_classes: int = 1000, **others: object) -> nn.Module:
        return vision_transformer.VisionTransformer(image_size, patch_size, 1, 1, 4, 4, num_classes=num_classes)

    monkeypatch.setattr(vision_transformer, "_vision_transformer", small)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_h_14", 518), ("vit_h_14", 224), ("vit_l_16", 224), ("vit_l_16", 512), ("vit_b_16", 384)]
)
@pytest.mark.usefixtures("small_transformers")
def test_image_size_of_a_transformer_is_that_of_the_file(tmp_path: Path, name: str, size: int) -> None:
    from torchvision.models import get_model

    save_file(get_model(name, image_size=size, num_classes=7).state_dict(), tmp_path / "w.safetensors")
    loaded = load_network(f"torchvision:{name}", tmp_path / "w.safetensors")
    assert loaded.input_shape == (3, size, size)
    assert loaded.network(torch.zeros(1, 3, size, size)).shape == (1, 7)


@pytest.mark.usefixtures("small_transformers")
def test_transformer_of_another_patch_size_does_not_fit(tmp_path: Path) -> None:
    from torchvision.models import get_model

    save_file(get_model("vit_h_14", image_size=518).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"'conv_proj\.weight' is 4x3x14x14 in the file, 4x3x16x16 in the network"):
        load_network("torchvision:vit_b_16", tmp_path / "w.safetensors")


def test_timm_network_comes_with_its_preprocessing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "w.safetensors")
    loaded = load_network("timm:mobilenetv3_small_050", tmp_path / "w.safetensors")
    assert loaded.input_shape == (3, 224, 224)
    assert loaded.std == (0.229, 0.224, 0.225)


def test_hub_that_cannot_be_reached_leads_to_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    def unreachable(*arguments: object, **options: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(NetworkError, match=r"resnet18 cannot be had \(no route to host\).*--weights"):
        load_network("torchvision:resnet18")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("resnet20-fashio", "close names: resnet20-fashion"),
        ("torchvision:resnet19", "no model 'resnet19'; close names: .*resnet18"),
        ("timm:resnet19x", "no model 'resnet19x'"),
        ("no.such.module:net", r"'no\.such\.module' cannot be imported"),
        ("tests.networks:Residul", "no function 'Residul'; close names: Residual"),
        ("builtins:dict", "must return an nn.Module, but it gave dict"),
        ("missing.pt2", r"missing\.pt2 does not exist"),
        ("net.pth", r"need unpickling.*'net\.safetensors'.*NETWORK names the architecture.*--weights the file"),
        ("some/net.ckpt", r"need unpickling.*NETWORK names the architecture"),
        ("net.safetensors", r"weights without a network.*--weights the file"),
        ("net.onnx", r"ONNX file, which is not read here"),
        (":net", r"'' cannot be imported: ValueError: Empty module name"),
    ],
)
def test_what_cannot_be_found_is_told(reference: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        load_network(reference)


def test_damaged_and_missing_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(WeightsError, match="damaged"):
        load_network(FACTORY, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="do not exist"):
        load_network(FACTORY, tmp_path / "other.safetensors")


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    state = load_network(FACTORY).network.state_dict()
    state["bn1.running_var"] = torch.full((8,), torch.nan)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"8 NaN or infinite values in 'bn1\.running_var'"):
        load_network(FACTORY, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def net(:", r"cannot be imported: SyntaxError: "),
        ("raise KeyError('data')", r"cannot be imported: KeyError: 'data'"),
        ("import sys; sys.exit(3)", r"cannot be imported: SystemExit: 3"),
    ],
)
def test_module_that_cannot_be_imported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    (tmp_path / "broken_factory_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match=words):
        load_network("broken_factory_module:net")


def test_download_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    def download(*arguments: object, **options: object) -> nn.Module:
        torch.save(Evil(), tmp_path / "hub.pth")
        return torch.load(tmp_path / "hub.pth", weights_only=False)

    monkeypatch.setattr(torchvision.models, "get_model", download)
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(NetworkError, match="resnet18 cannot be had"):
        load_network("torchvision:resnet18")
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_timm_that_is_missing_is_told_apart_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import no_such_dependency_of_timm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetworkError, match="cannot be imported: No module named 'no_such_dependency_of_timm'"):
        load_network("timm:resnet18")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match="timm is not installed: pip install"):
        load_network("timm:resnet18")


class Wrapping(nn.Module):
    """A network whose own keys start with the name of a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Residual()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_own_keys_that_look_like_a_wrapper_are_kept(tmp_path: Path, prefix: str) -> None:
    state = {name: tensor.clone() for name, tensor in Wrapping().state_dict().items()}
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
    loaded = load_network(f"{__name__}:Wrapping", tmp_path / "w.safetensors").network
    assert torch.equal(loaded.state_dict()["model.fc.weight"], state["model.fc.weight"])


def test_missing_key_is_told_under_the_name_in_the_network(tmp_path: Path) -> None:
    state = Wrapping().state_dict()
    del state["model.fc.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing in the file: 'model\.fc\.bias'$"):
        load_network(f"{__name__}:Wrapping", tmp_path / "w.safetensors")


def test_file_of_weights_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import squeezenet1_1

    from causal_dfq.network import weights

    save_file(squeezenet1_1(weights=None).state_dict(), tmp_path / "w.safetensors")
    read = []
    load_file = weights.load_file
    monkeypatch.setattr(weights, "load_file", lambda path: read.append(path) or load_file(path))
    load_network("torchvision:squeezenet1_1", tmp_path / "w.safetensors")
    assert len(read) == 1


def test_the_hubs_old_names_of_a_densenet_are_read(tmp_path: Path) -> None:
    from torchvision.models import DenseNet

    network, fresh = (DenseNet(4, (2, 1), 8, num_classes=3) for _ in range(2))
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): tensor
        for name, tensor in network.state_dict().items()
    }
    assert any("norm.1" in name for name in old)
    save_file(old, tmp_path / "densenet.safetensors")
    load_weights(fresh, tmp_path / "densenet.safetensors")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in fresh.state_dict().items())
