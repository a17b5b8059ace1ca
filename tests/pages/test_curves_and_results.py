"""The page of curves and results: every control, every empty state, every figure with its provenance."""

import shutil

import pandas
import pytest
from helpers.miniatures import reseal
from helpers.page import control, rerun, texts

from kdad.detection.detector import Detector
from kdad.evaluation.operating_points import choose as choose_point
from kdad.evaluation.results_file import merge_entry, sweep_command
from kdad.scores import DISTANT_ERROR, MKD, SCORES
from kdad.storage.operating_point import Costs, save_operating_point
from ui.shared.links import arena_link

RESULTS = "pages/3_Curves_and_results.py"
DOTS, DOTS1, STRIPES = "patterns/tiny-vgg/dots", "patterns/tiny-vgg/dots-seed1", "patterns/tiny-vgg/stripes"


@pytest.fixture
def results(open_page, evaluated_root, tmp_path, monkeypatch):
    monkeypatch.setenv("KDAD_RESULTS", str(tmp_path / "results.json"))

    def opened(show: str = "Scores", root=evaluated_root, **query):
        return open_page(RESULTS, root=root, show=show, **query)

    return opened


def choose(at, kind: str, label: str, value):
    control(at, kind, label).set_value(value)
    return rerun(at)


def figures(at) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def alternative_texts(at) -> list[str]:
    return [chart.proto.alt for chart in at.get("vega_lite_chart")]


def copied(evaluated_root, tmp_path, key: str = DOTS, **changes):
    """A root with one copy of a student whose config.json says `changes`."""
    shutil.copytree(evaluated_root / key, tmp_path / "root" / key)
    reseal(tmp_path / "root" / key / "config.json", **changes)
    return tmp_path / "root"


def test_a_cold_link_chooses_section_and_student(results):
    at = results(student=STRIPES)
    assert control(at, "selectbox", "Student").value == STRIPES
    assert "normal class **stripes**" in texts(at)
    assert control(results("Training", student=STRIPES), "multiselect", "Runs").value == [STRIPES]


@pytest.mark.parametrize("link", ["nobody", "../../etc/passwd", "**bold**"])
def test_a_link_to_a_student_that_is_not_here_says_so(results, link):
    at = results(student=link)
    assert "cannot be chosen here" in at.warning[0].value
    assert control(at, "selectbox", "Student").value == DOTS


def test_a_link_to_no_section_opens_the_first(results):
    assert control(results("nothing"), "selectbox", "Student").value == DOTS


def test_scores_come_with_split_seed_teacher_and_counts(results):
    at = results(student=DOTS1)
    assert r"patterns, test split, seed 1, teacher tiny\-vgg; 200 normal and 1,800 anomalous images." in texts(at)
    assert SCORES[DISTANT_ERROR].description in texts(at)
    assert len(alternative_texts(at)) == 4  # with the one of costs
    assert all(alternative_texts(at))


def test_a_higher_rate_finds_more_and_alarms_more(results):
    at = results(student=DOTS)
    seen = []
    for rate in (1 / 21, 0.1, 0.5):
        control(at, "select_slider", "Operating point").set_value(rate)
        at = rerun(at)
        assert "on 20 held-out normals: the true rate lies between" in texts(at)
        seen.append([float(figures(at)[name].split()[0]) for name in ("False alarms on test", "Anomalies found")])
    assert seen == sorted(seen)
    assert seen[0] < seen[2]


def press(at, label: str):
    next(button for button in at.button if button.label == label).click()
    return rerun(at)


