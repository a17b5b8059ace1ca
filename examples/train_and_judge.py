"""Train a student on generated textures and judge images with it: `python train_and_judge.py [FOLDER]`.

It takes under a minute on two cores, and needs no network. The student is written into FOLDER.
"""

import sys

from kdad import Detector, Recipe, evaluate, load_task, load_teacher, train_student

out = sys.argv[1] if len(sys.argv) > 1 else "students"
task = load_task("patterns-defects", "bricks")  # normal bricks to train on; a test part with defects and their masks
folder = train_student(task, load_teacher("vgg-cifar10"), out, recipe=Recipe(epochs=1), device="cpu")

detector = Detector.load(folder, device="cpu")
prediction = detector.predict(task.test.images)
found = prediction.is_anomaly[task.test.anomalous].mean()
false_alarms = prediction.is_anomaly[~task.test.anomalous].mean()
print(f"called anomalous at 5 %: {100 * found:.0f} % of the defects, {100 * false_alarms:.0f} % of the normal images")

worst = prediction.score.argmax()
row, column = divmod(int(prediction.heatmap[worst].argmax()), prediction.size[1])
print(f"image {worst} is the most unusual, p = {prediction.p_value[worst]:.4f}, at row {row}, column {column}")
print(f"AUROC {evaluate(task, detector).figures['auroc']:.3f}; the student is in {folder}")
