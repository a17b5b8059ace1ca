import io
import zipfile

import pytest
from PIL import Image

from kdad.data import archives
from kdad.data.archives import image_names, unpack_images


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, format="PNG")
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def below(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_images_are_unpacked_and_nothing_else(tmp_path):
    names = ["a.png", "deep/er/b.JPG", "notes.txt", "run.sh", "__MACOSX/a.png", "deep/.hidden.png"]
    assert unpack_images(zipped(dict.fromkeys(names, png())), tmp_path / "own").images == 2
    assert below(tmp_path / "own") == {"a.png", "deep/er/b.JPG"}


def test_one_folder_around_everything_is_peeled_off(tmp_path):
    unpack_images(zipped({"bottle/train/good/0.png": png(), "bottle/test/good/0.png": png()}), tmp_path / "own")
    assert below(tmp_path / "own") == {"train/good/0.png", "test/good/0.png"}


def test_the_training_part_of_the_mvtec_layout_stays(tmp_path):
    unpack_images(zipped({"train/good/0.png": png()}), tmp_path / "own")
    assert below(tmp_path / "own") == {"train/good/0.png"}


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_no_name_leads_out_of_the_folder(name, tmp_path, refusal):
    said = refusal(unpack_images, zipped({"good.png": png(), name: png()}), tmp_path / "in" / "own")
    assert "contains a path outside its folder" in said
    assert not (tmp_path / "in").exists() or not list((tmp_path / "in").iterdir())
    assert not list(tmp_path.rglob("evil*"))


def test_a_bomb_is_counted_as_it_unpacks(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 5_000_000)
    bomb = zipped({f"{i}.png": bytes(1_000_000) for i in range(10)})
    assert len(bomb.getvalue()) < 100_000
    assert "unpacks to more than" in refusal(unpack_images, bomb, tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_too_many_images_are_refused(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    assert "contains 4 images; the limit is 3" in refusal(
        unpack_images, zipped({f"{i}.png": png() for i in range(4)}), tmp_path / "own"
    )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"no zip at all"])
def test_what_is_no_zip_file_is_refused(content, tmp_path, refusal):
    assert "not a readable zip file" in refusal(unpack_images, io.BytesIO(content), tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_an_archive_of_an_unknown_version_is_refused(tmp_path, refusal):
    content = bytearray(zipped({"0.png": png()}).getvalue())
    content[content.rindex(b"PK\x01\x02") + 6] = 99  # the version that is needed to read it
    for read in (lambda file: unpack_images(file, tmp_path / "own"), lambda file: image_names(file, 1000)):
        assert "not a readable zip file" in refusal(read, io.BytesIO(bytes(content)))


def test_a_damaged_archive_leaves_nothing(tmp_path, refusal):
    content = bytearray(zipped({f"{i}.png": png() for i in range(3)}).getvalue())
    content[40] ^= 0xFF  # inside the first image
    assert "not a readable zip file" in refusal(unpack_images, io.BytesIO(bytes(content)), tmp_path / "own")
    assert not list(tmp_path.iterdir())


def test_an_archive_without_images_and_a_taken_name_are_refused(tmp_path, refusal):
    assert "contains no image" in refusal(unpack_images, zipped({"a.txt": b"words"}), tmp_path / "own")
    (tmp_path / "own").mkdir()
    assert "exists already" in refusal(unpack_images, zipped({"a.png": png()}), tmp_path / "own")


def test_files_of_unknown_endings_are_counted(tmp_path):
    found = unpack_images(zipped({"0.png": png(), "1.npy": b"", "2.dcm": b"", "notes.txt": b""}), tmp_path / "own")
    assert found.images == 1
    assert found.said == ["2 files of other endings than images have, such as 1.npy, were not read"]
