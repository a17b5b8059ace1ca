"""What pyproject.toml cannot say: in the wheel, the app and the shipped students are in the package, in `kdad/_app`.

In a checkout they stand at its root, where `streamlit run app.py` finds them; `kdad.cli.servers` knows both places.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FOLDERS = ("pages", "ui", ".streamlit", "trained_students")
FILES = ("app.py", "benchmarks/results/one_vs_rest.json")
NOT_SHIPPED = ("__pycache__", ".jobs", ".uploads", ".*.lock", "local.json", "resume.ckpt")


class WithApp(build_py):
    """Copies the app beside the modules, unless they are used where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        app = Path(self.build_lib) / "kdad" / "_app"
        for folder in FOLDERS:
            shutil.copytree(
                ROOT / folder, app / folder, ignore=shutil.ignore_patterns(*NOT_SHIPPED), dirs_exist_ok=True
            )
        for file in FILES:
            (app / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, app / file)


setup(cmdclass={"build_py": WithApp})
