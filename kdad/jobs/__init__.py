"""Training in the background, for the app: processes that outlive it, and files that say how they fare.

A job is a folder below a jobs root. `request.json` says what was asked for and `log.txt` what the process printed; in
`status.json` the process itself reports, with a heartbeat. One job of a root works at a time: the others are processes
that wait for its file lock, so that no scheduler can be lost. Imports no other room, and neither torch nor Streamlit.
"""
