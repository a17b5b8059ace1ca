"""Triage: pictures are accepted or rejected one after another, by click or key."""

import streamlit as st

from ui.shared.links import LINKED
from ui.shared.pictures import Picture

ACCEPTED, REJECTED = "accepted", "rejected"
MARKS = {ACCEPTED: ":material/check:", REJECTED: ":material/close:"}


def decision_on(picture: Picture) -> str | None:
    """The decision on a picture in this session, `ACCEPTED` or `REJECTED`; None if there is none."""
    return _decisions().get(picture.digest)


def decide(picked: Picture, shown: list[Picture]) -> None:
    """Draw the buttons that decide on the picked picture; each goes on to the next open one of those shown."""
    names = [picture.name for picture in shown]
    place = names.index(picked.name) if picked.name in names else -1
    decided = decision_on(picked)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for label, decision, key in (("Accept", ACCEPTED, "a"), ("Reject", REJECTED, "x")):
            st.button(
                label, key=f"decide-{decision}", icon=MARKS[decision], shortcut=key, on_click=_decide,
                args=(decision, picked, shown), type="primary" if decided == decision else "secondary",
            )  # fmt: skip
        for label, step, key in (("Previous", -1, "Left"), ("Next", 1, "Right")):
            other = shown[place + step] if 0 <= place + step < len(shown) else None
            st.button(
                label, key=f"go-{label}", shortcut=key, disabled=other is None, on_click=_go, args=(other,),
                type="tertiary",
            )  # fmt: skip
        if decided:
            st.button("Undecide", key="undecide", on_click=_decide, args=(None, picked, [picked]), type="tertiary")


def _decisions() -> dict[str, str]:
    decisions: dict[str, str] = st.session_state.setdefault("decisions", {})
    return decisions


def _decide(decision: str | None, picked: Picture, shown: list[Picture]) -> None:
    """Keep a decision, and go on to the next picture without one."""
    if decision is None:
        _decisions().pop(picked.digest, None)
        return
    _decisions()[picked.digest] = decision
    digests = [picture.digest for picture in shown]
    place = digests.index(picked.digest) if picked.digest in digests else -1
    following = [*shown[place + 1 :], *shown[: max(0, place)]]
    _go(next((picture for picture in following if decision_on(picture) is None), None))


def _go(picture: Picture | None) -> None:
    if picture is not None:
        st.session_state["picked"] = st.query_params[LINKED] = picture.name
