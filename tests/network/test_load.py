"""Where a network comes from, and what is said where it cannot be had."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from causal_dfq.errors import NetworkError, WeightsError
from causal_dfq.network.capture import capture
from causal_dfq.network.load import load_network
from tests.networks import Residual, trained

FACTORY = "tests.e2e.factories:residual"


def exported(path: Path) -> nn.Module:
    network = trained(Residual())
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=dynamic), path)
    return network


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