def test_costs_choose_an_operating_point_that_can_be_kept(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path)
    reseal(root / DOTS / "evaluation.json", auroc_mkd=0.9, n_normal=200, n_anomalous=1800)
    at = results(root=root, miss="1000", defects="50")
    assert control(at, "number_input", "A miss costs").value == 1000
    assert "Least expected cost at a false-positive rate of" in texts(at)
    at = press(at, "Show it below")
    shown = control(at, "select_slider", "Operating point").value
    assert shown > 0.05
    at = press(at, "Use it by default")
    kept = Detector.load(root / DOTS)
    assert kept.default_fpr == shown
    assert "Kept with this student" in texts(at)
    assert control(results(root=root), "select_slider", "Operating point").value == shown
    assert control(results(root=root, rate="10 %"), "select_slider", "Operating point").value == 0.1
    at = press(at, "Back to 5 %")
    assert control(at, "select_slider", "Operating point").value == 0.05
    assert Detector.load(root / DOTS).operating_point is None


def test_a_kept_point_is_the_default_of_its_student_alone(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path)
    shutil.copytree(evaluated_root / STRIPES, root / STRIPES)
    point = choose_point(root / STRIPES, Costs(1000, 1, 0.5))
    save_operating_point(root / STRIPES, point)
    at = results(root=root, student=DOTS)
    assert control(at, "select_slider", "Operating point").value == 0.05
    choose(at, "selectbox", "Student", STRIPES)
    assert control(at, "select_slider", "Operating point").value == point.fpr
    choose(at, "selectbox", "Student", DOTS)
    assert control(at, "select_slider", "Operating point").value == 0.05
    choose(at, "select_slider", "Operating point", 0.2)
    choose(at, "selectbox", "Student", STRIPES)
    assert control(at, "select_slider", "Operating point").value == 0.2


@pytest.mark.parametrize("query", [{"miss": "-5"}, {"miss": "many"}, {"defects": "200"}, {"rate": "61.7 %"}])
def test_links_to_impossible_costs_and_rates_fall_back(results, query):
    at = results(student=DOTS, **query)
    assert control(at, "number_input", "A miss costs").value == 10
    assert control(at, "select_slider", "Operating point").value == 0.05


def test_a_damaged_operating_point_is_one_message(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path)
    (root / DOTS / "operating_point.json").write_text("{}")
    assert "is damaged" in results(root=root).error[0].value.replace("\\", "")


def test_one_class_alone_has_its_own_figures(results):
    at = results(student=DOTS)
    overall = figures(at)["AUROC against all others"]
    choose(at, "button_group", "Normal against", "clouds")
    assert figures(at)["AUROC against clouds"] > overall
    assert "200 normal and 200 anomalous" in texts(at)


def test_the_published_score_is_another(results):
    at = results(student=DOTS)
    before = figures(at)["AUROC against all others"]
    assert figures(choose(at, "button_group", "Score", "score_mkd"))["AUROC against all others"] != before
    assert SCORES[MKD].description in texts(at)


def test_a_student_that_was_not_evaluated_says_how(results, students_root):
    at = results(root=students_root)
    assert "is not evaluated yet" in at.info[0].value
    assert at.code[0].value == f"python -m kdad evaluate {students_root / DOTS}"


def test_a_student_without_calibration_has_a_curve_but_no_operating_point(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path)
    (root / DOTS / "calibration.safetensors").unlink()
    at = results(root=root)
    assert "not calibrated" in at.info[0].value
    assert list(figures(at)) == ["AUROC against all others"]
    assert not at.get("select_slider")


def test_a_damaged_student_is_one_message(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path)
    (root / DOTS / "scores.parquet").write_bytes(b"no table")
    assert "run evaluate on it again" in results(root=root).error[0].value


@pytest.mark.parametrize("show", ["Scores", "Images", "Training"])
def test_without_any_student_every_section_says_how_to_train_one(results, tmp_path, show):
    (tmp_path / "empty").mkdir()
    at = results(show, root=tmp_path / "empty")
    assert at.code[0].value.startswith("python -m kdad train")
    assert at.info


def test_runs_are_overlaid_also_unfinished_ones(results):
    at = results("Training")
    runs = control(at, "multiselect", "Runs")
    assert "patterns/tiny-vgg/rings" in runs.options
    runs.set_value([DOTS, "patterns/tiny-vgg/rings"])
    loss, auroc = alternative_texts(rerun(at))
    for text in (loss, auroc):
        assert f"{DOTS} ends at" in text
        assert "rings ends at" in text


