"""The command line as a user meets it: processes, exit codes, files."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import causal_dfq
from causal_dfq.config import make_options
from causal_dfq.errors import OutputError
from tests.e2e.factories import Residual

ROOT = Path(__file__).resolve().parents[2]
RESIDUAL = ("tests.e2e.factories:residual", "--input-shape", "3x16x16", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
WITHOUT_NORM = ("tests.e2e.factories:without_norm", "--input-shape", "3x16x16")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.e2e.small_budget", *map(str, arguments)]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def quantize(out: Path, *more: object, network: tuple[object, ...] = RESIDUAL) -> subprocess.CompletedProcess[str]:
    return run("quantize", *network, "--effort", "fast", "--device", "cpu", "--out", out, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    done = quantize(out)
    assert done.returncode == 0, done.stderr
    return out


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_quantize_writes_the_files_and_nothing_else(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"model.safetensors", "float.safetensors", "config.json", "log.jsonl", "samples.png"}


def test_log_holds_every_step_with_losses_and_equilibrium_quantities(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 15))
    phases = ["warm-up"] * 3 + ["calibration"] + ["equilibrium"] * 4 + ["finish"] * 6
    assert [line["phase"] for line in lines] == phases
    assert {"class_loss", "statistics_loss", "invariance_loss", "diversity_loss"} <= set(lines[0])
    assert {"discrepancy", "sensitivity_pretrained", "sensitivity_quantized"} <= set(lines[-1])


def test_config_tells_how_to_repeat_the_run(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["options"]["bits"] == "w4a4"
    assert config["options"]["seed"] == 0
    assert config["reference"] == "tests.e2e.factories:residual"
    assert "--effort fast" in config["command"]
    assert {"torch", "python", "causal_dfq"} <= set(config["versions"])
    kinds = [tensor["kind"] for tensor in config["quantized_tensors"]]
    assert kinds.count("weight") == 3


def test_weights_are_stored_as_four_bit_integers(finished: Path) -> None:
    state = load_file(finished / "model.safetensors")
    codes = [tensor for name, tensor in state.items() if name.endswith(".codes")]
    assert len(codes) == 3
    for tensor in codes:
        assert tensor.dtype == torch.int8
        assert tensor.min() >= -8
        assert tensor.max() <= 7


def test_evaluate_gives_the_figures_as_table_and_json(finished: Path, tmp_path: Path) -> None:
    rng = numpy.random.default_rng(0)
    images = rng.integers(0, 256, (20, 16, 16, 3), numpy.uint8)
    numpy.savez(tmp_path / "data.npz", images=images, labels=rng.integers(0, 4, 20))
    done = run("evaluate", finished, "--data", tmp_path / "data.npz", "--json", tmp_path / "e.json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["images"] == 20
    assert figures["drop"] == pytest.approx(figures["float_top1"] - figures["top1"])
    quantized = causal_dfq.load(finished)
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    same = quantized(inputs).argmax(1) == Residual().eval()(inputs).argmax(1)
    assert figures["agreement"] == pytest.approx(100 * same.float().mean().item())


def test_killed_run_resumes_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("quantize", *RESIDUAL, "--effort", "fast", "--device", "cpu", "--out", out)
    environment = {**os.environ, "SECONDS_BETWEEN": "0"}
    kills = 0
    for attempt in range(20):
        more = ("--resume",) if attempt else ()
        process = subprocess.Popen(
            command(*arguments, *more), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        log = out / "log.jsonl"
        seen = len(log.read_text().splitlines()) if log.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and kills < 3:
            if log.exists() and len(log.read_text().splitlines()) > seen + 1:
                process.send_signal(signal.SIGKILL)
                kills += 1
            time.sleep(0.002)
        process.wait(60)
        if process.returncode == 0:
            break
    assert kills >= 1
    assert process.returncode == 0
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 15))


def test_interrupt_tells_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("quantize", *RESIDUAL, "--effort", "fast", "--device", "cpu", "--out", out)
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert (out / "checkpoint.safetensors").exists()
    assert quantize(out).returncode == 2
    assert quantize(out, "--resume").returncode == 0
    assert not (out / "checkpoint.safetensors").exists()


def test_resume_with_other_settings_is_refused(finished: Path) -> None:
    assert_refused(quantize(finished, "--resume", "--seed", "5"), "seed was 0, now 5")


def test_resume_of_a_finished_run_changes_nothing(finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    assert quantize(finished, "--resume").returncode == 0
    assert (finished / "config.json").read_bytes() == before


def test_finished_folder_is_not_overwritten(finished: Path) -> None:
    assert_refused(quantize(finished), "already holds a finished run")


def test_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert_refused(quantize(tmp_path), "holds something else", "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("network", "more", "words"),
    [
        (("resnet20-fashoin",), (), ("resnet20-fashion", "not known")),
        (RESIDUAL, ("--bits", "w9a4"), ("w9a4", "2 to 8")),
        (RESIDUAL, ("--bits", "int8"), ("int8", "w4a4")),
        (("tests.e2e.factories:missing",), (), ("no function 'missing'",)),
        (("tests.e2e.factories:residual",), (), ("--input-shape",)),
        (("tests.e2e.factories:not_finite", "--input-shape", "3x16x16"), (), ("1 NaN", "conv2.weight")),
        (WITHOUT_NORM, ("--method", "gdfq"), ("no BatchNorm", "method causal")),
        (RESIDUAL, ("--method", "genie", "--memory-limit", "4GB"), ("method genie", "memory limit")),
        (RESIDUAL, ("--memory-limit", "10MB"), ("too small", "at least")),
        (("tests.e2e.factories:branching", "--input-shape", "3x16x16"), (), ("captured", "factories.py", "line")),
        (("tests.e2e.factories:residual", "--input-shape", "1x16x16"), (), ("fails on images of shape 1x16x16",)),
        (("tests.e2e.factories:residual", "--input-shape", "16x16"), (), ("16x16", "3x224x224")),
        (RESIDUAL, ("--weights", "net.pth"), ("net.pth",)),
        (RESIDUAL, ("--bits", "auto"), ("auto", "--size-budget 0.6")),
        (RESIDUAL, ("--size-budget", "0.5"), ("size budget", "--bits auto")),
        (RESIDUAL, ("--bits", "auto", "--size-budget", "1.5"), ("1.5", "600KB")),
        (RESIDUAL, ("--bits", "auto", "--size-budget", "0.2"), ("too small", "2 bits")),
        (RESIDUAL, ("--bits", "auto", "--size-budget", "0.6", "--protocol", "gdfq"), ("protocol deploy",)),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, network: tuple[str, ...], more: tuple[str, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    assert_refused(quantize(out, *more, network=network), *words)
    assert not out.exists()


def test_pickled_checkpoint_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    torch.save({"state_dict": Residual().state_dict(), "epoch": 3}, tmp_path / "net.pth")
    done = quantize(tmp_path / "run", "--weights", tmp_path / "net.pth")
    assert_refused(done, "unpickling", "save_file", "weights_only=True")
    command = done.stderr[done.stderr.index("python -c") :].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    done = quantize(tmp_path / "run", "--weights", tmp_path / "net.safetensors")
    assert done.returncode == 0, done.stderr


def test_weights_that_do_not_fit_name_the_key(tmp_path: Path) -> None:
    state = Residual().state_dict()
    state["fc.weight"] = torch.zeros(7, 8)
    del state["bn2.bias"]
    save_file(state, tmp_path / "net.safetensors")
    done = quantize(tmp_path / "run", "--weights", tmp_path / "net.safetensors")
    assert_refused(done, "'bn2.bias'", "'fc.weight' is 7x8 in the file, 4x8 in the network")


def test_network_without_norm_is_told_what_guided_its_images(tmp_path: Path) -> None:
    done = quantize(tmp_path / "run", "--bits", "w8a8", network=WITHOUT_NORM)
    assert done.returncode == 0, done.stderr
    assert "the network has no BatchNorm" in done.stdout
    assert "CKA of Q to P" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {tensor["kind"] for tensor in config["quantized_tensors"]} == {"weight", "activation"}
    assert (tmp_path / "run" / "samples.png").stat().st_size > 1000


def test_file_of_the_users_under_a_name_of_ours_is_left_alone(tmp_path: Path) -> None:
    for name in ("model.safetensors", "log.jsonl", "config.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("the user's")
        for more in ((), ("--resume",)):
            assert_refused(quantize(folder, *more), "holds something else", name)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "the user's"


def test_what_a_kill_leaves_does_not_stop_the_next_run(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".checkpoint.safetensors.partial.safetensors").write_bytes(b"half")
    (out / "log.jsonl").write_text('{"step": 1, "pha')
    assert quantize(out, "--resume").returncode == 0
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in finished.iterdir()}


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert_refused(quantize(tmp_path / "run"), "is a file", "--out")


def test_write_that_the_system_refuses_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run(
        command("quantize", *RESIDUAL, "--effort", "fast", "--device", "cpu", "--out", out),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        # The log fits, a checkpoint does not.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert_refused(done, "cannot write", "checkpoint.safetensors")
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


def test_no_disk_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from causal_dfq import run_folder

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    options = make_options(input_shape=(3, 16, 16), effort="fast")
    source = run_folder.Source("residual", None, "")
    with pytest.raises(OutputError, match=r"no disk space for .*, 0 MB are free"):
        run_folder.quantize_to_folder(
            Residual(), options, torch.device("cpu"), tmp_path / "run", source, False, lambda report: None
        )
    assert not (tmp_path / "run").exists()


def test_models_lists_the_bundled_networks_with_their_accuracy() -> None:
    # A pipe has no edge, so nothing is shortened.
    done = run("models", COLUMNS="40")
    assert done.returncode == 0
    for name in ("resnet20-fashion", "resnet20-cifar10", "mobilenetv2-cifar10"):
        assert name in done.stdout


def test_evaluate_tells_what_is_missing(finished: Path, tmp_path: Path) -> None:
    assert_refused(run("evaluate", tmp_path, "--data", tmp_path), "config.json is missing")
    assert_refused(run("evaluate", finished, "--data", tmp_path / "no.npz"), "no.npz does not exist")


def test_mean_without_std_is_refused_and_not_completed_from_the_source(tmp_path: Path) -> None:
    done = quantize(tmp_path / "run", "--mean", "0.5", network=("resnet20-fashion",))
    assert_refused(done, "mean and std belong together")
    done = quantize(tmp_path / "run", "--mean", "nan", "--std", "1", network=("resnet20-fashion",))
    assert_refused(done, "mean", "finite")


def test_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from causal_dfq.files import write_text

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="no disk space left"):
        write_text(tmp_path / "config.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_export_writes_a_checked_file_and_says_so(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "network.onnx"
    done = run("export", finished, "--out", file, "--storage", "packed")
    assert done.returncode == 0, done.stderr
    assert "100.0 % of 64 synthetic images" in done.stdout
    assert "opset 21, packed storage" in done.stdout
    assert file.stat().st_size > 0
    assert_refused(run("export", finished, "--out", file), "exists", "--force")
    assert run("export", finished, "--out", file, "--force").returncode == 0


def test_export_for_torch_names_its_file_whatever_it_is_called(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs[w4a4]"
    folder.mkdir()
    done = run("export", finished, "--format", "pt2", "--out", folder / "network.pt2")
    assert done.returncode == 0, done.stderr
    assert "runs[w4a4]/network.pt2" in done.stdout
    assert (folder / "network.pt2").stat().st_size > 0
    assert_refused(run("export", finished, "--format", "pt2", "--storage", "packed"), "--storage", "ONNX")


def test_bench_prints_both_networks_in_every_runtime(finished: Path) -> None:
    done = run("bench", finished, "--rounds", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime" in done.stdout
    assert "packed" in done.stdout


def test_weights_in_float_are_neither_exported_nor_timed(tmp_path: Path) -> None:
    assert quantize(tmp_path / "run", "--bits", "w32a8").returncode == 0
    for name in ("export", "bench"):
        assert_refused(run(name, tmp_path / "run"), "bits w32a8: the weights are in float", "w8 for example")


def test_export_of_something_else_is_refused(tmp_path: Path) -> None:
    assert_refused(run("export", tmp_path), "holds no quantized network")


def test_bits_of_each_layer_are_chosen_within_a_budget_and_inspected(tmp_path: Path) -> None:
    done = quantize(tmp_path / "run", "--bits", "auto", "--size-budget", "0.6")
    assert done.returncode == 0, done.stderr
    layers = tmp_path / "layers.json"
    shown = run("inspect", tmp_path / "run", "--json", layers)
    assert shown.returncode == 0, shown.stderr
    reports = json.loads(layers.read_text())
    assert {report["name"] for report in reports} == {"conv1", "conv2", "fc"}
    assert sum(report["size"] for report in reports) <= 0.6 * sum(report["weights"] for report in reports)
    order = [shown.stdout.index(f" {report['name']} ") for report in reports]
    assert order == sorted(order)


def test_inspect_names_a_damaged_file(tmp_path: Path) -> None:
    assert quantize(tmp_path / "run").returncode == 0
    (tmp_path / "run" / "config.json").write_text("{")
    assert_refused(run("inspect", tmp_path / "run"), "config.json")
