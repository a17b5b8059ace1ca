"""Which folders of the server a visitor may name."""

import pytest
import streamlit as st

from ui.shared import places


@pytest.fixture
def address(monkeypatch):
    """A function that makes the server listen at an address."""

    def listens_at(value):
        monkeypatch.delenv(places.VARIABLE, raising=False)
        monkeypatch.setattr(st, "get_option", {"server.address": value}.get)

    return listens_at


@pytest.mark.parametrize(("at", "may"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), (None, False)])
def test_only_who_sits_at_the_machine_may_name_any_folder(address, tmp_path, refusal, at, may):
    address(at)
    if may:
        assert places.readable(str(tmp_path)) == tmp_path.resolve()
    else:
        assert places.VARIABLE in refusal(places.readable, str(tmp_path))


def test_a_list_of_folders_holds_wherever_the_server_listens(address, monkeypatch, tmp_path, refusal):
    for name in ("images/bottle", "images-of-others"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "images" / "link").symlink_to(tmp_path / "images-of-others")
    for listener in ("127.0.0.1", "0.0.0.0"):
        address(listener)
        monkeypatch.setenv(places.VARIABLE, f"{tmp_path / 'images'}:{tmp_path / 'nowhere'}")
        assert places.readable(str(tmp_path / "images" / "bottle")) == (tmp_path / "images" / "bottle").resolve()
        for outside in ("images-of-others", "images/../images-of-others", "images/link", ".", "images/bottle/../.."):
            assert "may read" in refusal(places.readable, str(tmp_path / outside))


def test_an_empty_list_allows_none(address, monkeypatch, refusal):
    address("127.0.0.1")
    monkeypatch.setenv(places.VARIABLE, "")
    assert places.allowed() == ()
    refusal(places.readable, "/")


def test_a_refusal_does_not_tell_what_is_there(address, tmp_path, refusal):
    address("0.0.0.0")
    there, nowhere = (refusal(places.readable, str(place)) for place in (tmp_path, tmp_path / "x"))
    assert nowhere.replace("/x is", " is") == there


@pytest.mark.parametrize("odd", ["\0", "~nobody-of-this-name/x", "a" * 5000])
def test_what_is_no_path_is_refused_or_leads_nowhere(address, monkeypatch, odd, refusal):
    address("0.0.0.0")
    refusal(places.readable, odd)