def test_the_best_epoch_is_ringed_and_called_what_it_is(results):
    at = results("Training")
    assert "The last epoch is the one that is kept" in texts(at)
    assert "Best validation epoch" not in texts(at)
    choose(at, "toggle", "Ring the best", True)
    assert "Best validation epoch, chosen with labelled anomalies and **not** the one kept" in texts(at)


def test_no_run_chosen_says_to_choose_one(results):
    at = choose(results("Training"), "multiselect", "Runs", [])
    assert "Choose one or more runs" in at.info[0].value


def test_most_misjudged_images_are_shown_with_class_and_p_value(results):
    at = results("Images", student=DOTS)
    assert len(at.get("image")) == 24
    captions = [caption.value for caption in at.caption if caption.value.startswith("**")]
    assert all(caption.startswith("**dots ") for caption in captions[:12])
    assert not any(caption.startswith("**dots ") for caption in captions[12:])
    assert all(", p " in caption for caption in captions)


def test_images_two_students_disagree_on(results):
    at = choose(results("Images", student=DOTS), "button_group", "Images", "Where two students disagree")
    assert control(at, "selectbox", "Compare with").options == [DOTS1]
    assert len(at.get("image")) == 24
    assert "More unusual to seed 0 than to seed 1" in texts(at)
    assert float(figures(at)["Rank correlation"]) < 1


def test_a_student_without_a_rival_says_how_to_get_one(results):
    at = choose(results("Images", student=STRIPES), "button_group", "Images", "Where two students disagree")
    assert "no other evaluated student" in at.info[0].value
    assert "--normal-class stripes" in at.code[0].value


