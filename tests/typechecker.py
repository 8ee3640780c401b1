"""The run-time checker of annotated shapes; an int passes for a float, as in Python."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
