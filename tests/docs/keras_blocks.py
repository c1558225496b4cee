"""The other process in which a page's blocks about Keras run, one after another, like one script.

It reads a block a line, as JSON, and answers each with a line: empty, or the traceback.
"""

import json
import sys
import traceback


def serve():
    """Run what is asked for until the pipe is closed."""
    answers_to, sys.stdout = sys.stdout, sys.stderr
    namespace = {"__name__": "__main__"}
    for line in sys.stdin:
        block, error = json.loads(line), ""
        try:
            exec(compile(block["source"], block["path"], "exec"), namespace)
        except Exception:  # noqa: BLE001 (whatever it is, the test has to see it)
            error = traceback.format_exc()
        answers_to.write(json.dumps(error) + "\n")
        answers_to.flush()


if __name__ == "__main__":
    serve()
