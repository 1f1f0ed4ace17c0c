"""What can go wrong, in two kinds. The command line turns them into one or two lines and an exit status.

Every message names what is wrong, where, and how to mend it.
"""


class DinghaiError(Exception):
    """Base of all errors that Dinghai raises on purpose."""

    exit_status = 1


class InputError(DinghaiError, ValueError):
    """What the user gave is wrong: a setting, a file, a reward function. Nothing has been written or lost."""

    exit_status = 2


class RunFailed(DinghaiError, RuntimeError):
    """The run had to stop (a non-finite number, a full disk, a damaged checkpoint); the last checkpoint is intact."""

    exit_status = 1
