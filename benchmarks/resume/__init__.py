"""One run, stopped in the middle of an epoch and resumed, by four training tools, each as its own documentation says.

`problem.py` holds what every tool is given and what it leaves behind, `*_run.py` one tool each (a process of its own),
`trial.py` a run, a stop, a resume and what came of them, `__main__.py` the whole of it, the table and the record.
"""
