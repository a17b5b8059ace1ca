"""Student folders on the Hugging Face Hub."""

import shutil
from pathlib import Path

from kdad.data.datasets import folder_path
from kdad.errors import UserError, one_line
from kdad.files import shown, write_json
from kdad.networks.teachers.registry import is_hub_id
from kdad.storage.layout import LOCAL, SHARED_FILES
from kdad.storage.student_folder import check_empty, check_evaluation, folder_of, load_config, load_student

# Suffixes of code, and of files that can execute code when loaded carelessly; no student needs them.
RUNNABLE = {
    ".bat", ".bin", ".ckpt", ".dill", ".dll", ".dylib", ".exe", ".h5", ".ipynb", ".joblib", ".keras", ".npy", ".npz",
    ".pickle", ".pkl", ".ps1", ".pt", ".pth", ".py", ".pyc", ".sh", ".so",
}  # fmt: skip
FORBIDDEN = 403
ORIGIN = "from"  # in local.json: repository and commit of a pulled student


def resolve(folder_or_repo: str | Path, revision: str | None = None) -> Path:
    """Resolve a student folder to itself, and a Hub id (owner/name) to its snapshot in the local cache.

    Args:
        revision: branch, tag or commit of a Hub id; main by default.
    """
    path = Path(folder_or_repo)
    if path.exists():
        return path
    if is_hub_id(str(folder_or_repo)):
        return _snapshot(str(folder_or_repo), revision)
    raise UserError(f"{folder_or_repo}: no such student folder; `python -m kdad list` shows those that are here")


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        _refuse_what_may_run(repo, revision)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(SHARED_FILES)))
    except UserError:
        raise
    except RevisionNotFoundError:
        raise UserError(f"{repo} has no revision {revision!r}; name a branch, a tag or a commit of it") from None
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot fetch
        raise UserError(
            f"{repo}: no such folder here, and no student of that name could be fetched from the Hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None


def _refuse_what_may_run(repo: str, revision: str | None) -> None:
    """Raise a `UserError` if a repository contains pickles or code; cached snapshots were checked when fetched."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        files = HfApi().model_info(repo, revision=revision or "main").siblings or []
    except RevisionNotFoundError:
        raise
    except Exception:  # the download reports the error, or uses the cache
        return
    if found := [file.rfilename for file in files if Path(file.rfilename).suffix.lower() in RUNNABLE]:
        raise UserError(
            f"{repo} holds {shown(found[0])}, which can run code where it is loaded: a student is safetensors, JSON, "
            "parquet and text alone; ask its owner to remove it"
        )


def pull(repo: str, out: Path, revision: str | None = None) -> Path:
    """Copy a student from the Hub to its folder below `out`; returns the folder.

    Its local.json records the repository and commit.

    Raises:
        UserError: it cannot be fetched, is damaged or contains code, or its folder is not empty.
    """
    snapshot = _snapshot(repo, revision)
    config = load_config(snapshot)
    load_student(snapshot, config)
    check_evaluation(snapshot, config)
    folder = folder_of(out, config)
    if not folder.resolve().is_relative_to(Path(out).resolve()):
        raise UserError(f"{repo} names a data set, teacher or class that would be written outside {out}")
    check_empty(folder)
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(snapshot, temporary)
        write_json(temporary / LOCAL, {ORIGIN: f"{repo}@{snapshot.name}"})
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def push(folder: Path, repo: str, *, public: bool = False, message: str | None = None) -> str:
    """Upload a student folder to the Hub repository `repo`, private unless `public`; returns its URL.

    Local paths are left out. An existing repository keeps its visibility.

    Args:
        message: commit message; the Hub's default if None.

    Raises:
        UserError: the folder is damaged, is of the first format and contains a local path, or its figures belong to
            different weights; or the Hub cannot be reached or written to.
    """
    from huggingface_hub import HfApi

    config = load_config(folder)
    load_student(folder, config)
    check_evaluation(folder, config)
    if private := [name for name in (folder_path(config.dataset).as_posix(), config.teacher) if name.startswith("/")]:
        raise UserError(f"{folder} names {private[0]}, a path on this machine: retrain it before sharing it")
    try:
        api = HfApi()
        created = api.create_repo(repo, exist_ok=True, private=not public)
        names = list(SHARED_FILES)  # what an earlier push has left of them, and the student no longer has, goes
        api.upload_folder(
            repo_id=created.repo_id, folder_path=folder, allow_patterns=names, delete_patterns=names,
            commit_message=message,
        )  # fmt: skip
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot reach or may not write
        if getattr(getattr(error, "response", None), "status_code", None) == FORBIDDEN:
            raise UserError(f"could not push to {repo}: your token may not write there; make one that may") from None
        raise UserError(
            f"could not push to {repo} ({one_line(error)}); check the name and the network, and log in with "
            "`hf auth login`"
        ) from None
    return str(created)
