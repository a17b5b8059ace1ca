"""Student folders on the Hugging Face Hub."""

import shutil
from pathlib import Path

from kdad.data.datasets import folder_path
from kdad.errors import UserError, one_line
from kdad.storage.layout import SHARED_FILES
from kdad.storage.student_folder import check_evaluation, folder_of, load_config, load_student, must_be_free


def resolve(folder_or_repo: str | Path) -> Path:
    """A student folder on disk as it is; a Hub id (owner/name) as its snapshot in the local cache."""
    path = Path(folder_or_repo)
    if path.exists():
        return path
    if str(folder_or_repo).count("/") == 1 and not str(folder_or_repo).startswith((".", "/")):
        return _snapshot(str(folder_or_repo))
    raise UserError(f"{folder_or_repo}: no such student folder; `python -m kdad list` shows those that are here")


def _snapshot(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(SHARED_FILES)))
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot fetch
        raise UserError(
            f"{repo}: no such folder here, and no student of that name could be fetched from the Hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None


def pull(repo: str, out: Path) -> Path:
    """Copy a student from the Hub to its place below `out`; returns the folder."""
    snapshot = _snapshot(repo)
    config = load_config(snapshot)
    load_student(snapshot, config)
    check_evaluation(snapshot, config)
    folder = folder_of(out, config)
    if not folder.resolve().is_relative_to(Path(out).resolve()):
        raise UserError(f"{repo} names a data set, teacher or class that would be written outside {out}")
    must_be_free(folder)
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(snapshot, temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def push(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload a student folder to the Hub repository `repo`, private unless `public`; returns its address.

    What is where on this machine is left out. A repository that exists keeps its visibility.

    Raises:
        UserError: the folder is damaged, of the first format with a path of this machine in it, its figures are of
            other weights, or the Hub cannot be reached or written to.
    """
    from huggingface_hub import HfApi

    config = load_config(folder)
    load_student(folder, config)
    check_evaluation(folder, config)
    if private := [name for name in (folder_path(config.dataset).as_posix(), config.teacher) if name.startswith("/")]:
        raise UserError(f"{folder} names {private[0]}, a path of this machine: train it anew before you share it")
    try:
        api = HfApi()
        created = api.create_repo(repo, exist_ok=True, private=not public)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, allow_patterns=list(SHARED_FILES))
    except Exception as error:  # the Hub client raises a dozen unrelated types when it cannot reach or may not write
        raise UserError(
            f"could not push to {repo} ({one_line(error)}); check the name and the network, and log in with "
            "`hf auth login`"
        ) from None
    return str(created)
