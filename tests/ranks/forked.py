"""Where the tests' ranks are forked from: one server to a test process, which has imported what
they need and done nothing else. Without it each rank takes seconds to begin."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
# Not deepspeed: it looks for its accelerator when it is imported, and ranks say which it shall be.
CONTEXT.set_forkserver_preload(["clipfast.train.loop"])
