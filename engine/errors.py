"""The one exception type a user may meet."""


class InputError(Exception):
    """Input from outside that cannot be used: a file, a name, a number.

    The message is one line, complete on its own: it names the thing, the value seen and the
    values allowed.  The command line prints it after `minikv: ` and exits with status 1; nothing
    else in the engine is caught there, so any other exception is a bug.
    """
