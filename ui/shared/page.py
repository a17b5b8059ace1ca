"""Layout shared by all pages: configuration, navigation and style."""

from pathlib import Path

import streamlit as st

import kdad
from kdad.memory import keep_freed_memory

ROOT = Path(__file__).parent.parent.parent
ASSETS = ROOT / "ui" / "assets"
HOME, TRAIN = "app.py", "pages/1_Train_or_load.py"
INSPECT, RESULTS = "pages/2_Inspect.py", "pages/3_Curves_and_results.py"
STYLE = """<style>
[data-testid="stMainBlockContainer"] { max-width: 82rem; }
@media (min-width: 800px) { [data-testid="stMainBlockContainer"] { padding-left: 3rem; padding-right: 3rem; } }
.st-key-kdad-next a, .st-key-kdad-train a { background: #9c2f5f; padding: .5rem 1.1rem; border-radius: .5rem; }
.st-key-kdad-next a:hover, .st-key-kdad-train a:hover { background: #b13a6d; }
.st-key-kdad-next a *, .st-key-kdad-train a * { color: #fff !important; }
.kdad-scale { display: flex; align-items: center; gap: .5rem; font-size: .8rem; opacity: .9; margin-top: -.4rem; }
.kdad-scale i {
  flex: 1; height: .55rem; max-width: 16rem; border-radius: .3rem; border: 1px solid #8885;
  background: linear-gradient(90deg, #000004, #1b0c41, #4a0c6b, #781c6d, #a52c60,
    #cf4446, #ed6925, #fb9b06, #f7d13d, #fcffa4);
}
</style>"""


def setup(title: str) -> None:
    """Configure the page and draw its shared elements; must be called first on every page."""
    keep_freed_memory()
    _follow_link(title)
    icon = str(ASSETS / "icon.svg")
    st.set_page_config(page_title=f"{title} · kdad", page_icon=icon, layout="wide")
    st.logo(str(ASSETS / "logo.svg"), size="large", icon_image=icon)
    st.html(STYLE)
    with st.sidebar:
        st.page_link(HOME, label="Home")
        for page in pages():
            st.page_link(page, label=page_name(page))


def _follow_link(title: str) -> None:
    """On arrival at a page, forget what was chosen there before where the link says what to choose.

    Streamlit takes a parameter from a link only if it is not the widget's default: else the earlier choice would stay.
    """
    st.session_state["arrived"] = st.session_state.get("page-shown") != title
    st.session_state["page-shown"] = title
    if arrived():
        for name in st.query_params:
            st.session_state.pop(name, None)


def arrived() -> bool:
    """Whether this is the first run of a page after coming to it; later, its address may hold what applies no more."""
    return bool(st.session_state["arrived"])


def pages() -> list[str]:
    """Pages other than home, in numerical order, as paths relative to the project."""
    return [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "pages").glob("[0-9]*_*.py"))]


def page_name(page: str) -> str:
    """Display name of a page: Inspect for `pages/2_Inspect.py`."""
    return Path(page).stem.split("_", 1)[1].replace("_", " ")


def footer() -> None:
    """Draw the footer of the sidebar; call it after the page's own controls."""
    st.sidebar.caption(f"kdad {kdad.__version__} · everything runs on this machine; no image leaves it.")
