"""quantize() from Python: what comes back, and that it can be kept."""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

import causal_dfq
from causal_dfq import fusion
from causal_dfq.config import Method, make_options
from causal_dfq.errors import ConfigError, NetworkError, OutputError
from causal_dfq.fusion import can_compile
from causal_dfq.network.fold import LAYERS
from causal_dfq.pipeline import finish, prepare, start_run, train
from causal_dfq.quantizer.placement import ACTIVATION_QUANTIZERS
from causal_dfq.quantizer.residual_grids import share_step_sizes
from causal_dfq.training import budget, equilibrium
from causal_dfq.training.budget import Budget
from causal_dfq.training.checkpoint import restore_state, run_state
from causal_dfq.training.methods import METHODS
from tests.networks import ALL, Residual, trained

SMALL = Budget(warmup_steps=2, equilibrium_rounds=2, finish_rounds=2, student_steps=1, rounding_images=128)
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "fast", SMALL)


def quantize(network: nn.Module, bits: str = "w4a4", **more: object) -> causal_dfq.QuantizedNetwork:
    more = {"device": "cpu", **more}
    return causal_dfq.quantize(network, bits, SHAPE, effort="fast", **more)  # type: ignore[arg-type]


def images() -> torch.Tensor:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("network", ALL, ids=lambda network: network.__name__)
@pytest.mark.parametrize("protocol", ["deploy", "gdfq", "genie"])
def test_any_classifier_comes_back_quantized_and_survives_saving(
    network: type[nn.Module], protocol: str, tmp_path: Path
) -> None:
    quantized = quantize(trained(network()), protocol=protocol)
    logits = quantized(images())
    assert logits.shape == (6, 5)
    quantized.save(tmp_path)
    loaded = causal_dfq.load(tmp_path)
    assert torch.equal(loaded(images()), logits)
    assert torch.equal(loaded.reference(images()), quantized.reference(images()))
    assert loaded.record == quantized.record
    assert loaded.quantized_tensors() == quantized.quantized_tensors()


