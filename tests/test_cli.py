import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import kerasim
from kerasim import _adding, cli

SHAPE = (8, 6, 3)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images of two classes, light and dark, and the file of an embedder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for n in range(12):
        pixels = rng.integers(0, 90, SHAPE) + 150 * (n % 2)
        path = tmp_path / "pictures" / ("dark", "light")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(path)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4)])
    model.save(tmp_path / "model.keras")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process: its exit code, its output as JSON, its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kerasim", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
            warnings.simplefilter("default")  # as outside of tests, where they are no errors
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code, printed.out and json.loads(printed.out), printed.err

    return run


def test_from_a_folder_to_neighbors_threshold_page_and_export(place, run):
    code, said, _ = run("embed", "pictures", "gallery", "--embedder", "model.keras")
    assert (code, said["added"], said["images"]) == (0, 12, 12)
    assert run("embed", "pictures", "gallery")[1]["added"] == 0

    code, found, _ = run("query", "gallery", "pictures/dark/2.png", "pictures/light/3.png", "-k", 3)
    assert code == 0 and [row["rank"] for row in found] == [1, 2, 3] * 2
    assert found[0]["query"] == "pictures/dark/2.png" and found[0]["file"].endswith("dark/2.png")
    gallery = kerasim.gallery.Gallery.load("gallery")
    table = gallery.query(["pictures/dark/2.png", "pictures/light/3.png"], 3)
    assert [row["id"] for row in found] == table["id"].tolist()
    assert [row["distance"] for row in found] == pytest.approx(table["distance"].tolist(), abs=1e-9)

    code, said, _ = run("calibrate", "gallery", "pictures", "--max-far", 0.3)
    assert code == 0 and said["threshold"] == kerasim.gallery.Gallery.load("gallery").threshold
    assert said["far"] <= 0.3 and said["far_interval"][0] <= said["far"] <= said["far_interval"][1]
    code, found, _ = run("verify", "gallery", "pictures/dark/0.png", "pictures/dark/0.png")
    assert code == 0 and found["same"] is True
    code, found, _ = run("verify", "gallery", "pictures/dark/0.png", "pictures/light/1.png")
    assert code == 1 and found["same"] is False

    assert run("map", "gallery", "page.html", "--title", "My pictures")[0] == 0
    assert "My pictures" in (place / "page.html").read_text()

    model = keras.models.load_model("model.keras")
    images = np.random.default_rng(0).random((2, *SHAPE), dtype="float32")
    assert run("export", "gallery", "saved")[0] == 0
    saved = kerasim.export.load_saved_model("saved")
    np.testing.assert_allclose(saved(images), model.predict(images, verbose=0), atol=1e-5)
    assert run("export", "model.keras", "model.onnx")[0] == 0
    assert (place / "model.onnx").stat().st_size > 100


def test_damaged_images_are_refused_or_left_out_with_a_warning(place, run):
    (place / "pictures" / "dark" / "torn.png").write_bytes(b"no picture")
    code, said, errors = run("embed", "pictures", "gallery", "--embedder", "model.keras")
    assert code == 2 and "torn.png" in errors and not (place / "gallery").exists()
    command = ("embed", "pictures", "gallery", "--embedder", "model.keras", "--on-error", "skip")
    code, said, errors = run(*command)
    assert code == 0 and said["images"] == 12
    assert [file.rsplit("/")[-1] for file in said["skipped"]] == ["torn.png"]
    assert errors.startswith("kerasim: warning: ") and "torn.png" in errors


def lambda_model(path):
    keras.Sequential([keras.Input(SHAPE), keras.layers.Lambda(lambda x: x)]).save(path)


@pytest.mark.fault("python-code-in-keras-file")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("query", "nowhere", "pictures/dark/0.png"), "There is no gallery at"),
        (("embed", "pictures", "gallery"), "Pass --embedder"),
        (
            ("embed", "nowhere", "gallery", "--embedder", "model.keras"),
            "There is no folder nowhere",
        ),
        (("embed", "pictures", "gallery", "--embedder", "gone.keras"), "There is no file"),
        (("embed", "pictures", "gallery", "--embedder", "lambda.keras"), "not run for safety"),
        (("embed", "pictures", "gallery", "--embedder", "vgg15"), "vgg15"),
        (("export", "model.keras", "model.keras/x"), "model.keras/x"),
        (("export", "model.keras", "saved", "--format", "onnx"), "ends in .onnx"),
        (("export", "model.keras", "a.onnx", "--format", "savedmodel"), "ends in .onnx"),
        (("calibrate", "made", "pictures/dark"), "pictures/dark has no subfolders"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(place, run, arguments, message):
    lambda_model(place / "lambda.keras")
    if "made" in arguments:
        run("embed", "pictures", "made", "--embedder", "model.keras")
    code, said, errors = run(*arguments)
    assert code == 2 and said == ""
    assert errors.startswith("kerasim: error: ") and errors.count("\n") == 1
    assert message in errors and "safe_mode" not in errors


def test_a_gallery_opened_with_another_embedder_is_refused(place, run):
    run("embed", "pictures", "gallery", "--embedder", "model.keras")
    other = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4)])
    other.save(place / "other.keras")
    code, _, errors = run("embed", "pictures", "gallery", "--embedder", "other.keras")
    assert code == 2 and "made with another embedder" in errors


