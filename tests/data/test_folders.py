"""Folders of one's own images, from how they are read to a student that finds a small defect in a large image."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.miniatures import Crash, crash
from PIL import Image, ImageOps

from kdad.cli import main
from kdad.data import folders
from kdad.data.folder_layout import categories
from kdad.data.folders import FolderTask, ImageFiles
from kdad.data.loading import load_task
from kdad.data.preprocessing import Preprocessing
from kdad.data.protocol import ENOUGH_TO_CALIBRATE, FOLDS, MIN_NORMALS
from kdad.detection.calibration import load_calibration
from kdad.detection.detector import Detector
from kdad.errors import UserError
from kdad.networks.recipes import Recipe
from kdad.storage import layout
from kdad.storage import student_folder as store
from kdad.training.distillation import train_student

SMALL = Preprocessing(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
QUICK = Recipe(epochs=1, batch_size=8)


def picture(rng, height=40, width=40) -> Image.Image:
    return Image.fromarray(rng.integers(60, 120, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def mvtec(tmp_path):
    """A category in the layout of MVTec AD: twelve good images to train on, tests of two kinds, and masks."""
    root, rng = tmp_path / "bottle", np.random.default_rng(0)
    for place, count in (("train/good", 12), ("test/good", 4), ("test/crack", 3), ("test/stain", 2)):
        (root / place).mkdir(parents=True)
        for index in range(count):
            picture(rng).save(root / place / f"{index:03d}.png")
    (root / "ground_truth" / "crack").mkdir(parents=True)
    for index in range(3):
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 5:15] = 255
        Image.fromarray(mask).save(root / "ground_truth" / "crack" / f"{index:03d}_mask.png")
    return root


@pytest.fixture
def plain(tmp_path):
    """A plain folder: nested, mixed sizes, formats and modes, and two files that are no images."""
    root, rng = tmp_path / "mugs", np.random.default_rng(0)
    (root / "deep" / "er").mkdir(parents=True)
    for index, suffix in enumerate(["jpg", "png", "webp", "bmp", "tif", "JPG"] * 2):
        image = picture(rng, 30 + index, 50 - index).convert("L" if index % 3 == 0 else "RGB")
        image.save((root / "deep" / "er" if index % 2 else root) / f"{index}.{suffix}")
    (root / "broken.png").write_bytes(b"no image")
    (root / "empty.jpg").touch()
    (root / "notes.txt").write_text("not to be read")
    return root


@pytest.fixture
def few_folds(monkeypatch):
    """Two, of few tiles, for students whose folds are not what matters."""
    monkeypatch.setattr(folders, "FOLDS", 2)
    monkeypatch.setattr(folders, "TRAINING_TILES", 20)


def test_the_mvtec_layout(mvtec):
    task = FolderTask(mvtec, SMALL)
    assert task.train.shape == (11, 3, 32, 32) and task.train.dtype == torch.uint8
    assert [tuple(image.shape) for image in task.calibration] == [(3, 40, 40)]
    assert task.kinds == ("good", "crack", "stain")
    assert task.test.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert task.test.anomalous.tolist() == [False] * 4 + [True] * 5
    assert not task.test.masks[0].any()
    assert np.argwhere(task.test.masks[5]).min(0).tolist() == [10, 5]
    assert task.test.masks[7] is None  # nobody marked the stains


def test_a_plain_folder_skips_what_is_no_image_and_says_so(plain, capsys):
    task = FolderTask(plain, SMALL)
    assert len(task.train) + len(task.calibration) == 12
    assert task.test is None
    said = capsys.readouterr().err
    assert said.count("skipped") == 2 and "broken.png" in said and "empty.jpg" in said


def test_no_image_is_in_two_parts(plain):
    task = FolderTask(plain, SMALL)
    train, held_out = ({task.layout.normals[i] for i in part} for part in task._split)
    assert not train & held_out
    assert len(train | held_out) == 12


@pytest.mark.parametrize("kinds", [["good"], ["crack"], []])
def test_without_both_kinds_there_is_no_test(mvtec, kinds):
    import shutil

    for folder in list((mvtec / "test").iterdir()):
        if folder.name not in kinds:
            shutil.rmtree(folder)
    assert FolderTask(mvtec, SMALL).test is None


def test_test_images_are_no_normals_of_a_plain_folder(plain, mvtec):
    (mvtec / "test").rename(plain / "test")
    (mvtec / "ground_truth").rename(plain / "ground_truth")
    task = FolderTask(plain, SMALL)
    assert len(task.train) + len(task.calibration) == 12
    assert len(task.test.images) == 9


def test_too_few_images_are_refused(tmp_path, refusal):
    rng = np.random.default_rng(0)
    for index in range(MIN_NORMALS - 1):
        picture(rng).save(tmp_path / f"{index}.png")
    assert f"contains {MIN_NORMALS - 1} readable images" in refusal(lambda: FolderTask(tmp_path, SMALL).train)
    assert "no such folder" in refusal(FolderTask, tmp_path / "nowhere", SMALL)


def test_a_mask_of_another_size_is_named(mvtec):
    Image.new("L", (20, 40)).save(mvtec / "ground_truth" / "crack" / "001_mask.png")
    with pytest.raises(UserError, match=r"001_mask\.png: a mask of \(20, 40\)"):
        FolderTask(mvtec, SMALL).test.masks[5]


def test_what_is_wrong_with_masks_is_told_before_any_work(mvtec, vgg_teacher, tmp_path, refusal):
    task, masks = FolderTask(mvtec, SMALL), mvtec / "ground_truth" / "crack"

    def refused() -> str:
        return refusal(train_student, task, vgg_teacher, tmp_path / "out", recipe=QUICK, device="cpu")

    Image.new("L", (20, 40), 255).save(masks / "001_mask.png")
    assert refused().endswith("001_mask.png: a mask of (20, 40) for an image of (40, 40)")
    (masks / "002_mask.png").write_bytes(b"no image")
    said = refused()
    assert said.startswith("2 of 3 masks cannot be used: ")
    assert "(20, 40)" in said and "002_mask.png: not an image" in said
    for index in (0, 1, 2):
        Image.new("L", (40, 40), 255 * (index == 0)).save(masks / f"{index:03d}_mask.png")
    assert "2 of 3 masks mark nothing, such as" in refused() and "remove the masks" in refused()
    assert not (tmp_path / "out").exists()


def test_a_few_empty_masks_are_no_masks(mvtec, capsys):
    Image.new("L", (40, 40)).save(mvtec / "ground_truth" / "crack" / "001_mask.png")
    task = FolderTask(mvtec, SMALL)
    task.check()
    assert "1 of 3 masks mark nothing, such as" in capsys.readouterr().err
    assert [mask is None for mask in task.test.masks] == [False] * 4 + [False, True, False, True, True]
    assert task.test.anomalous.sum() == 5


def test_inverted_masks_are_asked_about(mvtec, capsys):
    for file in (mvtec / "ground_truth" / "crack").iterdir():
        ImageOps.invert(Image.open(file)).save(file)
    FolderTask(mvtec, SMALL).check()
    assert "masks mark 94% of the pixels" in capsys.readouterr().err


def test_masks_beside_images_are_no_images(mvtec, capsys):
    """Some tools save `000_mask.png` beside `000.png`, and no folder of masks."""
    expected = FolderTask(mvtec, SMALL).test.masks[5]
    for index, name in enumerate(("000_mask.png", "001-GT.bmp", "002_label_1.png")):
        mask = Image.open(mvtec / "ground_truth" / "crack" / f"{index:03d}_mask.png")
        mask.save(mvtec / "test" / "crack" / name)
    Image.open(mvtec / "ground_truth" / "crack" / "000_mask.png").save(mvtec / "train" / "good" / "003_seg.png")
    shutil.rmtree(mvtec / "ground_truth")
    task = FolderTask(mvtec, SMALL)
    task.check()
    assert len(task.layout.normals) == 12
    assert len(task.test.images) == 9
    for index in (4, 5, 6):
        assert np.array_equal(task.test.masks[index], expected)
    assert "1 mask beside images, such as" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ok", "Normal"])
def test_normals_go_by_the_same_names_in_both_parts(mvtec, name):
    """As in BTAD: train/ok, test/ok, test/ko."""
    usual = FolderTask(mvtec, SMALL)
    expected, kinds = usual.test.anomalous.tolist(), usual.kinds
    for part in ("train", "test"):
        (mvtec / part / "good").rename(mvtec / part / name)
    task = FolderTask(mvtec, SMALL)
    assert (len(task.layout.normals), task.test.anomalous.tolist(), task.kinds) == (12, expected, kinds)
    assert categories(mvtec.parent) == [mvtec]


def test_several_masks_of_one_image_add_up(mvtec):
    masks = mvtec / "ground_truth" / "crack"
    other = np.zeros((40, 40), np.uint8)
    other[30:, 30:] = 255
    Image.fromarray(other).save(masks / "001_mask_1.png")
    task = FolderTask(mvtec, SMALL)
    assert np.array_equal(task.test.masks[5], task.test.masks[4] | (other > 0))


def test_an_image_whose_name_ends_like_a_mask_is_one_if_there_is_no_other(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(12):
        picture(rng).save(tmp_path / f"{index}_label.png")
    assert len(FolderTask(tmp_path, SMALL).layout.normals) == 12


def test_copies_of_an_image_are_used_once_and_counted(mvtec, capsys):
    shutil.copy(mvtec / "train" / "good" / "000.png", mvtec / "train" / "good" / "copy.png")
    shutil.copy(mvtec / "train" / "good" / "001.png", mvtec / "test" / "good" / "000.png")
    task = FolderTask(mvtec, SMALL)
    task.check()
    assert len(task.layout.normals) == 12
    again, flattering = capsys.readouterr().err.splitlines()[1:]
    assert again.startswith("1 of 13 normals are copies of others, such as") and again.endswith(
        "each image is used once"
    )
    assert flattering.startswith("1 test image also among normals, such as")


def test_copies_are_not_enough_images(tmp_path, refusal):
    rng = np.random.default_rng(0)
    picture(rng).save(tmp_path / "0.png")
    for index in range(1, 12):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{index}.png")
    said = refusal(lambda: FolderTask(tmp_path, SMALL).train)
    assert "contains 12 readable images, 11 of them copies of others; at least 10 are needed" in said


def test_files_that_nobody_reads_are_counted(mvtec, capsys):
    for name in ("x.npy", "y.dcm", "z.mp4", "noending"):
        (mvtec / "train" / "good" / name).write_bytes(b"content")
    for name in ("license.txt", "000.json"):
        (mvtec / name).write_bytes(b"companion")
    FolderTask(mvtec, SMALL).check()
    said = capsys.readouterr().err.splitlines()[1]
    assert said.startswith("4 files of other endings than images have, such as") and said.endswith("were not read")


def test_masks_go_by_many_names(mvtec, capsys):
    """As other tools and MVTec LOCO name them: another format, capitals, one folder for each image."""
    masks = mvtec / "ground_truth" / "crack"
    expected = FolderTask(mvtec, SMALL).test.masks[5]
    Image.open(masks / "000_mask.png").save(masks / "000.bmp")
    (masks / "000_mask.png").unlink()
    (masks / "001_mask.png").rename(masks / "001_Mask.PNG")
    (masks / "002").mkdir()
    for index, columns in enumerate((slice(0, 10), slice(10, 40))):
        part = np.zeros((40, 40), np.uint16)
        part[:, columns] = expected[:, columns]
        Image.fromarray(part).save(masks / "002" / f"{index:03d}.png")
    (masks / "002_mask.png").unlink()
    task = FolderTask(mvtec, SMALL)
    task.check()
    for index in (4, 5, 6):
        assert np.array_equal(task.test.masks[index], expected)
    assert capsys.readouterr().err == "2 of 5 defective images have no mask\n"


def test_a_loose_test_image_beside_normals_without_a_folder_is_told(tmp_path, capsys):
    rng = np.random.default_rng(1)
    (tmp_path / "test" / "crack").mkdir(parents=True)
    for place in ("test/loose", "test/crack/0", *(f"{index}" for index in range(MIN_NORMALS))):
        picture(rng).save(tmp_path / f"{place}.png")
    FolderTask(tmp_path, SMALL).check()
    assert "1 image in folders that are not read, such as" in capsys.readouterr().err


def test_what_is_not_used_is_counted(mvtec, capsys):
    """Defects without masks, a mask of no image, and folders that nobody reads."""
    rng = np.random.default_rng(1)
    (mvtec / "ground_truth" / "crack" / "002_mask.png").rename(mvtec / "ground_truth" / "crack" / "009_mask.png")
    for place in ("train/bad", "validation/good"):
        (mvtec / place).mkdir(parents=True)
        picture(rng).save(mvtec / place / "000.png")
    picture(rng).save(mvtec / "test" / "loose.png")
    FolderTask(mvtec, SMALL).check()
    without, lost, unread = capsys.readouterr().err.splitlines()
    assert without == "3 of 5 defective images have no mask"
    assert lost.startswith("1 mask without a defective test image") and "009_mask.png" in lost
    assert unread.startswith("3 images") and "in folders that are not read" in unread


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (("good", "crack", "mask"), "in 'crack' and 'mask' normal, too? Name folder:TOY/good, or move normals to"),
        (("Good", "other"), "Name folder:TOY/Good"),
        (("images", "masks"), "in 'masks' normal, too? Name a folder of normals alone"),
        (("train/normal", "train/broken"), "Name folder:TOY/train/normal"),
        (
            ("a/train/good", "b/train/good"),
            "contains 2 categories, each with its own normals: name one, such as folder:TOY/a",
        ),
    ],
)
def test_a_folder_that_holds_more_than_normals_is_refused_with_what_was_meant(tmp_path, refusal, places, said):
    rng, root = np.random.default_rng(0), tmp_path / "toy"
    for place in places:
        (root / place).mkdir(parents=True)
        for index in range(12):
            picture(rng).save(root / place / f"{index}.png")
    assert said.replace("TOY", str(root)) in refusal(FolderTask, root, SMALL)


def test_folders_of_other_names_may_all_be_normal(tmp_path):
    rng = np.random.default_rng(0)
    for place in ("monday", "tuesday", "test/good", "normal"):
        (tmp_path / place).mkdir(parents=True)
        for index in range(6):
            picture(rng).save(tmp_path / place / f"{index}.png")
    with pytest.raises(UserError, match="'monday' and 'tuesday'"):
        FolderTask(tmp_path, SMALL)
    shutil.rmtree(tmp_path / "normal")
    assert FolderTask(tmp_path, SMALL).train_size == 11


def deep_folder(root, highest: int, dtype=np.uint16) -> None:
    """Twelve normals whose grey values reach `highest`."""
    rng, root = np.random.default_rng(0), root / "train" / "good"
    root.mkdir(parents=True)
    for index in range(12):
        values = rng.random((40, 40)) * highest
        values[0, 0] = highest * (1 - index / 1000)
        Image.fromarray(values.astype(dtype)).save(root / f"{index:02d}.{'png' if dtype == np.uint16 else 'tif'}")


@pytest.mark.parametrize(
    ("highest", "dtype", "max_value"),
    [(4000, np.uint16, 4095), (255, np.int32, 255), (65535, np.float32, 65535), (1, np.float32, 1)],
)
def test_what_is_white_in_deep_images_is_fixed_by_the_normals(
    tmp_path, student_folder, vgg_teacher, highest, dtype, max_value
):
    deep_folder(tmp_path / "deep", highest, dtype)
    task = FolderTask(tmp_path / "deep", SMALL)
    assert task.train.float().mean() == pytest.approx(127 * highest / max_value, rel=0.1)
    assert task.max_value == max_value
    trained = Detector.load(student_folder, teacher=vgg_teacher, device="cpu")
    detector = Detector(replace(trained.config, max_value=max_value), trained.student, vgg_teacher, trained.calibration)
    dark = Image.fromarray((np.ones((40, 40)) * highest / 16).astype(dtype))  # alone, another white would be likely
    dark.save(tmp_path / "dark.tif")
    grey = np.full((40, 40, 3), np.rint(highest // 16 * 255 / max_value if highest > 16 else 255 / 16), np.uint8)
    assert detector.predict(tmp_path / "dark.tif").score == pytest.approx(detector.predict(grey).score, rel=1e-3)


def test_what_is_white_is_saved_with_the_student(tmp_path, vgg_teacher):
    deep_folder(tmp_path / "deep", 4000)
    folder = train_student(FolderTask(tmp_path / "deep", SMALL), vgg_teacher, tmp_path, recipe=QUICK, device="cpu")
    assert store.load_config(folder).max_value == 4095


def test_a_test_image_of_another_scale_is_told_before_any_work(tmp_path, refusal):
    deep_folder(tmp_path, 4000)
    (tmp_path / "test" / "crack").mkdir(parents=True)
    Image.fromarray(np.full((40, 40), 60_000, np.uint16)).save(tmp_path / "test" / "crack" / "000.png")
    assert "000.png: values up to 60000, where 4095 was white" in refusal(FolderTask(tmp_path, SMALL).check)


def test_large_images_are_tiled_for_a_small_teacher_only(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "TRAINING_TILES", 20)
    rng = np.random.default_rng(0)
    for index in range(MIN_NORMALS):
        picture(rng, 330, 350).save(tmp_path / f"{index}.png")
    small = FolderTask(tmp_path, SMALL)
    assert small.tile_size == 128
    assert small.train.shape[1:] == (3, 32, 32)
    assert FolderTask(tmp_path, replace(SMALL, resize=128, crop=128)).tile_size == 0
    assert FolderTask(tmp_path, SMALL, tile_size=0).tile_size == 0
    assert FolderTask(tmp_path, SMALL, tile_size=400).train.shape[1:] == (3, 32, 32)  # enlarged to one tile


def test_folds_leave_every_normal_out_once_and_never_train_on_it(plain):
    task = FolderTask(plain, SMALL, tile_size=32)
    left_out = [set(fold.left_out.files) for fold in task.folds]
    assert len(left_out) == FOLDS
    assert sorted(file for part in left_out for file in part) == sorted(task.layout.normals)
    for fold, part in zip(task.folds, left_out, strict=True):
        assert len(fold.train) == (12 - len(part)) * task._each


@pytest.mark.parametrize(("normals", "held_out"), [(150, 15), (299, 30), (300, 100), (1200, 120)])
def test_cross_fitting_is_what_too_few_held_out_normals_ask_for(normals, held_out, tmp_path):
    """Folds make many calibration scores of few normals: how many there are says nothing of their kind."""
    for index in range(normals):
        Image.new("RGB", (4, 4), (index % 256, index // 256, 0)).save(tmp_path / f"{index:04d}.png")
    task, whole = FolderTask(tmp_path, SMALL, tile_size=4), FolderTask(tmp_path, SMALL)
    assert len(task.calibration) == held_out
    assert len(whole.calibration) == round(normals * 0.1) and not whole.cross_fitted
    assert task.cross_fitted == (held_out < ENOUGH_TO_CALIBRATE) == bool(next(iter(task.folds), None))


def test_the_name_of_a_folder_is_its_slug(mvtec, tmp_path):
    place = layout.student_folder(tmp_path, f"folder:{mvtec}", "vgg-cifar10", "good", 0)
    assert place == tmp_path / "bottle" / "vgg-cifar10" / "good"


def test_folders_of_one_name_do_not_share_a_student(plain, vgg_teacher, tmp_path, refusal):
    other = tmp_path / "elsewhere" / plain.name
    shutil.copytree(plain, other)
    first = next(file for file in sorted(other.rglob("*")) if file.is_file())
    Image.fromarray(255 - np.asarray(Image.open(first).convert("RGB"))).save(first)
    out, options = tmp_path / "out", {"recipe": QUICK, "device": "cpu"}
    train_student(FolderTask(plain, SMALL), vgg_teacher, out, **options)
    assert "other images" in refusal(train_student, FolderTask(other, SMALL), vgg_teacher, out, **options)


def test_a_run_over_changed_images_is_not_resumed(plain, vgg_teacher, tmp_path, refusal, monkeypatch):
    out, options = tmp_path / "out", {"recipe": QUICK, "device": "cpu"}
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr("kdad.training.distillation.calibrate", crash)
        train_student(FolderTask(plain, SMALL), vgg_teacher, out, **options)
    first = next(file for file in sorted(plain.rglob("*")) if file.is_file())
    Image.fromarray(255 - np.asarray(Image.open(first).convert("RGB"))).save(first)
    message = refusal(train_student, FolderTask(plain, SMALL), vgg_teacher, out, **options)
    assert "unfinished run with different settings (other images)" in message


def test_where_the_images_are_is_not_in_what_is_shared(mvtec, vgg_folder, tmp_path, capsys):
    arguments = ["train", "--dataset", f"folder:{mvtec}", "--teacher", str(vgg_folder), "--epochs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (folder,) = store.find_students(tmp_path / "out")
    assert main(["threshold", str(folder), "--miss", "10", "--false-alarm", "1", "--defects", "0.02"]) == 0
    shared = [folder / name for name in layout.SHARED_FILES if (folder / name).is_file()]
    assert len(shared) == len(layout.SHARED_FILES)
    for place in (mvtec.parent, vgg_folder.parent):
        assert not [file.name for file in shared if str(place).encode() in file.read_bytes()]
    (folder / layout.LOCAL).unlink()
    assert main(["evaluate", str(folder), "--teacher", str(vgg_folder)]) == 2
    assert "say where with --dataset folder:PATH/TO/bottle" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--teacher", str(vgg_folder), "--dataset", f"folder:{mvtec}"]) == 0
    assert "not saved" not in capsys.readouterr().err


def test_few_normals_are_calibrated_on_all_of_them(mvtec, vgg_teacher, tmp_path):
    task = load_task(f"folder:{mvtec}", "good", SMALL)
    folder = train_student(task, vgg_teacher, tmp_path / "out", recipe=QUICK, device="cpu")
    assert len(load_calibration(folder, store.load_config(folder))) == 12
    assert not (folder / "folds").exists()


@pytest.mark.usefixtures("few_folds")
def test_cross_fitting_judges_each_normal_by_a_student_that_never_saw_it(mvtec, vgg_teacher, tmp_path):
    """The final student has seen nine tenths of the images: its own scores of them are not what is kept."""
    task = FolderTask(mvtec, SMALL, tile_size=32)
    recipe = Recipe(epochs=6, batch_size=4, learning_rate=3e-3)
    folder = train_student(task, vgg_teacher, tmp_path / "out", recipe=recipe, device="cpu")
    detector = Detector.load(folder, teacher=vgg_teacher, device="cpu")
    every = ImageFiles(task.layout.normals)
    own = np.concatenate([prediction.measurement.layer_errors[:, -1, 0] for prediction in detector.predict_each(every)])
    assert detector.calibration.layer_errors[:, -1, 0].mean() > own.mean()


@pytest.mark.usefixtures("few_folds")
def test_folds_cost_the_teacher_nothing(mvtec, vgg_teacher, tmp_path, monkeypatch):
    """What all folds train on, mirrored or not, is what was remembered before the first."""
    from kdad.training import distillation

    usual, training = distillation.loop.fit, []

    class Watched(type(vgg_teacher.network)):
        def forward(self, pixels):
            assert not training
            return super().forward(pixels)

    def fit(*arguments, **options):
        training.append(1)
        usual(*arguments, **options)
        training.clear()

    monkeypatch.setattr(distillation.loop, "fit", fit)
    monkeypatch.setattr(vgg_teacher.network, "__class__", Watched)
    recipe = Recipe(epochs=2, batch_size=4, flip=True)
    train_student(FolderTask(mvtec, SMALL, tile_size=32), vgg_teacher, tmp_path / "out", recipe=recipe, device="cpu")


@pytest.mark.usefixtures("few_folds")
def test_an_interrupted_cross_fit_ends_as_an_unbroken_one(mvtec, vgg_teacher, tmp_path, monkeypatch):
    from kdad.training import distillation

    task = FolderTask(mvtec, SMALL, tile_size=32)
    whole = train_student(task, vgg_teacher, tmp_path / "whole", recipe=QUICK, device="cpu")
    usual, calls = distillation.loop.fit, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        usual(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(distillation.loop, "fit", interrupted)
        train_student(task, vgg_teacher, tmp_path / "broken", recipe=QUICK, device="cpu")
    broken = train_student(task, vgg_teacher, tmp_path / "broken", recipe=QUICK, device="cpu")
    for name in (layout.WEIGHTS, layout.CALIBRATION):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_from_the_command_line(mvtec, vgg_folder, tmp_path, capsys):
    arguments = ["train", "--dataset", f"folder:{mvtec}", "--teacher", str(vgg_folder), "--epochs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "Treat the rate as an estimate" in said.err
    folder = tmp_path / "out" / "bottle" / vgg_folder.name / "good"
    assert main(["score", str(folder), str(mvtec / "test" / "good")]) == 0
    assert "Treat the rate as an estimate" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["calibration"] == "left-out" and figures["score"] == "local-distance"
    assert figures["kinds"] == ["good", "crack", "stain"]
    assert {"pixel_auroc", "pro", "pro_without_good"} <= figures.keys()
    assert figures["label_overlap"] == "unknown"


def test_a_plain_folder_is_calibrated_and_not_evaluated(plain, vgg_folder, tmp_path, capsys):
    arguments = ["train", "--dataset", f"folder:{plain}", "--teacher", str(vgg_folder), "--epochs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "calibrated, and not evaluated" in capsys.readouterr().out
    folder = tmp_path / "out" / "mugs" / vgg_folder.name / "good"
    assert load_calibration(folder, store.load_config(folder)) is not None
    assert main(["evaluate", str(folder)]) == 2
    assert "test/good" in capsys.readouterr().err


@pytest.mark.usefixtures("few_folds")
def test_a_sweep_takes_each_category_of_a_folder(mvtec, vgg_folder, tmp_path, capsys):
    assert categories(mvtec.parent) == [mvtec]
    arguments = [
        "sweep",
        "--dataset",
        f"folder:{mvtec.parent}",
        "--teacher",
        str(vgg_folder),
        "--epochs",
        "1",
        "--json",
    ]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["classes"].keys() == {"bottle"}
    assert {"auroc", "auroc_mkd", "pixel_auroc", "pro"} <= results["mean"].keys()


@pytest.mark.usefixtures("few_folds")
def test_a_large_image_is_judged_tile_by_tile(tmp_path, vgg_teacher, monkeypatch):
    """A spot of 20 pixels in 320 is one of the two pixels that a 32-pixel teacher would see of it."""
    monkeypatch.setattr(folders, "TRAINING_TILES", 32)
    rng = np.random.default_rng(0)
    for index in range(MIN_NORMALS):
        picture(rng, 320, 288).save(tmp_path / f"{index}.png")
    task = FolderTask(tmp_path, SMALL, tile_size=128)
    folder = train_student(task, vgg_teacher, tmp_path / "out", recipe=QUICK, device="cpu")
    detector = Detector.load(folder, teacher=vgg_teacher, device="cpu")
    normal = torch.from_numpy(np.array(picture(rng, 320, 288))).permute(2, 0, 1)
    anomalous = normal.clone()
    anomalous[:, 200:220, 40:60] = 255
    prediction = detector.predict(torch.stack([normal, anomalous]))
    assert prediction.heatmap.shape == (2, 320, 288)
    difference = np.abs(prediction.heatmap[1] - prediction.heatmap[0])
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    assert 180 <= row <= 240 and 20 <= column <= 80
    assert difference[:100].max() < 1e-3  # tiles far away do not notice
    features = detector.teacher_features(normal[None])
    np.testing.assert_allclose(
        detector.predict_with_features(normal[None], features).score, prediction.score[:1], rtol=1e-4
    )


def test_tiles_of_an_oblong_input_are_refused(mvtec, refusal):
    oblong = replace(SMALL, resize=(32, 64), crop=(32, 64))
    assert "tiles are square, but the teacher reads images at 32×64 px" in refusal(FolderTask, mvtec, oblong, 64)


def test_tiles_by_default_of_an_oblong_input_are_refused_before_training(tmp_path, refusal):
    for index in range(MIN_NORMALS):
        Image.new("L", (640, 640), index * 10).save(tmp_path / f"{index}.png")
    task = FolderTask(tmp_path, replace(SMALL, resize=(32, 64), crop=(32, 64)))
    assert "or --tile-size 0" in refusal(lambda: task.train_size)
    assert FolderTask(tmp_path, replace(SMALL, resize=(32, 64), crop=(32, 64)), 0).tile_size == 0
