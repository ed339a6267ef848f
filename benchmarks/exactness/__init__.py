"""The same eight cases put to several training tools, each used as its own documentation says.

`problem.py` holds what every tool is given, `with_*.py` one tool each, `cases.py` what is measured, `work.py` the
process that runs one case of one tool, `killing.py` the kills, `__main__.py` the whole of it, the table and the record.
"""