def test_a_gallery_is_made_in_an_empty_folder_and_keeps_its_metric(place, run):
    (place / "gallery").mkdir()
    command = ("embed", "pictures", "gallery", "--embedder", "model.keras", "--metric")
    assert run(*command, "manhattan")[0] == 0
    assert run(*command, "manhattan")[1]["added"] == 0
    code, _, errors = run(*command, "cosine")
    assert code == 2 and "--metric cosine differs from that of the gallery" in errors


def test_a_file_name_of_any_bytes_is_printed(place, run):
    strange = os.fsdecode(b"pictures/light/\xff.png")
    os.rename("pictures/light/3.png", strange)
    assert run("embed", "pictures", "gallery", "--embedder", "model.keras")[0] == 0
    code, found, errors = run("query", "gallery", strange, "-k", 1)
    assert code == 0, errors
    assert found[0]["query"] == strange


@pytest.fixture
def gallery(place, run):
    """A gallery of the images."""
    assert run("embed", "pictures", "gallery", "--embedder", "model.keras")[0] == 0
    return place / "gallery"


def test_a_gallery_is_described(gallery, run):
    code, said, _ = run("info", "gallery")
    assert code == 0 and said["items"] == 12 and said["labels"] == {"dark": 6, "light": 6}
    assert said["metric"] == "cosine" and said["threshold"] is None


def test_files_are_removed_pruned_and_relocated(gallery, place, run):
    removed = run("remove", "gallery", "pictures/dark/0.png", "pictures/dark/2.png")[1]
    assert removed == {"removed": 2, "images": 10}
    (place / "pictures" / "light" / "1.png").unlink()
    assert run("prune", "gallery")[1] == {"removed": 1, "images": 9}
    (place / "pictures").rename(place / "moved")
    assert run("relocate", "gallery", "pictures", "moved")[1] == {"relocated": 9, "images": 9}
    found = run("query", "gallery", "moved/dark/4.png", "-k", 1)[1]
    assert found[0]["file"] == str(place / "moved" / "dark" / "4.png")