def test_images_that_are_not_here_are_named_by_number(results, evaluated_root, tmp_path, monkeypatch):
    monkeypatch.setenv("KDAD_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    at = results("Images", root=copied(evaluated_root, tmp_path, dataset="cifar10", normal_class="bird"))
    assert "not on this machine" in at.info[0].value
    assert not at.get("image")
    assert [len(table.value) for table in at.dataframe] == [12, 12]


def test_without_a_sweep_the_published_lines_stand_with_the_commands(results):
    at = results("All classes")
    assert "The results file contains no sweep yet" in texts(at)
    commands = "\n".join(code.value for code in at.code)
    for teacher in ("vgg-lite0", "vgg-cifar10", "vit-lite0", "vit-cifar10", "lite0-imagenet"):
        assert sweep_command("cifar10", teacher) in commands
    table = at.dataframe[0].value
    assert table[["system", "mean"]].to_numpy().tolist()[:2] == [
        ["VGG-16, published", "87.18"],
        ["ViT-B/16, published", "96.83"],
    ]
    assert "checked on the test set during training" in texts(at)


def test_a_sweep_fills_its_cell_and_its_column(results, entry, tmp_path):
    merge_entry(tmp_path / "results.json", entry("vgg-cifar10", 0.97))
    merge_entry(tmp_path / "results.json", entry("vgg-lite0", 0.87, image_format="JPEG"))
    at = results("All classes")
    assert figures(at) == {r"vgg\-cifar10": "97.00 ± 1.00", r"vgg\-lite0": "87.00 ± 1.00"}
    row = at.dataframe[0].value.set_index("system").loc["vgg-cifar10"]
    assert row.tolist() == ["97.00 ± 0.40"] + ["97.0"] * 10
    shown = texts(at)
    assert "having seen the labels changes a VGG teacher's students by +10.00 points" in shown
    assert "mean of seeds 0 to 2; last epoch" in shown.replace("\\", "")
    assert r"One student: vgg\-cifar10 61 s \(cpu, x86\_64, 2 threads\)" in shown
    assert r"re\-encoded as JPEG" in shown
    choose(at, "button_group", "Our score", "auroc_mkd")
    assert figures(at)[r"vgg\-cifar10"] == "95.00 ± 1.00"


def test_baselines_are_in_the_table_and_not_in_the_chart(results, entry, tmp_path):
    merge_entry(tmp_path / "results.json", entry(baselines={"nearest": {"classes": {"cat": 0.9}, "mean": 0.9}}))
    at = results("All classes")
    table = at.dataframe[0].value.set_index("system")
    assert table.loc["nearest on vgg-cifar10", "cat"] == "90.0"
    chart = at.get("vega_lite_chart")[0].proto.SerializeToString()
    assert b"vgg-cifar10" in chart and b"nearest" not in chart


def test_another_data_set_has_its_own_table(results, entry, tmp_path):
    merge_entry(tmp_path / "results.json", entry(dataset="mnist"))
    at = choose(results("All classes"), "selectbox", "Data set", "mnist")
    assert at.dataframe[0].value["system"].tolist() == ["vgg-cifar10", "VGG-16, published", "Deep SVDD, published"]
    assert "Every class of mnist" in texts(at)


def test_a_damaged_results_file_is_one_message(results, tmp_path):
    (tmp_path / "results.json").write_text("{")
    assert "is no results file" in results("All classes").error[0].value


def test_masks_give_pixel_curves(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path)
    assert "heatmaps against masks" not in texts(results(root=root))
    folder = root / DOTS
    curves = "threshold,false_alarms,found,overlap\n3,0,0.2,0.1\n2,0.3,0.9,0.8\n1,1,1,1\n"
    (folder / "pixel_curves.csv").write_text(curves)
    pixel = {"pixel_auroc": 0.9754, "pro": 0.9139, "pixel_ap": 0.69, "pro_without_good": 0.9}
    reseal(folder / "evaluation.json", **pixel)
    at = results(root=root)
    assert "heatmaps against masks" in texts(at)
    assert (figures(at)["Pixel AUROC"], figures(at)["PRO"]) == ("97.54 %", "91.39 %")
    assert "90.00 % without good images" in [metric.delta for metric in at.metric]
    assert any("Pixel ROC curve, area 97.54 %" in alt for alt in alternative_texts(at))
    (folder / "pixel_curves.csv").write_text("nonsense")
    assert "is damaged" in texts(results(root=root))


@pytest.fixture
def rivals(evaluated_root, tmp_path):
    """A root with three students of one task whose configurations name different teachers."""
    root = tmp_path / "rivals"
    for name, of in (("one", DOTS), ("two", DOTS), ("three", DOTS1)):
        folder = root / "patterns" / name / "dots"
        shutil.copytree(evaluated_root / of, folder)
        (folder / "local.json").unlink()  # says where the teacher is
        reseal(folder / "config.json", teacher=name)
    return root


def counts_of(at) -> dict[str, int]:
    return {label: int(value.replace(",", "")) for label, value in figures(at).items()}


def test_the_arena_sets_two_students_of_a_task_against_each_other(results, rivals):
    at = results("Arena", root=rivals)
    choose(at, "selectbox", "Second", "patterns/two/dots")
    assert control(at, "selectbox", "First").value == "patterns/one/dots"
    counts = counts_of(at)
    assert counts["By the first alone"] == counts["By the second alone"] == 0
    assert counts["By both"] + counts["By neither"] == 1800
    assert any(text.startswith("ROC curves, AUROC: one, default score, ") for text in alternative_texts(at))
    found = counts["By both"]
    control(at, "button_group", "False-positive rate").set_value(0.2)
    assert counts_of(rerun(at))["By both"] >= found


def test_three_students_in_the_arena(results, rivals):
    at = results("Arena", root=rivals)
    choose(at, "selectbox", "Second", "patterns/two/dots")
    choose(at, "selectbox", "Third", "patterns/three/dots")
    counts = counts_of(at)
    assert list(counts) == [
        "By all three", "By two of three", "By the first alone", "By the second alone", "By the third alone", "By none",
    ]  # fmt: skip
    assert sum(counts.values()) == 1800
    assert counts["By the first alone"] == 0  # the second is its copy
    assert counts["By two of three"] > 0
    assert counts["By the third alone"] > 0
    choose(at, "button_group", "Axes", 1)
    assert at.dataframe[0].value["teacher"].tolist() == ["one", "two", "three"]


def test_a_link_into_the_arena_names_all_of_its_students(results, rivals):
    linked = {"first": "patterns/two/dots", "second": "patterns/three/dots", "third": "patterns/one/dots"}
    at = results("Arena", root=rivals, **linked)
    assert [control(at, "selectbox", name.title()).value for name in linked] == list(linked.values())
    choose(at, "selectbox", "First", "patterns/three/dots")
    assert control(at, "selectbox", "Second").value != "patterns/three/dots"  # no student meets itself
    assert at.dataframe[0].value["teacher"].tolist()[0] == "three"


def test_a_link_of_two_students_forgets_the_third(results, rivals):
    at = results("Arena", root=rivals)
    choose(at, "selectbox", "Second", "patterns/two/dots")
    choose(at, "selectbox", "Third", "patterns/three/dots")
    rerun(at.switch_page("pages/1_Train_or_load.py"))
    at.switch_page(RESULTS)
    at.query_params.update(arena_link(["patterns/one/dots", "patterns/three/dots"]))
    rerun(at)
    chosen = [control(at, "selectbox", name).value for name in ("First", "Second", "Third")]
    assert chosen == ["patterns/one/dots", "patterns/three/dots", None]
    assert not at.warning


def test_a_link_of_students_that_cannot_meet_says_so(results, rivals):
    shutil.copytree(rivals / "patterns/one/dots", rivals / "patterns/one/dots-seed1")
    at = results("Arena", root=rivals, first="patterns/one/dots", second="patterns/one/dots-seed1")
    assert "cannot be chosen here: patterns/one/dots-seed1." in texts(at).replace("\\", "")


def test_a_link_into_the_arena_with_a_student_that_is_gone_says_so(results, rivals):
    at = results("Arena", root=rivals, first="patterns/two/dots", second="patterns/gone/dots")
    assert "cannot be chosen here: patterns/gone/dots." in texts(at)
    assert control(at, "selectbox", "Second").value == "patterns/one/dots"


def test_teachers_without_a_student_stand_beside_the_students(results, rivals):
    folder = rivals / "patterns" / "one" / "dots"
    table = pandas.read_parquet(folder / "scores.parquet")
    table.assign(distance=table["anomalous"] + 1.0, nearest=1.0).to_parquet(folder / "scores.parquet")
    at = results("Arena", root=rivals)
    rows = at.dataframe[0].value
    assert rows[["teacher", "score"]].to_numpy().tolist()[-1] == ["one", "Teacher's distance"]
    assert rows["AUROC"].tolist()[-1] == "100.00"
    choose(at, "toggle", "Teachers without a student", False)
    assert at.dataframe[0].value["score"].unique().tolist() == ["default score"]


def test_an_arena_without_rivals_says_what_is_missing(results):
    assert "no two evaluated students of one task" in results("Arena").info[0].value


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["PCA", "t-SNE"])
def test_a_map_of_images(results, projection):
    at = results("Map", student=DOTS, projection=projection)
    (alt,) = alternative_texts(at)
    assert alt == f"Map of 400 images by {projection}: normal, training, normal, test, anomalous, test"
    assert "120 normal, training; 120 normal, test; 160 anomalous, test" in texts(at)


def test_a_map_of_images_that_are_not_here_says_so(results, evaluated_root, tmp_path, monkeypatch):
    monkeypatch.setenv("KDAD_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    at = results("Map", root=copied(evaluated_root, tmp_path, dataset="cifar10", normal_class="bird"))
    assert "not on this machine" in at.info[0].value


def test_a_map_without_its_teacher_is_one_message(results, evaluated_root, tmp_path):
    root = copied(evaluated_root, tmp_path, teacher="nobody/nothing")
    (root / DOTS / "local.json").unlink()
    assert "nobody/nothing" in results("Map", root=root).error[0].value
