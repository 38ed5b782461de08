"""Programs that end with the run of tests that started them, however that ends: they are killed when it is killed.

prctl(2), PR_SET_PDEATHSIG: the signal comes when the thread that started the program ends, so it is started by the main one.
"""

MORTAL = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before an argv; the program has the process number that it would have had without."""