def test_a_folder_with_a_damaged_image_can_be_calibrated(gallery, place, run):
    (place / "pictures" / "dark" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    code, _, errors = run("calibrate", "gallery", "pictures")
    assert code == 2 and "--on-error skip" in errors and "on_error=" not in errors
    code, said, errors = run("calibrate", "gallery", "pictures", "--on-error", "skip")
    assert code == 0 and said["positive_pairs"] + said["negative_pairs"] == 10_000


def test_few_pairs_are_warned_of(gallery, run):
    code, said, errors = run("calibrate", "gallery", "pictures", "--pairs", 50)
    assert code == 0 and said["positive_pairs"] + said["negative_pairs"] == 50
    assert "warning" in errors and "few pairs" in errors


def test_tables_show_files_from_the_working_folder_and_names_in_their_script(
    place, run, monkeypatch, capsys
):
    os.rename("pictures/light/3.png", "pictures/light/船\u202e.png")
    run("embed", "pictures", "gallery", "--embedder", "model.keras")
    monkeypatch.setattr(sys, "argv", ["kerasim", "query", "gallery", "pictures/dark/0.png"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert "pictures/light/船\\u202e.png" in printed and "\u202e" not in printed
    assert max(map(len, printed.splitlines()[1:])) < 60


def test_a_file_is_removed_by_the_path_that_query_prints(place, run, monkeypatch, capsys):
    run("embed", "pictures", "gallery", "--embedder", "model.keras")
    monkeypatch.setattr(
        sys, "argv", ["kerasim", "query", "gallery", "pictures/dark/0.png", "-k", "1"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    (printed,) = re.findall(r"pictures/\S+\.png", capsys.readouterr().out.splitlines()[-1])
    assert run("remove", "gallery", printed)[0] == 0


def test_a_damaged_image_among_many_is_reported_with_what_was_added(place, run, monkeypatch):
    monkeypatch.setattr(_adding, "PIECE", 6)
    Path("pictures/light/damaged.png").write_bytes(b"no image")
    code, _, errors = run("embed", "pictures", "gallery", "--embedder", "model.keras")
    assert code == 2 and "damaged.png" in errors
    assert "images were added to gallery, which is incomplete" in errors


def test_a_name_in_any_script_is_printed_as_json(place, run):
    os.rename("pictures/light/3.png", "pictures/light/船 😀.png")
    run("embed", "pictures", "gallery", "--embedder", "model.keras")
    found = run("query", "gallery", "pictures/light/船 😀.png", "-k", 1)[1]
    assert found[0]["file"].endswith("light/船 😀.png")


def test_an_interrupt_keeps_what_was_embedded_and_says_so(place, run, monkeypatch):
    def interrupted(self, images, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kerasim.gallery.Gallery, "add", interrupted)
    code, said, errors = run("embed", "pictures", "gallery", "--embedder", "model.keras")
    assert code == 130 and said == ""
    assert "0 images were added to gallery. The same command adds the rest." in errors


def test_the_noise_of_an_image_is_removed(place, run):
    network = kerasim.models.denoising_autoencoder((None, None, 3), (4, 8))
    estimator = kerasim.models.noise_estimator((None, None, 3), (4,))
    kerasim.denoising.Denoiser(network, estimator).save("denoiser")
    pixels = np.random.default_rng(0).integers(0, 90, (16, 16, 3), "uint8")
    Image.fromarray(pixels).save("noisy.png")
    code, said, _ = run("denoise", "denoiser", "noisy.png", "clean.png")
    assert code == 0 and said["written"] == "clean.png" and 0.05 < said["sigma"] < 0.3
    # An untrained network returns its input.
    with Image.open("clean.png") as clean, Image.open("noisy.png") as noisy:
        np.testing.assert_array_equal(clean, noisy)
    code, said, _ = run("denoise", "denoiser", "noisy.png", "c.png", "--sigma", 0.2)
    assert said["sigma"] == pytest.approx(0.2)
    for arguments, message in (
        (("nothing", "noisy.png", "c.png"), "There is no denoiser at nothing"),
        (("denoiser", "no.png", "c.png"), "no.png"),
        (("denoiser", "noisy.png", "c.gif"), "suffix '.gif'"),
        (("pictures", "noisy.png", "c.png"), "pictures"),
    ):
        code, _, error = run("denoise", *arguments)
        assert code == 2 and message in error, error


def test_a_data_set_is_fetched(place, run, monkeypatch):
    asked = []
    monkeypatch.setattr(kerasim.data, "fetch", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(sys, "argv", ["kerasim", "fetch", "mnist"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0 and asked == [("mnist", None)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("query", "nowhere", "model.keras"),
        ("query", "model.keras", "nothing.png"),
        ("embed", "nowhere", "gallery", "--embedder", "vgg16"),
        ("embed", ".", "gallery"),
        ("embed", ".", "gallery", "--embedder", "gone.keras"),
        ("export", "model.keras", "saved", "--format", "onnx"),
        ("export", "gone.keras", "saved"),
        ("relocate", "gallery", "old", "nowhere"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_errors_that_need_no_keras_are_reported_without_importing_it(place, arguments):
    code = (
        "import sys; sys.argv[1:] = " + repr([*arguments]) + "\n"
        "from kerasim import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    print('heavy:', sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "heavy: []" in done.stdout
    assert done.returncode == (0 if arguments == ("--version",) else 2), done.stderr


def test_the_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kerasim", "--version"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"kerasim {kerasim.__version__}\n"


def test_an_unexpected_error_ends_with_exit_code_2(place, run, monkeypatch):
    def breaks(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(cli, "_open", breaks)
    code, _, errors = run("verify", "gallery", "pictures/dark/0.png", "pictures/dark/2.png")
    assert code == 2 and errors == "kerasim: error: MemoryError: no room\n"


def test_help_comes_without_keras_and_a_wrong_call_is_exit_code_2():
    code = (
        "import sys; sys.argv[1:] = ['query', '--help']\n"
        "from kerasim import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    print('heavy:', sorted({'keras', 'numpy', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "heavy: []" in done.stdout and "gallery" in done.stdout
    command = [sys.executable, "-m", "kerasim", "nonsense"]
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_a_path_that_the_system_refuses_is_named(place, run):
    unreadable = "x" * 300  # longer than a file name may be
    for arguments in (
        ("info", unreadable),
        ("embed", unreadable, "gallery", "--embedder", "model.keras"),
        ("embed", "pictures", unreadable, "--embedder", "model.keras"),
        ("export", unreadable, "saved"),
        ("relocate", "gallery", "old", unreadable),
    ):
        code, _, errors = run(*arguments)
        assert code == 2 and "File name too long" in errors and "OSError" not in errors
        assert errors.startswith("kerasim: error: Cannot read ")


@pytest.mark.parametrize("arguments", [("embed", "", "gallery"), ("calibrate", "gallery", "")])
def test_an_empty_argument_does_not_stand_for_the_working_folder(place, run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2 and errors.startswith("kerasim: error: An argument is empty")


def test_a_page_does_not_replace_an_image(gallery, place, run):
    before = (place / "pictures/dark/0.png").read_bytes()
    code, _, errors = run("map", "gallery", "pictures/dark/0.png")
    assert code == 2 and "ending in .html" in errors
    assert (place / "pictures/dark/0.png").read_bytes() == before


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_output_that_is_closed_is_not_reported_as_another_exit_code(unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kerasim", "--version"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert done.returncode == 141 and done.stderr == b""


def test_the_command_line_runs_without_standard_streams(place):
    code = "import sys; sys.stdout = sys.stderr = None; sys.argv[1:] = ['info', 'nowhere']\n"
    code += "from kerasim import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
