"""Background training for the app: processes that outlive it, and files that report their status.

A job is a folder below a jobs root. `request.json` holds the request and `log.txt` the process's output; the process
reports its status, with a heartbeat, in `status.json`. One job per root runs at a time: the others are processes that
wait for its file lock, which needs no scheduler. Imports no other room, and neither torch nor Streamlit.
"""
