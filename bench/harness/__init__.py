"""How a case is checked, timed, budgeted and shown: the same for every case."""