def test_the_network_and_the_random_state_are_left_untouched() -> None:
    network = trained(Residual())
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    quantize(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_reference_is_the_float_network() -> None:
    network = trained(Residual())
    torch.testing.assert_close(quantize(network).reference(images()), network(images()), rtol=1e-4, atol=1e-5)


def test_eight_bits_stay_close_to_the_float_network() -> None:
    network = trained(Residual())
    coarse, fine = quantize(network, "w3a3"), quantize(network, "w8a8")
    errors = [(q(images()) - network(images())).square().mean() for q in (coarse, fine)]
    assert errors[1] < errors[0] / 20


def test_same_seed_same_bits_and_another_seed_others() -> None:
    network = trained(Residual())
    states = [quantize(network, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("bits", ["w2a4", "w4a8", "w32a4", "w4a32"])
def test_bits_of_weights_and_activations_go_apart(bits: str) -> None:
    tensors = quantize(trained(Residual()), bits).quantized_tensors()
    weight, activation = (int(part) for part in bits[1:].split("a"))
    assert {t.bits for t in tensors if t.kind == "weight"} == ({weight} if weight < 32 else set())
    assert {t.bits for t in tensors if t.kind == "activation"} == ({activation, 8} if activation < 32 else set())


def test_weights_left_alone_are_those_of_the_network() -> None:
    quantized = quantize(trained(Residual()), "w32a4")
    for name, tensor in quantized.reference.state_dict().items():
        assert torch.equal(quantized.state_dict()[f"graph_module.{name}"], tensor), name


@pytest.mark.parametrize(
    ("bits", "rounds", "method", "is_equalized"),
    [
        *(("w4a4", 0, "causal", True), ("w8a8", 0, "causal", True), ("w8a4", 0, "causal", True)),
        *(("w4a8", 0, "causal", False), ("w32a8", 0, "causal", False), ("w8a32", 0, "causal", False)),
        *(("w4a4", 2, "causal", False), ("w4a4", 0, "gdfq", False)),
    ],
)
def test_channels_are_equalized_where_their_grid_is_coarse_and_nothing_trains(
    bits: str, rounds: int, method: Method, is_equalized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = replace(SMALL, equilibrium_rounds=0, finish_rounds=rounds)
    for components in METHODS.values():
        if isinstance(components.budgets, dict):
            monkeypatch.setitem(components.budgets, "fast", untrained)
    norm = nn.BatchNorm2d(8)
    network = trained(
        nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    )
    norm.weight.data *= torch.linspace(0.2, 3, 8)
    options = make_options(bits=bits, effort="fast", input_shape=SHAPE, method=method)
    prepared = prepare(network, options)
    assert (prepared.equalized is not prepared.folded) == is_equalized
    written, as_it_was = (
        graph.get_submodule("layers.conv2d").weight for graph in (prepared.equalized, prepared.folded)
    )
    assert torch.equal(written, as_it_was) != is_equalized
    assert torch.allclose(prepared.equalized(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert torch.equal(start_run(prepared, options, torch.device("cpu")).views.folded.layers.conv2d.weight, written)
    quantized = quantize(network, bits, method=method)
    assert torch.allclose(quantized.reference(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert torch.equal(quantized.reference.get_submodule("layers.conv2d").weight, as_it_was)


class Masked(nn.Module):
    """Attention with an infinite mask, made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(images).flatten(2).transpose(1, 2)
        mask = torch.full((16, 16), -torch.inf).triu(1)
        return self.fc((torch.softmax(tokens @ tokens.transpose(1, 2) + mask, -1) @ tokens).mean(1))


def test_a_training_that_has_diverged_is_told_and_an_infinite_mask_is_none() -> None:
    options = make_options(bits="w8a8", input_shape=(3, 8, 8))
    prepared = prepare(trained(Masked()), options)
    run = start_run(prepared, options, torch.device("cpu"))
    run.calibrate()
    assert finish(prepared, run, options, {}, 0.0)(torch.randn(2, 3, 8, 8)).isfinite().all()
    with torch.no_grad():
        prepared.quantized.get_submodule(f"{LAYERS}.linear").bias.fill_(torch.nan)
    with pytest.raises(NetworkError, match="diverged"):
        finish(prepared, run, options, {}, 0.0)


def test_a_last_step_that_diverges_is_told_before_it_is_analysed(monkeypatch: pytest.MonkeyPatch) -> None:
    options = make_options(bits="w8a8", input_shape=(3, 8, 8))
    run = start_run(prepare(trained(Residual()), options), options, torch.device("cpu"))
    run.calibrate()

    def diverge(step: int) -> dict[str, float]:
        for quantizer in run.quantized.get_submodule(ACTIVATION_QUANTIZERS).children():
            quantizer.zero_point.data.fill_(torch.nan)
        return {}

    monkeypatch.setattr(run, "run_step", diverge)
    with pytest.raises(NetworkError, match="zero_point of the quantized network is not finite"):
        list(train(run, run.total_steps - 1))


def test_on_step_hears_every_step() -> None:
    heard: list[causal_dfq.StepReport] = []
    quantize(trained(Residual()), on_step=heard.append)
    assert [(report.step, report.phase.name) for report in heard] == [
        *((1, "warm-up"), (2, "warm-up"), (3, "calibration"), (4, "rounding"), (5, "rounding"), (6, "rounding")),
        *((7, "equilibrium"), (8, "equilibrium"), (9, "equilibrium"), (10, "equilibrium")),
        *((11, "finish"), (12, "finish"), (13, "finish"), (14, "finish")),
    ]


@pytest.mark.parametrize("done", [1, 2, 3, 5, 6, 8, 9, 10, 12, 13, 15, 16, 18])
def test_a_restored_run_ends_with_the_same_bits(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "fast", replace(SMALL, imprint_batches=2, imprint_iterations=3))
    assert_restored_run_ends_with_the_same_bits(done, monkeypatch)


def test_a_restored_run_ends_with_the_same_bits_when_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_compile(torch.device("cpu")):
        pytest.skip("torch.compile finds no compiler here")
    monkeypatch.setattr(budget, "COMPILED_FROM", 0)
    monkeypatch.setattr(fusion, "SMALLEST_COMPILED", 0)
    assert_restored_run_ends_with_the_same_bits(11, monkeypatch)


@pytest.mark.parametrize("done", [3, 4, 5, 6, 7, 8])
def test_a_run_restored_between_two_units_ends_with_the_same_bits(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "fast", replace(SMALL, reconstruction_iterations=5))
    assert_restored_run_ends_with_the_same_bits(done, monkeypatch)


@pytest.mark.parametrize("done", [10, 13, 100, 101, 103])
def test_a_restored_pool_ends_with_the_same_bits(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_restored_run_ends_with_the_same_bits(done, monkeypatch, "genie")


@pytest.mark.parametrize("done", [1, 3, 5])
def test_a_restored_run_without_generator_ends_with_the_same_bits(done: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    options = make_options(bits="w4a4", effort="fast", input_shape=SHAPE)
    whole, broken, resumed = (start_run(prepare(network, options), options, torch.device("cpu")) for _ in range(3))
    list(train(whole))
    for report in train(broken):
        if report.step == done:
            break
    restore_state(resumed, {name: tensor.clone() for name, tensor in run_state(broken).items()})
    list(train(resumed, done))
    expected, found = run_state(whole), run_state(resumed)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_restored_run_ends_with_the_same_bits(
    done: int, monkeypatch: pytest.MonkeyPatch, method: str = "causal"
) -> None:
    def share_in_any_case(quantized: fx.GraphModule, error: Callable[[], float]) -> None:
        falling = itertools.count(0, -1)
        assert share_step_sizes(quantized, lambda: next(falling))

    monkeypatch.setattr(equilibrium, "share_step_sizes", share_in_any_case)
    options = make_options(bits="w4a4", effort="fast", input_shape=SHAPE, method=method)

    def fresh() -> object:
        return start_run(prepare(trained(Residual()), options), options, torch.device("cpu"))

    whole = fresh()
    list(train(whole))
    broken = fresh()
    for report in train(broken):
        if report.step == done:
            break
    state = {name: tensor.clone() for name, tensor in run_state(broken).items()}
    resumed = fresh()
    restore_state(resumed, state)
    list(train(resumed, done))
    expected = run_state(whole)
    found = run_state(resumed)
    assert set(found) == set(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    leaders = found["step_size_leaders"].tolist()
    assert len(set(leaders)) == len(leaders) - (2 if method == "causal" else 0)


def test_network_without_norm_is_quantized_on_imprinted_scenes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    names: list[str] = []
    quantized = quantize(network, "w8a8", on_step=lambda report: names.append(report.phase.name))
    assert list(dict.fromkeys(names)) == ["imprint", "calibration", "rounding", "finish"]
    assert quantized.record.causal_model == ""
    torch.testing.assert_close(quantized(images()), network(images()), rtol=0.05, atol=0.02)


def test_large_images_are_imprinted_scenes_and_train_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(budget.LARGE_IMAGE_BUDGETS["fast"], imprint_batches=1, imprint_iterations=2)
    monkeypatch.setitem(budget.LARGE_IMAGE_BUDGETS, "fast", small)
    names: list[str] = []
    quantized = causal_dfq.quantize(
        trained(Residual()), "w8a8", (3, 72, 72), effort="fast", on_step=lambda report: names.append(report.phase.name)
    )
    assert list(dict.fromkeys(names)) == ["imprint", "calibration", "rounding"]
    assert quantized.record.causal_model == ""
    assert quantized.record.has_statistics
    measured = {name for name in quantized.record.last_metrics if name.startswith("analysis_")}
    assert measured == {"analysis_cka", "analysis_attention_overlap"}
    assert all(0.5 < quantized.record.last_metrics[name] <= 1 + 1e-6 for name in measured)


def test_a_method_of_statistics_refuses_a_network_without_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    network(torch.zeros(1, *SHAPE))
    with pytest.raises(ConfigError, match="no BatchNorm: quantize it with the method causal"):
        quantize(network, "w8a8", method="zeroq")


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"bits": "w1a4"}, "width 1 is not possible"),
        ({"bits": "w32a32"}, "leave everything in float"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean has 1 values, but the input has 3 channels"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std belong together"),
        ({"protocol": "fancy"}, "protocol='fancy'"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_choices_that_cannot_be_used_are_told(choices: dict[str, object], words: str) -> None:
    choices = {"bits": "w4a4", **choices}
    with pytest.raises(ConfigError, match=words):
        quantize(trained(Residual()), **choices)


def test_damaged_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"config\.json is missing"):
        causal_dfq.load(tmp_path)
    quantize(trained(Residual())).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(OutputError, match="damaged"):
        causal_dfq.load(tmp_path)


@pytest.mark.parametrize("method", ["zeroq", "gdfq", "genie", "synq"])
def test_the_methods_of_the_field_run_from_the_same_call(method: str, tmp_path: Path) -> None:
    quantized = quantize(trained(Residual()), method=method)
    assert quantized.record.options.method == method
    assert 0 < quantized.record.last_metrics["analysis_cka"] <= 1 + 1e-6
    quantized.save(tmp_path)
    assert torch.equal(causal_dfq.load(tmp_path)(images()), quantized(images()))
    assert torch.equal(quantize(trained(Residual()), method=method)(images()), quantized(images()))


def test_a_pool_keeps_to_no_memory_limit() -> None:
    with pytest.raises(ConfigError, match="genie"):
        quantize(trained(Residual()), method="genie", memory_limit="4GB")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    quantize(trained(Residual())).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "float.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_file_of_tensors_is_named(saved: Path, name: str, damage: str) -> None:
    content = (saved / name).read_bytes()
    if damage == "cut":
        (saved / name).write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        (saved / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        save_file({"weight": torch.full((2, 2), torch.nan)}, saved / name)
    with pytest.raises(OutputError, match=f"{name} is damaged"):
        causal_dfq.load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.pop("steps"), r"config\.json is damaged: steps: Field required"),
        (lambda config: config.pop("graph"), r"config\.json is damaged: it holds no 'graph'"),
        (lambda config: config["graph"].pop(), r"config\.json is damaged: a graph of it .* one output"),
        (lambda config: config["graph"][0].update(op="call_anything"), r"config\.json is damaged: the saved graph"),
        (lambda config: config["quantized_tensors"].pop(), r"config\.json is damaged: its content is not"),
        (lambda config: config["quantized_tensors"][1].update(bits=3), r"config\.json is damaged: its content is not"),
        (lambda config: config["options"].update(seed=7), r"config\.json is damaged: its content is not"),
    ],
)
def test_a_damaged_configuration_is_told_in_a_sentence(saved: Path, change: Callable[..., object], words: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(OutputError, match=words) as told:
        causal_dfq.load(saved)
    assert "\n" not in str(told.value)


def test_a_folder_without_digests_is_read(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["sha256"]
    (saved / "config.json").write_text(json.dumps(config))
    assert causal_dfq.load(saved)(images()).shape == (6, 5)
